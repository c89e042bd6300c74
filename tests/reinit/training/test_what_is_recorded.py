"""Which batches are recorded, and what becomes of units that modules on no tape may read."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.reinit.recording import Recorder
from lightning_deadunits.reinit.recording.layout import Layout
from lightning_deadunits.reinit.recording.replay import Visitor, replay
from tests.mortal import AT_VALIDATION, EVERY_TWO_STEPS, Mortal, data, events, trained
from tests.zoo import kill


class Tasks(LightningModule):
    """A trunk, and heads of which each batch runs one.

    Args:
        dead_heads: Whose first hidden unit is dead; two of the trunk's are in any case.
    """

    ran = "ab"

    def __init__(self, *dead_heads: str) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.trunk = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.heads = nn.ModuleDict(
            {key: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)) for key in "abc"}
        )
        with torch.no_grad():
            self.trunk[0].bias[:2] = -100.0
            for head in self.heads.values():
                head[0].bias.fill_(5.0)  # whatever a head sees, it fires
            for key in dead_heads:
                self.heads[key][0].bias[0] = -100.0

    def loss(self, batch: list[Tensor], head: str) -> Tensor:
        return (self.heads[head](self.trunk(batch[0])) - batch[1]).pow(2).mean()

    def training_head(self, batch_idx: int) -> str:
        return "a"

    def validation_head(self, batch_idx: int, loader: int) -> str:
        return "ab"[loader]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, self.training_head(batch_idx))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch, self.validation_head(batch_idx, dataloader_idx)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Weights(Callback):
    """Keeps the weights at the start of every training batch."""

    def __init__(self) -> None:
        self.at: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        state = pl_module.state_dict()
        self.at.append({name: tensor.detach().clone() for name, tensor in state.items()})


def outputs(weights: dict[str, Tensor], heads: str) -> Tensor:
    """Return what heads compute with some weights, on what units were judged by."""
    model = Tasks()
    model.load_state_dict(weights)
    with torch.no_grad():
        hidden = model.trunk(data().dataset.tensors[0])  # type: ignore[attr-defined]
        return torch.cat([model.heads[key](hidden) for key in heads])


def fit(model: Tasks, config: Any, loaders: int = 2, **options: Any) -> Any:
    """Train, and check that no head that runs computes otherwise for an event."""
    before, callback, after = Weights(), DeadUnitCallback(reinit=config), Weights()
    validation = [data() for _ in range(loaders)]
    trained(model, before, callback, after, loaders=(data(), validation), **options)
    assert callback.reviver is not None
    for was, now in zip(before.at, after.at, strict=True):
        assert torch.equal(outputs(was, model.ran), outputs(now, model.ran))
    return callback.reviver.events


@pytest.mark.parametrize("dead_heads", [(), ("a", "b")])
def test_a_trunk_that_two_loaders_use_is_revived_on_both_heads(dead_heads: Any) -> None:
    (event, *_) = fit(Tasks(*dead_heads), True)
    expected = {"trunk.1": [0, 1]} | {f"heads.{key}.1": [0] for key in dead_heads}
    assert event.reinitialised == expected, str(event)
    silenced = {"heads.a.0.weight", "heads.b.0.weight"}
    assert set(event.read_by["trunk.1"]) == silenced


class Alternating(Tasks):
    """Trains its heads in turn, and validates one of them."""

    ran = "abc"

    def training_head(self, batch_idx: int) -> str:
        return "abc"[batch_idx % 3]

    def validation_head(self, batch_idx: int, loader: int) -> str:
        return "a"


@pytest.mark.parametrize("config", [AT_VALIDATION, ReinitConfig(every_n_train_steps=4)])
def test_a_head_that_other_training_batches_run_is_silenced_too(config: Any) -> None:
    (event, *_) = fit(Alternating(), config, loaders=1)
    assert event.reinitialised == {"trunk.1": [0, 1]}, str(event)
    assert set(event.read_by["trunk.1"]) == {f"heads.{key}.0.weight" for key in "abc"}


class RareInValidation(Tasks):
    """Runs a head in one batch of a validation, not its first, and trains another one."""

    def validation_head(self, batch_idx: int, loader: int) -> str:
        return "b" if batch_idx == 1 else "a"

    def training_head(self, batch_idx: int) -> str:
        return "a"


def test_a_head_that_ran_once_and_was_not_recorded_has_the_next_batch_recorded() -> None:
    class Twice(RareInValidation):
        def validation_head(self, batch_idx: int, loader: int) -> str:
            return "b" if batch_idx > 1 else "a"

    (event, *_) = fit(Twice(), AT_VALIDATION, loaders=1)
    assert event.reinitialised == {"trunk.1": [0, 1]}, str(event)
    assert set(event.read_by["trunk.1"]) == {"heads.a.0.weight", "heads.b.0.weight"}


def test_units_that_a_head_on_no_tape_may_use_are_refused_until_it_is_recorded() -> None:
    first, second, *_ = fit(RareInValidation(), AT_VALIDATION, loaders=1, max_epochs=6)
    assert first.reinitialised == {}
    (reason,) = set(first.refused["trunk.1"].values())
    assert "heads.b.0" in reason
    assert second.reinitialised == {"trunk.1": [0, 1]}, str(second)
    assert set(second.read_by["trunk.1"]) == {"heads.a.0.weight", "heads.b.0.weight"}


class CountsRecordings:
    """Counts how often a pass is recorded, by stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.training: list[bool] = []
        begin = Recorder.begin

        def counted(recorder: Recorder, *, training: bool) -> None:
            self.training.append(training)
            begin(recorder, training=training)

        monkeypatch.setattr(Recorder, "begin", counted)


