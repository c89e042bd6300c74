"""DeadUnitCallback for ``lightning.pytorch``."""

from __future__ import annotations

from lightning.pytorch import Callback

from lightning_deadunits.lightning.callback_base import DeadUnitMonitor


class DeadUnitCallback(DeadUnitMonitor, Callback):  # noqa: D101  # described below
    __doc__ = DeadUnitMonitor.__doc__
