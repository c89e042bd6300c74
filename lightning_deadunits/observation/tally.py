"""Counts of all layers as one integer vector: one transfer, one reduction, whatever their number.

Every process lays the vector out alike, though a layer may have run on some only: first they
agree on the layers and their sizes, then they sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.observation.activations import Kind, zero_atol
from lightning_deadunits.observation.sums import LayerCounts
from lightning_deadunits.report import DeadUnitsReport, LayerReport


class LayerShape(NamedTuple):
    """What processes must agree on before they sum the counts of a layer."""

    num_units: int
    unit_dim: int
    kind: Kind
    assumed: bool


Layout = dict[str, LayerShape]
Gather = Callable[[Any], list[Any]]
Reduce = Callable[[Tensor], Tensor]


def layout_of(counts: Mapping[str, LayerCounts]) -> Layout:
    """Return name and shape of every layer, in the order in which they first ran."""
    return {
        name: LayerShape(count.zeros.numel(), count.unit_dim, count.kind, count.assumed)
        for name, count in counts.items()
    }


def merge(layouts: Iterable[Layout]) -> tuple[Layout, dict[str, str]]:
    """Merge the layouts of all processes.

    Returns:
        The layers of any process, those of the first one first; and the layers whose number of
        units differs between processes, each with a reason: they are left out.
    """
    merged: Layout = {}
    unjudged: dict[str, str] = {}
    for layout in layouts:
        for name, shape in layout.items():
            known = merged.setdefault(name, shape)
            if known.num_units != shape.num_units:
                unjudged[name] = (
                    f"its number of units differs between processes "
                    f"({known.num_units} and {shape.num_units})"
                )
    return {name: shape for name, shape in merged.items() if name not in unjudged}, unjudged


def pack(counts: Mapping[str, LayerCounts], layout: Layout, device: torch.device) -> Tensor:
    """Lay out the counts as one int64 vector; what did not run here is zero."""
    parts = []
    for name, shape in layout.items():
        if name not in counts:
            parts.append(torch.zeros(shape.num_units + 2, dtype=torch.int64, device=device))
            continue
        count = counts[name]
        parts += [count.zeros.to(device)]
        for number in (count.nonfinite, count.observations):
            parts.append(torch.as_tensor(number, dtype=torch.int64, device=device).reshape(1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)


def unpack(
    vector: Tensor, layout: Layout, dead_threshold: float, atol: float | None
) -> dict[str, LayerReport]:
    """Read a vector on the CPU back, as one report per layer."""
    layers = {}
    start = 0
    for name, shape in layout.items():
        zeros = vector[start : start + shape.num_units].clone()
        start += shape.num_units + 2
        layers[name] = LayerReport(
            name=name,
            num_units=shape.num_units,
            unit_dim=shape.unit_dim,
            observations=int(vector[start - 1]),
            zeros=zeros,
            dead_threshold=dead_threshold,
            atol=zero_atol(shape.kind, atol),
            nonfinite=int(vector[start - 2]),
            axis_assumed=shape.assumed,
        )
    return layers


def report_of(
    counts: Mapping[str, LayerCounts],
    unjudged: Mapping[str, str],
    *,
    dead_threshold: float,
    atol: float | None,
    device: torch.device | None = None,
    gather: Gather = lambda value: [value],
    reduce: Reduce = lambda vector: vector,
) -> DeadUnitsReport:
    """Sum the counts of all processes and judge every unit by the sums.

    Args:
        counts: Counts of this process.
        unjudged: Layers that this process could not judge, with reasons.
        dead_threshold: Zero rate in (0, 1] from which on a unit is dead.
        atol: Magnitude that counted as zero, None for the rule by kind.
        device: Where the vector is summed; by default where the counts are.
        gather: Returns the argument of every process, in the order of their ranks.
        reduce: Sums a tensor over all processes.

    Returns:
        The report, the same on every process.
    """
    gathered = gather((layout_of(counts), dict(unjudged)))
    layout, clashes = merge(layers for layers, _ in gathered)
    for _, reasons in gathered:
        clashes.update(reasons)
    layout = {name: shape for name, shape in layout.items() if name not in clashes}
    if device is None:
        device = next((count.zeros.device for count in counts.values()), torch.device("cpu"))
    vector = reduce(pack(counts, layout, device)).cpu()
    return DeadUnitsReport(unpack(vector, layout, dead_threshold, atol), clashes)