def test_nothing_is_recorded_while_no_unit_may_be_due(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = CountsRecordings(monkeypatch)
    healthy = Mortal(mortal=False)
    with torch.no_grad():
        healthy.bn.bias[1] = healthy.b.bias[0] = 1.0
    trained(healthy, DeadUnitCallback(reinit=True), max_epochs=4)
    assert recordings.training == []


def test_one_batch_of_training_and_one_of_each_loader_is_recorded_per_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recordings = CountsRecordings(monkeypatch)
    (event,) = fit(Tasks(), True, max_epochs=3)
    assert event.reinitialised
    assert recordings.training == [True, False, False]


def test_a_recorded_batch_is_let_go_after_the_event() -> None:
    class Sizes(Callback):
        def __init__(self) -> None:
            self.tapes: list[int] = []

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            tapes = callback.reviver._tapes
            self.tapes.append(0 if tapes is None else len(tapes.training) + len(tapes.evaluation))

    callback, sizes = DeadUnitCallback(reinit=True), Sizes()
    trained(Mortal(mortal=False), callback, sizes, max_epochs=3)
    assert len(events(callback)) == 1
    assert sizes.tapes == [0] * 4 + [1] * 4 + [0] * 4


@pytest.mark.parametrize("config", [AT_VALIDATION, EVERY_TWO_STEPS])
def test_recording_that_fails_costs_the_event_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    def broken(recorder: Recorder, *, training: bool) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(Recorder, "begin", broken)
    callback = DeadUnitCallback(reinit=config)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = trained(Mortal(), callback, max_epochs=3)
    assert trainer.global_step == 12
    assert ["could not be recorded" in str(w.message) for w in told].count(True) == 1
    assert events(callback) == []
    assert callback.report is not None
    assert callback.report.num_dead >= 2


class Replaced(Mortal):
    """Another domain starts with a norm of its own, right after it was due on the old one."""

    def __init__(self) -> None:
        super().__init__(mortal=False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.bn = nn.BatchNorm1d(16)
            kill(self.bn, 5)
            self.trainer.strategy.setup_optimizers(self.trainer)


def test_what_was_recorded_of_a_module_that_was_replaced_is_not_used() -> None:
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained(Replaced(), callback)
    assert ["were replaced" in str(w.message) for w in told].count(True) == 1
    assert callback.reviver is not None
    first, *_ = callback.reviver.events
    assert first.step == 8  # not 4: the next validation has recorded the new one
    assert first.reinitialised == {"relu.bn": [5], "relu.b": [0]}


def test_a_plan_of_a_checkpoint_is_not_written_into_a_module_that_was_replaced(
    tmp_path: Any,
) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trained(Replaced(), DeadUnitCallback(reinit=AT_VALIDATION), keep)
    model, callback = Replaced(), DeadUnitCallback(reinit=AT_VALIDATION)
    trained(model, callback, resume=tmp_path / "epoch=0.ckpt")
    assert callback.reviver is not None
    assert all(event.step > 4 for event in callback.reviver.events)
    assert not any(isinstance(own, Layout) for own in vars(callback.reviver).values())


def test_a_plan_of_a_checkpoint_is_not_written_where_a_parameter_was_replaced(
    tmp_path: Any,
) -> None:
    class Fresh(Mortal):
        def on_train_start(self) -> None:
            self.c.weight = nn.Parameter(torch.randn_like(self.c.weight))
            self.trainer.strategy.setup_optimizers(self.trainer)

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trained(Mortal(), DeadUnitCallback(reinit=AT_VALIDATION), keep)
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Fresh(), callback, resume=tmp_path / "epoch=0.ckpt")
    assert callback.reviver is not None
    assert all(event.step > 4 for event in callback.reviver.events)
    assert callback.reviver.events


class PutsAnAverage(Mortal):
    """Validates with other parameters in the place of its own."""

    def on_validation_epoch_start(self) -> None:
        self.own = self.c
        self.c = copy.deepcopy(self.c)

    def on_validation_epoch_end(self) -> None:
        self.c = self.own


def test_what_validation_always_replaces_has_its_units_refused() -> None:
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(PutsAnAverage(mortal=False), callback, max_epochs=6)
    assert callback.reviver is not None
    first, *_ = callback.reviver.events
    assert "ran other modules" in first.refused["relu.b"][0]


class KeepsState(Mortal):
    """Has a buffer in validation only, which each step replaces."""

    def __init__(self) -> None:
        super().__init__(mortal=False)
        self.register_buffer("state", None)

    def loss(self, batch: list[Tensor]) -> Tensor:
        self.state = torch.zeros(1, 12) if self.state is None else self.state * 0.9
        return super().loss([batch[0] + self.state, batch[1]])

    def on_validation_epoch_end(self) -> None:
        self.state = None


def test_a_buffer_that_each_step_replaces_is_state() -> None:
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(KeepsState(), callback, max_epochs=3)
    assert 1 in events(callback)[0]["relu.bn"]


def _swap_buffer(model: Mortal) -> None:
    model.bn.running_mean = torch.full((16,), 2.0)


def _freshen_head(model: Mortal) -> None:
    model.c = nn.Linear(8, 1)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda model: None, True),
        (lambda model: model.register_module("spare", nn.Dropout()), True),
        (lambda model: model.register_module("head", nn.Linear(16, 2)), False),
        (lambda model: nn.init.ones_(model.c.weight), True),
        (_swap_buffer, True),
        (_freshen_head, False),
        (lambda model: prune.l1_unstructured(model.b, "weight", amount=0.5), False),
        (lambda model: nn.utils.parametrizations.weight_norm(model.b), False),
        (lambda model: setattr(model.bn, "running_mean", None), False),
    ],
    ids=[
        "none",
        "added",
        "new head",
        "trained",
        "buffer",
        "head",
        "pruned",
        "parametrised",
        "no buffer",
    ],
)
def test_a_tape_stands_while_the_model_has_the_same_parts(change: Any, kept: bool) -> None:
    model = Mortal(mortal=False).eval()
    layout, recorder = Layout(model), Recorder(model)
    batch = next(iter(data()))
    with recorder.recording(training=False) as box:
        model.loss(batch)
    assert box.tape is not None
    change(model)
    assert layout.keeps(box.tape, model) is kept
    if kept:  # a replay computes what the model does now

        class Last(Visitor):
            def result(self, key: Any, value: Tensor, read_by: str | None) -> None:
                self.loss = value

        replay(box.tape, last := Last())
        assert torch.equal(last.loss, model.loss(batch))


def test_a_model_that_is_copied_while_recorded_trains_on() -> None:
    class Copies(Mortal):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.copied = [copy.deepcopy(self.a)]
            return super().training_step(batch, batch_idx)

    callback = DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    model = Copies()
    trained(model, callback, max_epochs=2)
    assert events(callback)
    assert model.copied[0](torch.zeros(2, 12)).shape == (2, 16)
