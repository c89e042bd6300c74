"""A copy that follows what is re-initialised gets the same edits; a snapshot stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback
from tests.mortal import AT_VALIDATION, EVERY_TWO_STEPS, differing, events, state_of, trained

DEAD = [1, 2]


def critic(seed: int = 0) -> nn.Sequential:
    """A network with two units that are dead for every input, and have outgoing weights."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[0].weight[DEAD], net[0].bias[DEAD] = 0.0, -1.0
        net[2].weight[:, DEAD] = 1.0
    return net


def lerped(target: nn.Module, own: nn.Module) -> None:
    for p, q in zip(target.parameters(), own.parameters(), strict=True):
        p.data.lerp_(q.data, 0.05)


def copied_mixture(target: nn.Module, own: nn.Module) -> None:
    for p, q in zip(target.parameters(), own.parameters(), strict=True):
        p.data.copy_(0.95 * p.data + 0.05 * q.data)


def assigned(target: nn.Module, own: nn.Module) -> None:
    for p, q in zip(target.parameters(), own.parameters(), strict=True):
        p.data = 0.95 * p.data + 0.05 * q.data


def loaded_mixture(target: nn.Module, own: nn.Module) -> None:
    theirs = own.state_dict()
    target.load_state_dict({k: 0.95 * v + 0.05 * theirs[k] for k, v in target.state_dict().items()})


class TwoCritics(LightningModule):
    """Two critics, each with a target that follows it.

    Args:
        update: Has a target follow.
        in_step: Whether that happens in the step, rather than in a hook after it.
        lr: Of the critics.
    """

    def __init__(self, update: Callable[..., None], in_step: bool, lr: float) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.update, self.in_step, self.lr = update, in_step, lr
        self.critics = nn.ModuleList([critic(0), critic(1)])
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)

    def follow(self) -> None:
        with torch.no_grad():
            for target, own in zip(self.targets, self.critics, strict=True):
                self.update(target, own)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.in_step:
            self.follow()
        goal = torch.minimum(*(target(batch[0]) for target in self.targets)).detach()
        return sum((own(batch[0]) - 0.9 * goal - batch[1]).pow(2).mean() for own in self.critics)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.in_step:
            self.follow()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.critics.parameters(), self.lr)


class AroundEvents(DeadUnitCallback):
    """Keeps what the targets compute before and after each event, and their weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(verbose=False, **options)
        self.outputs: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *args: Any) -> None:
        before = len(self.reviver.events) if self.reviver else 0
        with torch.no_grad():
            outputs = [torch.cat([t(batch[0]) for t in pl_module.targets])]
            super().on_train_batch_start(trainer, pl_module, batch, *args)
            outputs.append(torch.cat([t(batch[0]) for t in pl_module.targets]))
        if self.reviver and len(self.reviver.events) > before:
            self.outputs.append((outputs[0], outputs[1]))
            for target, own in zip(pl_module.targets, pl_module.critics, strict=True):
                assert torch.equal(target[0].weight[DEAD], own[0].weight[DEAD])
                assert target[2].weight[:, DEAD].count_nonzero() == 0


BOTH = [f"{name}.{number}.1" for name in ("critics", "targets") for number in range(2)]
IN_STEP = [(each, True) for each in (lerped, copied_mixture, assigned)]
IN_HOOK = [(each, False) for each in (lerped, copied_mixture, assigned, loaded_mixture)]


@pytest.mark.parametrize(("update", "in_step"), IN_STEP + IN_HOOK)
def test_targets_get_the_edits_of_their_own_critic(update: Any, in_step: bool) -> None:
    ours = AroundEvents(reinit=AT_VALIDATION)
    trained(TwoCritics(update, in_step, 1e-3), ours, max_epochs=3)
    assert events(ours)[0] == dict.fromkeys(BOTH, DEAD)
    for before, after in ours.outputs:
        assert torch.equal(before, after)


def test_a_target_stays_as_it_is_where_nothing_is_learnt() -> None:
    model = TwoCritics(lerped, True, 0.0)
    x = torch.randn(16, 12)
    with torch.no_grad():
        before = [target(x) for target in model.targets]
    trained(model, AroundEvents(reinit=AT_VALIDATION), max_epochs=8)
    with torch.no_grad():
        after = [target(x) for target in model.targets]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0.0)


class GivesAll(TwoCritics):
    """Gives the optimizer its targets, too, which never get a gradient."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", sum(own(batch[0]).mean() for own in self.critics))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


