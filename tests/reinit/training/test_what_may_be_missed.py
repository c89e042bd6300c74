"""Raw parameters, branches and hooks by which a unit may be used are noticed, or cost nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import AT_VALIDATION, events, trained

DEAD = [1, 2]
EVERY_SIX_STEPS = ReinitConfig(patience=1, every_n_train_steps=6)
X = torch.randn(72, 6, generator=torch.Generator().manual_seed(0))


def killed() -> nn.Linear:
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight[DEAD], layer.bias[DEAD] = 0.0, -1.0
    return layer


def tasks() -> DataLoader[Any]:
    """Batches of 12, one of three tasks each."""
    return DataLoader([(x, torch.tensor(k // 12 % 3)) for k, x in enumerate(X)], 12)


class Base(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.a = killed()

    def h(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))

    def outputs(self) -> list[Tensor]:
        """What it computes, in every way, of no batch of the training."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Checked(DeadUnitCallback):
    """Holds that an event changes nothing that the module computes."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        with torch.no_grad():
            before = pl_module.outputs()
            super().on_train_batch_start(trainer, pl_module, *args)
            after = pl_module.outputs()
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one, other)


class OneOfEach(Base):
    """A raw parameter per task, of which every batch uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(3)])

    def out(self, x: Tensor, task: int) -> Tensor:
        return self.h(x) @ self.w[task]

    def outputs(self) -> list[Tensor]:
        return [F.relu(F.linear(X[:9], self.a.weight, self.a.bias)) @ w for w in self.w]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.out(batch[0], int(batch[1][0])) - batch[0][:, 0]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))


class Stacked(OneOfEach):
    """The same, in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 8))


class Selected(Stacked):
    def out(self, x: Tensor, task: int) -> Tensor:
        return self.h(x) @ self.w.select(0, task)


class WithShifts(OneOfEach):
    """Heads with their shifts in one parameter: that a shift is added says nothing of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 9))

    def out(self, x: Tensor, task: int) -> Tensor:
        return self.h(x) @ self.w[task][:8] + self.w[task][8]

    def outputs(self) -> list[Tensor]:
        hidden = F.relu(F.linear(X[:9], self.a.weight, self.a.bias))
        return [hidden @ w[:8] + w[8] for w in self.w]


@pytest.mark.parametrize("make", [OneOfEach, Stacked, Selected, WithShifts])
@pytest.mark.parametrize("config", [AT_VALIDATION, EVERY_SIX_STEPS])
def test_a_parameter_or_a_row_per_task_is_silenced_for_every_task(make: Any, config: Any) -> None:
    ours = Checked(reinit=config, verbose=False)
    trained(make(), ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert events(ours)[0] == {"relu": DEAD}


PARTS: dict[str, tuple[Callable[[Tensor, Any], Tensor], tuple[int, ...]]] = {
    "a number that a tensor holds": (lambda w, k: w[k], (3, 8)),
    "an integer of NumPy": (lambda w, k: w[np.int64(int(k))], (3, 8)),
    "a column": (lambda w, k: w[:, int(k)], (8, 3)),
    "select along the second axis": (lambda w, k: w.select(1, int(k)), (8, 3)),
    "select by keywords": (lambda w, k: torch.select(w, dim=0, index=int(k)), (3, 8)),
    "a row of its transpose": (lambda w, k: w.t()[int(k)], (8, 3)),
    "a row of its view": (lambda w, k: w.view(3, 4, 8)[int(k), 1], (12, 8)),
    "a slice": (lambda w, k: w[4 * int(k) : 4 * int(k) + 4][1], (12, 8)),
    "chunk": (lambda w, k: w.chunk(3)[int(k)][1], (12, 8)),
    "split": (lambda w, k: w.split(4)[int(k)][1], (12, 8)),
    "narrow": (lambda w, k: w.narrow(0, 4 * int(k), 4)[1], (12, 8)),
    "unbind": (lambda w, k: w.unbind()[int(k)], (3, 8)),
}


class Part(OneOfEach):
    """A part of one parameter per task, cut from it in some way."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.cut, shape = PARTS[part]
        self.w = nn.Parameter(torch.randn(shape))

    def outputs(self) -> list[Tensor]:
        h = F.relu(F.linear(X[:9], self.a.weight, self.a.bias))
        return [h @ self.cut(self.w, torch.tensor(task)) for task in range(3)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        out = self.h(batch[0]) @ self.cut(self.w, batch[1][0])
        return (out - batch[0][:, 0]).pow(2).mean()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_parameter_per_task_is_silenced_for_every_task(part: str) -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(Part(part), ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert events(ours)[0] == {"relu": DEAD}


class Routed(Base):
    """An expert per task; all of them run, those without a token on no value."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))

    def outputs(self) -> list[Tensor]:
        h = F.relu(F.linear(X[:9], self.a.weight, self.a.bias))
        return [F.linear(h, own.weight, own.bias) for own in self.experts]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        h, task = self.h(batch[0]), batch[1]
        out = h.new_zeros(len(h), 1)
        for number, expert in enumerate(self.experts):
            rows = (task == number).nonzero().flatten()
            out = out.index_add(0, rows, expert(h[rows]))
        return (out[:, 0] - batch[0][:, 0]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))


