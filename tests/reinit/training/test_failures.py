"""A failure in the middle of an event leaves all as it was, says why, and training goes on."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn, optim

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.reinit.optimizers.adam_steps import StepCorrection
from lightning_deadunits.reinit.training.reviver import Reviver
from tests.mortal import (
    AT_VALIDATION,
    EVERY_TWO_STEPS,
    SCHEDULES,
    Mortal,
    differing,
    events,
    state_of,
    trained,
)


class Everything(Callback):
    """Keeps weights, buffers, gradients and optimizer state at the start of every batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        gradients = {
            f"{name}.grad": p.grad.clone()
            for name, p in pl_module.named_parameters()
            if p.grad is not None
        }
        self.seen.append(state_of(trainer, pl_module) | gradients)


def failing_init(fresh: Tensor, live: Tensor, generator: torch.Generator) -> Tensor:
    if fresh.shape[1] == 16:  # the second layer's: those of the first are drawn by then
        raise ArithmeticError("no weights today")
    return fresh


def misshapen_init(fresh: Tensor, live: Tensor, generator: torch.Generator) -> Tensor:
    return fresh[:, :-1]


class Stubborn(optim.Adam):
    """Has a state that cannot be written to once training is under way."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for p, state in self.state.items():
            if p.dim() == 1 and p.numel() == 8:
                with torch.inference_mode():
                    state["frozen"] = torch.zeros(8)
        return loss


class BreaksAverages(Callback):
    """Keeps averages, one of which cannot be written to."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        average = copy.deepcopy(pl_module)
        with torch.inference_mode():
            average.c.weight = nn.Parameter(average.c.weight.clone(), requires_grad=False)
        self.average_model = average


FAILURES: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "the user's init": (
        "ArithmeticError: no weights today",
        lambda: [Mortal(), ReinitConfig(patience=1, init=failing_init)],
    ),
    "a misshapen init": (
        "Expected `init` to return a tensor of shape",
        lambda: [Mortal(), ReinitConfig(patience=1, init=misshapen_init)],
    ),
    "the optimizer": (
        "Inplace update to inference tensor",
        lambda: [Mortal(lambda p: Stubborn(p, lr=1e-2)), AT_VALIDATION],
    ),
    "an average": (
        "Inplace update to inference tensor",
        lambda: [Mortal(), AT_VALIDATION, BreaksAverages()],
    ),
}


@pytest.mark.parametrize("where", FAILURES)
def test_a_failure_changes_nothing(where: str) -> None:
    reason, make = FAILURES[where]
    model, config, *callbacks = make()
    before, ours, after = Everything(), DeadUnitCallback(reinit=config), Everything()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained(model, *callbacks, before, ours, after, max_epochs=3)
    assert any("not re-initialised at step" in str(w.message) for w in told)
    assert any(reason in str(w.message) for w in told), [str(w.message) for w in told]
    first = 4  # after the first validation
    assert differing(before.seen[first], after.seen[first]) == []
    assert len(after.seen) == 12


