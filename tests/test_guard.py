"""Monitoring that fails costs a warning and the verdicts, never the training; no process waits."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_deadunits import DeadUnitCallback
from lightning_deadunits.observation import tally
from lightning_deadunits.observation.observer import Observer
from tests.modules import Lit, loader
from tests.test_processes import Saving, read

pytestmark = pytest.mark.forks

MakeTrainer = Callable[..., pl.Trainer]
BROKEN = {
    "summing": "lightning_deadunits.lightning.together.report_of",
    "laying out": "lightning_deadunits.observation.tally.pack",
    "adding up": "lightning_deadunits.observation.sums.PassSums.flush",
    "judging": "lightning_deadunits.lightning.speaking.warn_of_gaps",
}


@pytest.mark.parametrize("target", BROKEN.values(), ids=BROKEN)
def test_training_goes_on_after_one_warning_with_the_traceback(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(target, broken)
    trainer = make_trainer(callbacks=[DeadUnitCallback()], max_epochs=3, num_sanity_val_steps=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(Lit(), loader(), loader())
    failures = [str(w.message) for w in told if "watches no longer" in str(w.message)]
    assert len(failures) == 1
    assert "unforeseen" in failures[0]
    assert "in broken" in failures[0]
    assert trainer.state.finished


class Failing(Saving):
    """Fails on rank 1, at one place; leaves on disk that training ended."""

    def __init__(self, folder: Path, place: str) -> None:
        super().__init__(folder)
        self.place = place

    def on_validation_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if self.place == "counting" and trainer.global_rank == 1 and self._observer is not None:
            self._observer.begin = None  # type: ignore[assignment, method-assign]
        super().on_validation_batch_start(trainer, *args, **kwargs)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.place == "laying out" and trainer.global_rank == 1:
            tally.pack = None  # type: ignore[assignment]
        super().on_validation_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        known = (self._guard.gave_up, self._guard.all_know, self.report is None)
        torch.save(known, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.parametrize("place", ["counting", "laying out"])
def test_all_processes_give_up_together(
    make_trainer: MakeTrainer, tmp_path: Path, place: str
) -> None:
    trainer = make_trainer(
        strategy="ddp_fork", devices=2, callbacks=[Failing(tmp_path, place)], max_epochs=2,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Lit(), loader(), loader())
    assert read(tmp_path) == [(True, True, True)] * 2


class Copying(Lit):
    """Copies and pickles itself while it is watched."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.copies = [copy.deepcopy(self.net), pickle.loads(pickle.dumps(self.net))]
        super().validation_step(batch, batch_idx)


def test_a_model_may_be_copied_and_pickled_while_it_is_watched(make_trainer: MakeTrainer) -> None:
    model, callback = Copying(), DeadUnitCallback()
    make_trainer(callbacks=[callback]).validate(model, loader(), verbose=False)
    observer = Observer(model.net)
    batch = next(iter(loader()))[0]
    expected = model.net(batch)
    for net in model.copies:
        with torch.no_grad(), observer.watching(), observer.one_pass():
            assert torch.equal(net(batch), expected)
        # The hooks of a copy name nothing: it is not the model that is watched.
        assert list(observer.counts) == ["relu", "relu#2"]
        assert not observer._frames
        observer.reset()
    assert callback.report.layers["net.act"].observations == 64


def test_hooks_of_a_copy_leave_outputs_and_exceptions_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with Observer(net).watching():
        clone = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        clone(torch.randn(2, 5))
    assert clone(torch.randn(2, 3)).shape == (2, 4)