def test_a_module_that_ran_on_no_value_is_recorded_where_it_runs_on_some() -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(Routed(), ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert events(ours)[0] == {"relu": DEAD}


class Modalities(Base):
    """Two modalities by one activation, each of which is missing in some batches."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.act, self.o = nn.Linear(6, 8), nn.ReLU(), nn.Linear(16, 1)

    def outputs(self) -> list[Tensor]:
        a, b = (F.relu(F.linear(X[:9], own.weight, own.bias)) for own in (self.a, self.b))
        return [F.linear(torch.cat([a, b], 1), self.o.weight, self.o.bias)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, task = batch[0], int(batch[1][0])
        none = x.new_zeros(len(x), 8)
        a = self.act(self.a(x)) if task != 1 else none
        b = self.act(self.b(x)) if task != 0 else none
        return (self.o(torch.cat([a, b], 1))[:, 0] - x[:, 0]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))


def test_another_layer_of_the_activation_is_not_taken_for_one_that_does_not_run() -> None:
    config = dataclasses.replace(AT_VALIDATION, exclude="*act.b")
    ours, net = Checked(reinit=config, verbose=False), Modalities()
    with torch.no_grad():
        net.b.weight[DEAD], net.b.bias[DEAD] = 0.0, -1.0
    trained(net, ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert events(ours)[0] == {"act.a": DEAD}
    assert not net.b.weight[DEAD].any()


class Parametrised(Base):
    """A parametrised layer far from the units, whose calls are made by its modules' modules."""

    def __init__(self, how: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.first, self.o = how(nn.Linear(6, 6)), nn.Linear(8, 1)

    def outputs(self) -> list[Tensor]:
        h = F.relu(F.linear(X[:9], self.a.weight, self.a.bias))
        return [F.linear(h, self.o.weight, self.o.bias)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.o(self.h(self.first(batch[0])))[:, 0] - batch[0][:, 0]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_layer_elsewhere_costs_nothing(how: str) -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    net = Parametrised(getattr(parametrizations, how))
    trained(net, ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert events(ours)[0] == {"relu": DEAD}


class Seldom(Base):
    """A second head that runs in every so many validations, not in their first batch."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.head, self.seldom = nn.Linear(8, 1), nn.Linear(8, 2)

    def outputs(self) -> list[Tensor]:
        hidden = F.relu(F.linear(X[:9], self.a.weight, self.a.bias))
        return [F.linear(hidden, own.weight, own.bias) for own in (self.head, self.seldom)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.head(self.h(batch[0])) - batch[0][:, :1]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        hidden = self.h(batch[0])
        self.log("loss", self.head(hidden).sum())
        if self.current_epoch % self.every == 0 and batch_idx == 3:
            self.log("seldom", self.seldom(hidden).sum())


def test_a_head_that_runs_seldom_is_waited_for() -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(Seldom(3), ours, max_epochs=10, loaders=(tasks(), tasks()))
    assert ours.reviver is not None
    first, second = ours.reviver.events
    assert "seldom ran in batches that are not recorded" in first.refused["relu"][1]
    assert second.reinitialised == {"relu": DEAD}  # where it ran again, and was recorded


def test_a_head_that_never_runs_again_is_given_up_and_named() -> None:
    ours = DeadUnitCallback(reinit=AT_VALIDATION, verbose=False)
    trained(Seldom(99), ours, max_epochs=18, loaders=(tasks(), tasks()))
    assert ours.reviver is not None
    revived = [event for event in ours.reviver.events if event.reinitialised]
    assert any("seldom ran before, and in no batch" in note for note in revived[0].notes)


class NullEmbedding(Base):
    """Every second batch has an embedding in the place of what the units say.

    Args:
        last: Whether gradients are dropped after the step, so that none are left at the end.
    """

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.automatic_optimization, self.last = False, last
        self.o, self.null = nn.Linear(8, 1), nn.Parameter(torch.rand(8))

    def outputs(self) -> list[Tensor]:
        h = F.relu(F.linear(X, self.a.weight, self.a.bias))
        given = (h, self.null)
        return [F.linear(each, self.o.weight, self.o.bias) for each in given]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        h = self.null.expand(12, 8) if batch_idx % 2 else self.h(batch[0])
        loss = (self.o(h)[:, 0] - batch[1]).pow(2).mean()
        if not self.last:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.last:
            optimizer.zero_grad()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.o(self.h(batch[0])).mean())


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_branch_of_raw_parameters_is_noticed_whenever_gradients_are_dropped(last: bool) -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(NullEmbedding(last), ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert ours.reviver is not None
    reasons = {why for e in ours.reviver.events for why in e.refused["relu"].values()}
    assert any("o.weight is used more than once" in why for why in reasons)


class Sampled(Base):
    """Samples an average at the end of validation, by itself or from what the trunk says.

    Args:
        trunk: Whether the trunk runs there, too.
    """

    def __init__(self, trunk: bool) -> None:
        super().__init__()
        self.o, self.trunk = nn.Linear(8, 1), trunk
        self.probe = nn.Linear(8 if trunk else 6, 2).requires_grad_(False)

    def outputs(self) -> list[Tensor]:
        h = F.relu(F.linear(X, self.a.weight, self.a.bias))
        return [F.linear(h, self.o.weight, self.o.bias)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.o(self.h(batch[0]))[:, 0] - batch[1]).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    def on_validation_epoch_end(self) -> None:
        self.probe(self.h(X) if self.trunk else X)


def test_a_module_that_runs_in_a_hook_by_itself_costs_nothing() -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(Sampled(trunk=False), ours, max_epochs=2, loaders=(tasks(), tasks()))
    assert events(ours) == [{"relu": DEAD}]


def test_a_module_that_runs_in_a_hook_on_what_is_recorded_has_units_refused() -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(Sampled(trunk=True), ours, max_epochs=2, loaders=(tasks(), tasks()))
    assert ours.reviver is not None
    assert {why for e in ours.reviver.events for why in e.refused["relu"].values()} == {
        "probe (in a hook) ran in batches that are not recorded, and may use it"
    }


class Keeps(Base):
    """What a unit says outlives the step with its graph, in one of the ways that people do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.o = how, nn.Linear(8, 1)
        self.bank: list[dict[str, Tensor]] = []
        self.feature: Tensor | None = None
        if "probe" in how:
            self.probe = nn.Linear(8, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        h = self.h(batch[0])
        more: Any = 0.0
        if self.how == "in a container":
            self.bank = [{"h": h}]
        elif self.how == "as an attribute":
            self.feature = h
        elif self.how == "detached, in a list of nobody's":
            SEEN.append(h.detach() * 1)
        elif self.how == "detached, as an attribute until the gradient is there":
            self.feature = h.detach() * 1
        elif self.how == "read by a probe, detached":
            more = self.probe(h.detach() * 1).mean()
        elif self.how == "read by a probe, without gradients":
            with torch.no_grad():
                h_again = self.h(batch[0])
            more = self.probe(h_again).mean()
        loss = (self.o(h)[:, 0] - batch[1]).pow(2).mean() + more
        return {"loss": loss, "h": [h]} if self.how == "returned" else loss

    def h(self, x: Tensor) -> Tensor:
        if self.how == "masked by floats":
            return (z := self.a(x)) * (z > 0).float()
        return super().h(x)

    def on_after_backward(self) -> None:
        if self.how.endswith("until the gradient is there"):
            self.feature = None

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.o(self.h(batch[0])).mean())


SEEN: list[Tensor] = []


@pytest.mark.parametrize(
    "how",
    [
        *("returned", "as an attribute", "in a container", "detached, in a list of nobody's"),
        "detached, as an attribute until the gradient is there",
    ],
)
def test_what_outlives_the_step_with_its_graph_is_a_result(how: str) -> None:
    ours = DeadUnitCallback(reinit=AT_VALIDATION, verbose=False)
    trained(Keeps(how), ours, max_epochs=2, loaders=(tasks(), tasks()))
    assert ours.reviver is not None
    assert {why for e in ours.reviver.events for why in e.refused["relu"].values()} == {
        "the model's output depends on it without a layer in between, or what is logged or "
        "kept does"
    }


@pytest.mark.parametrize(
    "how",
    [
        *("not at all", "read by a probe, detached", "read by a probe, without gradients"),
        "masked by floats",
    ],
)
def test_what_autograd_alone_holds_is_none(how: str) -> None:
    ours = DeadUnitCallback(reinit=AT_VALIDATION, verbose=False)
    trained(Keeps(how), ours, max_epochs=2, loaders=(tasks(), tasks()))
    assert [list(event.values()) for event in events(ours)] == [[DEAD]]


def fits(model: LightningModule, *callbacks: Any, more: int) -> Iterator[Any]:
    trainer = trained(model, *callbacks, max_epochs=1, loaders=(tasks(), tasks()))
    yield trainer
    trainer.fit_loop.max_epochs = 1 + more
    trainer.fit(model, tasks(), tasks())
    yield trainer


def test_what_is_due_at_the_end_of_a_fit_is_done_after_the_next_validation() -> None:
    ours = DeadUnitCallback(reinit=AT_VALIDATION, verbose=False)
    first, second = fits(Keeps("not at all"), ours, more=2)
    assert first is second
    assert ours.reviver is not None
    assert [(e.reinitialised, e.refused) for e in ours.reviver.events] == [({"relu": DEAD}, {})]


class Sharpness(Keeps):
    """Steps by hand to where the loss is largest, and back (SAM, Foret et al. 2021)."""

    def __init__(self) -> None:
        super().__init__("not at all")
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        parameters = list(self.parameters())
        with torch.no_grad():
            away = [0.05 * p.grad / (p.grad.norm() + 1e-9) for p in parameters]
            for parameter, distance in zip(parameters, away, strict=True):
                parameter.add_(distance)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        with torch.no_grad():
            for parameter, distance in zip(parameters, away, strict=True):
                parameter.sub_(distance)
        optimizer.step()


def test_steps_by_hand_are_left_out_as_those_of_an_optimizer_are() -> None:
    ours = DeadUnitCallback(reinit=AT_VALIDATION, verbose=False)
    trained(Sharpness(), ours, max_epochs=2, loaders=(tasks(), tasks()))
    assert events(ours) == [{"relu": DEAD}]


class Rectified(nn.Module):
    """A network that calls its activation itself."""

    def __init__(self, first: nn.Linear) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class Composing(Base):
    """Validates a network as a whole, and composes its layers itself where it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Rectified(self.a)

    def outputs(self) -> list[Tensor]:
        return [self.net(X)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net.last(F.relu(self.net.first(batch[0])))[:, 0] - 1).pow(2).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.net(batch[0]).mean())


def test_one_activation_in_two_modules_is_one_by_its_weights() -> None:
    ours = Checked(reinit=AT_VALIDATION, verbose=False)
    trained(Composing(), ours, max_epochs=3, loaders=(tasks(), tasks()))
    assert events(ours)[0] == {"net.relu": DEAD}
