"""Reports with units that are dead on command."""

from __future__ import annotations

import torch

from lightning_deadunits import DeadUnitsReport, LayerReport

SEEN = 4


def layer(name: str, *dead: int, units: int = 20, seen: int = SEEN, **more: object) -> LayerReport:
    """Return a layer with these dead units; the others were zero at one value of ``seen``."""
    zeros = torch.ones(units, dtype=torch.int64) if seen else torch.zeros(units, dtype=torch.int64)
    zeros[list(dead)] = seen
    return LayerReport(name, units, 1, seen, zeros, **more)


def report(*dead: int, units: int = 20, seen: int = SEEN) -> DeadUnitsReport:
    """Return a report of one layer ``act`` with these dead units."""
    return DeadUnitsReport({"act": layer("act", *dead, units=units, seen=seen)})


def reports_of(*layers: LayerReport) -> DeadUnitsReport:
    """Return a report of several layers."""
    return DeadUnitsReport({it.name: it for it in layers})
