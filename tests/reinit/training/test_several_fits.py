"""One callback in several fits: one that does not resume knows nothing of the former one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import AT_VALIDATION, SCHEDULES, Mortal, data, differing, state_of, trained


class Fold(LightningModule):
    """One hidden layer of healthy units, but for those that are killed at birth.

    Args:
        dead: How many of the 16 units are born dead.
        gain: Factor on the incoming weights.
    """

    def __init__(self, dead: int, gain: float = 1.0) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
        with torch.no_grad():
            self.net[0].weight *= gain
            self.net[0].bias.fill_(1.0)
            self.net[0].bias[:dead] = -1000.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4)


@pytest.mark.parametrize("first", ["a healthy fold", "another dead fold"])
def test_the_second_fold_is_judged_as_with_a_fresh_callback(first: str) -> None:
    fresh, used = DeadUnitCallback(), DeadUnitCallback()
    trained(Fold(dead=0 if first == "a healthy fold" else 7), used, max_epochs=3)
    for callback in (fresh, used):
        trained(Fold(dead=4), callback, max_epochs=2)
    assert used.report is not None
    assert str(used.report) == str(fresh.report)
    assert int(used.report.layers["net.1"].born_dead.sum()) == 4
    mine, its = (each.history.state_dict() for each in (used, fresh))
    assert mine["lives"].keys() == its["lives"].keys() == {"net.1"}
    assert differing(mine["lives"]["net.1"], its["lives"]["net.1"]) == []
    assert used.history.to_dataframe().equals(fresh.history.to_dataframe())


def test_fresh_weights_are_as_large_as_the_present_model_began_not_the_former() -> None:
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Fold(dead=4), callback, max_epochs=3)
    model = Fold(dead=4, gain=3.0)
    began = float(model.net[0].weight.detach().std())
    trained(model, callback, max_epochs=3)
    assert float(model.net[0].weight.detach()[:4].std()) == pytest.approx(began, rel=0.35)


def test_nothing_that_was_pending_at_the_end_of_a_fit_acts_on_the_next_model() -> None:
    config = ReinitConfig(criterion="dormant", tau=0.01, patience=1)
    callback = DeadUnitCallback(reinit=config)
    trained(Fold(dead=4), callback, max_epochs=2)
    healthy, alone = Fold(dead=0), Fold(dead=0)
    trained(healthy, callback, max_epochs=2)
    trained(alone, max_epochs=2)
    assert callback.reviver is not None
    assert callback.reviver.events == []
    assert differing(healthy.state_dict(), alone.state_dict()) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_used_callback_trains_the_next_model_as_a_fresh_one_does(schedule: str) -> None:
    def run(callback: DeadUnitCallback) -> dict[str, Tensor]:
        model = Mortal()
        trainer = trained(model, callback, max_epochs=3, limit_train_batches=3)
        return state_of(trainer, model)

    used = DeadUnitCallback(reinit=SCHEDULES[schedule])
    run(used)
    assert differing(run(used), run(DeadUnitCallback(reinit=SCHEDULES[schedule]))) == []


def test_a_fit_that_resumes_goes_on_though_the_callback_was_used_before(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = DeadUnitCallback(reinit=AT_VALIDATION)
    model = Mortal()
    expected = state_of(trained(model, whole, keep, max_epochs=5), model)
    used = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Fold(dead=7), used, max_epochs=2)
    model = Mortal()
    trainer = trained(model, used, max_epochs=5, resume=tmp_path / "epoch=2.ckpt")
    assert differing(state_of(trainer, model), expected) == []
    assert used.report is not None
    assert whole.report is not None
    assert str(used.report) == str(whole.report)


def test_a_second_fit_of_the_same_trainer_goes_on() -> None:
    callback, model = DeadUnitCallback(), Fold(dead=4)
    trainer = trained(model, callback, max_epochs=2)
    first = callback.history.state_dict()["lives"]["net.1"]["dead_since"]
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, data(), data())
    assert torch.equal(callback.history.state_dict()["lives"]["net.1"]["dead_since"], first)


def test_a_callback_that_gave_up_in_one_fit_watches_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any) -> None:
        raise KeyError("a bug of ours")

    callback = DeadUnitCallback()
    with monkeypatch.context() as patched:
        patched.setattr("lightning_deadunits.lightning.callback_base.log_scalars", broken)
        with pytest.warns(UserWarning, match="(?s)watches no longer.*a bug of ours"):
            trained(Fold(dead=7), callback, max_epochs=1)
    trained(Fold(dead=4), callback, max_epochs=1)
    assert callback.report is not None
    assert callback.report.num_dead == 4
