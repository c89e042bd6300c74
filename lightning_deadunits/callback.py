"""DeadUnitCallback for ``lightning.pytorch``."""

from __future__ import annotations

from lightning.pytorch import Callback

from lightning_deadunits.monitor import DeadUnitMonitor


class DeadUnitCallback(DeadUnitMonitor, Callback):
    __doc__ = DeadUnitMonitor.__doc__
