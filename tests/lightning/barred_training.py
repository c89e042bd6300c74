"""A short training under a progress bar, started in a terminal of its own by ``test_terminal``."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch import Tensor

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.modules import Lit, loader


class Slow(Lit):
    """Takes its time, so that the bar is drawn in between."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(0.03)
        return super().training_step(batch, batch_idx)


def broken(*args: Any) -> Tensor:
    """Draw no weights."""
    raise ValueError("no such distribution")


def main(bar: str, stage: str) -> None:
    warnings.filterwarnings("ignore", message=".*(num_workers|many workers|logging interv|Leaf).*")
    init = broken if stage == "broken" else "default"
    reinit = ReinitConfig(patience=1, grace_period=0, init=init)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[
            RichProgressBar() if bar == "rich" else TQDMProgressBar(),
            DeadUnitCallback(reinit=reinit if stage in ("reinit", "broken") else False),
        ],
    )  # fmt: skip
    model = Slow(kill={6: [7, 8, 9, 10, 11, 12]})
    if stage in ("validate", "test"):
        getattr(trainer, stage)(model, loader())
    else:
        trainer.fit(model, loader(), loader())


if __name__ == "__main__":
    main(*sys.argv[1:])
