"""DeadUnitCallback for ``pytorch_lightning``, whose LightningCLI accepts only its own callbacks."""

from __future__ import annotations

from pytorch_lightning import Callback

from lightning_deadunits.lightning.callback_base import DeadUnitMonitor


class DeadUnitCallback(DeadUnitMonitor, Callback):  # noqa: D101  # described below
    __doc__ = DeadUnitMonitor.__doc__
