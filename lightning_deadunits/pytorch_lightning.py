"""DeadUnitCallback for ``pytorch_lightning``, whose LightningCLI accepts only its own callbacks."""

from __future__ import annotations

from pytorch_lightning import Callback

from lightning_deadunits.monitor import DeadUnitMonitor


class DeadUnitCallback(DeadUnitMonitor, Callback):
    """The same as :class:`lightning_deadunits.DeadUnitCallback`, for the other namespace."""