@pytest.mark.parametrize(("update", "in_step"), [(assigned, True), (lerped, False)])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_a_target_may_be_among_what_the_optimizer_has(
    frozen: bool, update: Any, in_step: bool
) -> None:
    model, ours = GivesAll(update, in_step, 1e-3), AroundEvents(reinit=AT_VALIDATION)
    model.targets.requires_grad_(not frozen)
    trained(model, ours, max_epochs=3, accumulate_grad_batches=2)
    assert events(ours)[0] == {"critics.0.1": DEAD, "critics.1.1": DEAD}
    for before, after in ours.outputs:
        assert torch.equal(before, after)


class Untouched(DeadUnitCallback):
    """Holds that no event changes a part of the module."""

    def __init__(self, part: str, **options: Any) -> None:
        super().__init__(**options)
        self.part = part

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        part = getattr(pl_module, self.part)
        before = copy.deepcopy(part.state_dict())
        super().on_train_batch_start(trainer, pl_module, *args)
        assert differing(before, part.state_dict()) == []


@pytest.mark.parametrize(
    "raw", [False, True], ids=["lightning's optimizer", "the optimizer itself"]
)
def test_networks_that_are_trained_in_turns_follow_nobody(raw: bool) -> None:
    class InTurns(LightningModule):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.one, self.other = critic(0), critic(1)
            with torch.no_grad():
                self.other[0].bias[DEAD] = 1.0

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=not raw)
            for net in (self.one, self.other) if batch_idx else (self.one,):
                (net(batch[0]) - batch[1]).pow(2).mean().backward()
                optimizer.step()
                optimizer.zero_grad()  # no gradient is left when the batch has ended

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.one(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-2)

    ours = Untouched("other", reinit=AT_VALIDATION, verbose=False)
    trained(InTurns(), ours, max_epochs=4)
    assert events(ours)[0]["one.1"] == DEAD


def hard(target: nn.Module, own: nn.Module) -> None:
    target.load_state_dict(own.state_dict())


@pytest.mark.parametrize("in_step", [True, False], ids=["in the step", "in a hook"])
def test_a_copy_that_is_taken_from_time_to_time_stays_as_it_is(in_step: bool) -> None:
    class Often(TwoCritics):
        def follow(self) -> None:
            if self.trainer.training and self.global_step % 3 == 2:
                super().follow()

    ours = Untouched("targets", reinit=EVERY_TWO_STEPS, verbose=False)
    trained(Often(hard, in_step, 1e-2), ours, max_epochs=4)
    assert events(ours)


def test_copies_in_lists_and_callbacks_are_found_too() -> None:
    class Teacher(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.model = copy.deepcopy(pl_module.critics[0])

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            with torch.no_grad():
                lerped(self.model, pl_module.critics[0])

    class Hidden(TwoCritics):
        def __init__(self) -> None:
            super().__init__(lerped, False, 1e-3)
            targets = list(self.targets)
            del self.targets
            self.targets = targets

    teacher, ours = Teacher(), AroundEvents(reinit=AT_VALIDATION)
    model = Hidden()
    trained(model, teacher, ours, max_epochs=3)
    assert "critics.0.1" in events(ours)[0]
    for before, after in ours.outputs:
        assert torch.equal(before, after)
    assert teacher.model[2].weight[:, DEAD].abs().max() < 0.1  # it was 1


@pytest.mark.parametrize("kind", [TwoCritics, GivesAll])
def test_a_resumed_follower_equals_the_uninterrupted_one(
    kind: type[TwoCritics], tmp_path: Path
) -> None:
    def run(*more: Callback, **options: Any) -> dict[str, Tensor]:
        model, ours = kind(lerped, False, 1e-3), AroundEvents(reinit=AT_VALIDATION)
        model.targets.requires_grad_(kind is GivesAll)
        trainer = trained(model, ours, *more, max_epochs=5, **options)
        return state_of(trainer, model)

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = run(keep, default_root_dir=tmp_path)
    again = run(resume=tmp_path / "epoch=0.ckpt", default_root_dir=tmp_path)
    assert differing(whole, again) == []


def test_a_layer_that_has_no_shape_yet_costs_nothing() -> None:
    class Lazy(TwoCritics):
        def __init__(self) -> None:
            super().__init__(lerped, False, 1e-3)
            self.average = copy.deepcopy(self.critics)  # one by its name
            self.unused = nn.LazyLinear(3)

    ours = AroundEvents(reinit=AT_VALIDATION)
    trained(Lazy(), ours, max_epochs=2)
    assert events(ours)[0] == dict.fromkeys(BOTH, DEAD)
