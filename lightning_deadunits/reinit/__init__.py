"""Gives dead units a new life without disturbing what the network does."""

from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.report import ReinitReport
from lightning_deadunits.reinit.revive import reinit_dead_units

__all__ = ["ReinitConfig", "ReinitReport", "reinit_dead_units"]