class Rows(list[Any]):
    """A container that cannot be made from its items."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        super().__init__([inputs, targets])


def sparse(inputs: Tensor, targets: Tensor) -> list[Tensor]:
    return [inputs.to_sparse(), targets]


@pytest.mark.parametrize("make", [Rows, sparse])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_batches_that_cannot_be_cut_or_rebuilt_serve_as_well(make: Any, schedule: str) -> None:
    class Unusual(Mortal):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return make(*batch)

        def loss(self, batch: Any) -> Tensor:
            return super().loss([batch[0].to_dense(), batch[1]])

    ours = DeadUnitCallback(reinit=SCHEDULES[schedule])
    trainer = trained(Unusual(), ours, max_epochs=3)
    assert trainer.global_step == 12
    assert ours.report is not None
    assert {"relu.bn", "relu.b"} <= set(events(ours)[0])


def test_an_interrupt_amid_an_event_changes_nothing() -> None:
    def interrupting(fresh: Tensor, live: Tensor, generator: torch.Generator) -> Tensor:
        raise KeyboardInterrupt

    class Last(Callback):
        def on_exception(self, trainer: Trainer, pl_module: Any, exception: Any) -> None:
            self.state = state_of(trainer, pl_module)

    before, last = Everything(), Last()
    config = ReinitConfig(patience=1, init=interrupting)
    with pytest.raises(SystemExit):
        trained(Mortal(), before, DeadUnitCallback(reinit=config), last)
    weights = {k: v for k, v in before.seen[-1].items() if not k.endswith(".grad")}
    assert differing(weights, last.state) == []


def test_a_callback_that_was_copied_or_pickled_trains_like_the_original() -> None:
    def run(change: Callable[[Any], Any]) -> dict[str, Tensor]:
        callback = DeadUnitCallback(reinit=AT_VALIDATION)
        trained(Mortal(), callback, max_epochs=2)  # it has a past
        again = change(callback)
        model = Mortal()
        trainer = trained(model, again, max_epochs=3)
        assert len(events(again)) == 2  # of this training: the past is another one's
        return state_of(trainer, model)

    expected = run(lambda callback: callback)
    assert differing(run(copy.deepcopy), expected) == []
    assert differing(run(lambda c: pickle.loads(pickle.dumps(c))), expected) == []


@pytest.mark.parametrize("place", ["before_train_batch", "judge"])
def test_a_failure_that_nobody_foresaw_costs_no_training(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("nobody foresaw this")

    plain, watched = Mortal(), Mortal()
    expected = state_of(trained(plain), plain)
    monkeypatch.setattr(Reviver, place, fails)
    with pytest.warns(UserWarning, match="nobody foresaw this"):
        trainer = trained(watched, DeadUnitCallback(reinit=AT_VALIDATION))
    assert differing(state_of(trainer, watched), expected) == []


def test_copying_a_callback_amid_training_leaves_the_training_alone() -> None:
    class Copies(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            copies.append(copy.deepcopy(trainer.callbacks[0]))

    def run(*more: Callback) -> dict[str, Tensor]:
        model = Mortal()
        trainer = trained(model, DeadUnitCallback(reinit=AT_VALIDATION), *more)
        return state_of(trainer, model)

    copies: list[Any] = []
    assert differing(run(), run(Copies())) == []
    assert copies


def test_two_callbacks_share_a_trainer() -> None:
    first = DeadUnitCallback(exclude="relu.b", reinit=AT_VALIDATION)
    second = DeadUnitCallback(layers="relu.b", reinit=AT_VALIDATION)
    trained(Mortal(), first, second)
    assert len(events(first)) == len(events(second)) == 3
    assert all(len(event) == 1 for event in events(first) + events(second))


@pytest.mark.filterwarnings("error:Dead units were not re-initialised")
def test_an_event_is_not_counted_by_another_callback_whose_window_is_open() -> None:
    first = DeadUnitCallback(exclude="relu.b", reinit=EVERY_TWO_STEPS)
    second = DeadUnitCallback(layers="relu.b", reinit=AT_VALIDATION)
    trained(Mortal(), first, second)
    assert [list(event) for event in events(second)] == [["relu.b"]] * 3
    assert events(first)
    assert all(list(event) == ["relu.bn"] for event in events(first))
    last = (callback.reviver.events[-1].made_by for callback in (first, second))
    made_by = [own[name] for own, name in zip(last, ("relu.bn", "relu.b"), strict=True)]
    assert made_by == [["a.weight", "bn.weight", "bn.bias"], ["b.weight", "b.bias"]]


def test_one_callback_that_resumes_keeps_the_corrections_of_another() -> None:
    model, first = Mortal(), DeadUnitCallback(exclude="relu.b", reinit=AT_VALIDATION)
    second = DeadUnitCallback(layers="relu.b", reinit=AT_VALIDATION)
    trained(model, first, second, max_epochs=3)
    states = first.reviver.state_dict(), second.reviver.state_dict()

    class Load(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            for p in pl_module.parameters():  # as if the optimizer had been resumed
                trainer.optimizers[0].state[p] = {"step": torch.tensor(12.0)} | {
                    key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")
                }
            for callback, state in zip((one, two), states, strict=True):
                callback.reviver.load_state_dict(state)

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            self.corrected = len(StepCorrection.of(trainer.optimizers[0]).fresh)

    one = DeadUnitCallback(exclude="relu.b", reinit=AT_VALIDATION)
    two = DeadUnitCallback(layers="relu.b", reinit=AT_VALIDATION)
    load = Load()
    trained(model, load, one, two, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert load.corrected == 6  # every parameter but the last bias
