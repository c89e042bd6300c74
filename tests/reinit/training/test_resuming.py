"""A run that was interrupted anywhere and resumed equals the whole one, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, optim

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import AT_VALIDATION, Mortal, differing, events, state_of, trained


class Both(Mortal):
    """Steps two optimizers of different kinds by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        lower = [*self.a.parameters(), *self.bn.parameters()]
        upper = [*self.b.parameters(), *self.c.parameters()]
        return optim.SGD(lower, lr=1e-2, momentum=0.9), optim.AdamW(upper, lr=1e-2)


class Scheduled(Mortal):
    """A scheduler that moves the learning rate and the betas at every step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        cycle = optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=100)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


# Epochs have four batches: windows of three end inside of them, and those of six span two.
CASES: dict[str, tuple[Any, ReinitConfig, dict[str, Any]]] = {
    "planned at validation": (Mortal, AT_VALIDATION, {}),
    "with patience": (Mortal, ReinitConfig(), {"max_epochs": 7}),
    "inside a window": (Mortal, ReinitConfig(patience=1, every_n_train_steps=3), {}),
    "a window of two epochs": (Mortal, ReinitConfig(patience=1, every_n_train_steps=6), {}),
    "a window of dormancy": (
        Mortal,
        ReinitConfig(patience=1, every_n_train_steps=6, criterion="dormant", tau=0.05),
        {},
    ),
    "dormant at validation": (Mortal, ReinitConfig(patience=1, criterion="dormant", tau=0.05), {}),
    "two optimizers": (Both, AT_VALIDATION, {}),
    "a scheduler": (Scheduled, AT_VALIDATION, {}),
    "accumulated": (
        Mortal,
        ReinitConfig(patience=1, every_n_train_steps=3),
        {"accumulate_grad_batches": 3},
    ),
    "bfloat16": (Mortal, AT_VALIDATION, {"precision": "bf16-true"}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, name: str) -> None:
    module, config, options = CASES[name]

    def run(*more: Any, **extra: Any) -> tuple[dict[str, Tensor], int]:
        model, callback = module(), DeadUnitCallback(reinit=config)
        options_of_both = {"max_epochs": 5, "default_root_dir": tmp_path, **options}
        trainer = trained(model, callback, *more, **options_of_both, **extra)
        return state_of(trainer, model), len(events(callback))

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, done = run(keep)
    assert done >= 2
    for epoch in range(4):
        again, _ = run(resume=tmp_path / f"epoch={epoch}.ckpt")
        assert differing(whole, again) == [], f"after epoch {epoch}"


def test_a_checkpoint_of_an_exception_holds_the_corrections_under_way(tmp_path: Path) -> None:
    class Stops(Mortal):
        stop = True

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.stop and self.trainer.global_step == 12 and batch_idx == 0:
                raise ArithmeticError

    def run(model: Stops, *more: Any, **extra: Any) -> dict[str, Tensor]:
        callback = DeadUnitCallback(reinit=AT_VALIDATION)
        trainer = trained(model, callback, *more, default_root_dir=tmp_path, **extra)
        assert events(callback)
        return state_of(trainer, model)

    whole = Stops()
    whole.stop = False
    expected = run(whole, max_epochs=6)
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_exception=True, every_n_epochs=100)
    with pytest.raises(ArithmeticError):
        run(Stops(), keep, max_epochs=6)
    (path,) = tmp_path.glob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    (state,) = (s for key, s in saved["callbacks"].items() if "DeadUnit" in key)
    assert any(state["reviver"]["events"]["memory"])
    resumed = Stops()
    resumed.stop = False
    assert differing(expected, run(resumed, max_epochs=6, resume=path)) == []
