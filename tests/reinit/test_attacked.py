"""What an attack on re-initialisation has found: done wrongly, or refused for no reason."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, ReinitConfig, reinit_dead_units
from tests.mortal import EVERY_TWO_STEPS, trained


def head(inputs: int = 12) -> nn.Sequential:
    """A network whose first two hidden units are dead."""
    net = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[0].bias[:2] = -100.0
    return net


class Learner(LightningModule):
    """Learns something by one network."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.net = head() if net is None else net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-2)


def lerped(target: list[nn.Parameter], own: list[nn.Parameter]) -> None:
    for one, other in zip(target, own, strict=True):
        one.lerp_(other, 0.01)


def lerped_at_once(target: list[nn.Parameter], own: list[nn.Parameter]) -> None:
    torch._foreach_lerp_(target, own, 0.01)


def set_as_data(target: list[nn.Parameter], own: list[nn.Parameter]) -> None:
    for one, other in zip(target, own, strict=True):
        one.data = one.data * 0.99 + other.data * 0.01


def clamped(target: list[nn.Parameter], own: list[nn.Parameter]) -> None:
    for one in own:
        one.clamp_(-200.0, 200.0)


def clamped_data(target: list[nn.Parameter], own: list[nn.Parameter]) -> None:
    for one in own:
        one.data.clamp_(-200.0, 200.0)


class Follower(Learner):
    """Learns from a copy of its network as well, and writes weights in its step.

    Args:
        write: Given the copy's parameters and the network's own, writes to either.
    """

    def __init__(self, write: Callable[..., None]) -> None:
        super().__init__()
        self.target, self.write = copy.deepcopy(self.net).requires_grad_(False), write

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.write(list(self.target.parameters()), list(self.net.parameters()))
            wanted = self.target(batch[0])
        return super().training_step([batch[0], wanted + batch[1]], batch_idx)


def test_a_replay_writes_no_parameter_by_its_data() -> None:
    dry = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=2, dry_run=True))
    without, watched = Follower(set_as_data), Follower(set_as_data)
    trained(without, Callback(), max_epochs=2)
    trained(watched, dry, max_epochs=2)
    assert dry.reviver is not None
    assert dry.reviver.events
    for (name, own), other in zip(without.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(own, other), name


class Branches(nn.Module):
    """Two rectified branches that are added up; unit 1 of the other one is quiet here."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 64), nn.Linear(5, 64), nn.Linear(64, 1)
        with torch.no_grad():
            self.a.bias[1] = -100.0
            self.b.weight[1] = 0.0
            self.b.weight[1, 4], self.b.bias[1] = 25.0, -20.0

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)) + torch.relu(self.b(x)))


def test_a_unit_is_refused_beside_one_that_is_quiet_on_the_recorded_batch_only() -> None:
    torch.manual_seed(0)
    model, quiet = Branches(), torch.randn(8, 5)
    quiet[:, 4] = 0.0
    loud = quiet.clone()
    loud[:, 4] = 1.0
    before = model(loud)
    report = reinit_dead_units(model, {"relu.a": [1]}, quiet, optimizers=None)
    assert "together with" in report.refused["relu.a"][1]
    assert torch.equal(model(loud), before)


def written(h: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    h = h.clone()
    h[mask[:, 0]] = token
    return h


class Masked(nn.Module):
    """Puts something else in the place of what a mask says, which may be empty."""

    def __init__(self, put: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.o, self.put = nn.Linear(5, 8), nn.Linear(8, 3), put
        self.token = nn.Parameter(torch.ones(8))
        with torch.no_grad():
            self.a.bias[1] = -100.0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.o(self.put(torch.relu(self.a(x)), mask, self.token))


@pytest.mark.parametrize(
    ("put", "allowed"),
    [
        (lambda h, mask, token: torch.where(mask, token, h), False),
        (lambda h, mask, token: h.masked_fill(mask, 1.0), False),
        (lambda h, mask, token: h.masked_fill(mask, 0.0), True),
        (lambda h, mask, token: h.masked_fill(mask=mask, value=1.0), False),
        (written, False),
        (lambda h, mask, token: written(h, mask, token * 0.0), True),
    ],
    ids=["a token", "ones", "zeros", "ones by keyword", "written", "zeros written"],
)
def test_a_mask_may_be_another_one_on_the_next_batch(put: Any, allowed: bool) -> None:
    torch.manual_seed(0)
    model, x = Masked(put), torch.randn(8, 5)
    none, some = torch.zeros(8, 1, dtype=torch.bool), torch.arange(8)[:, None] < 3
    before = model(x, some)
    report = reinit_dead_units(model, {"relu": [1]}, (x, none), optimizers=None)
    assert report.reinitialised == ({"relu": [1]} if allowed else {}), str(report)
    assert torch.equal(model(x, some), before)


@pytest.mark.parametrize("wrap", [torch.compile, None], ids=["compiled", "an odd key"])
def test_a_module_that_has_another_name_on_the_tape_is_recorded(wrap: Any) -> None:
    parts = nn.ModuleDict({"user id": head()})
    if wrap is not None:
        parts = nn.ModuleDict({"c": wrap(head(), backend="eager")})

    class Wrapped(Learner):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            (part,) = self.net.values()
            return (part(batch[0]) - batch[1]).pow(2).mean()

    callback = DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(Wrapped(parts), callback, max_epochs=2)
    assert callback.reviver is not None
    first, *_ = callback.reviver.events
    assert list(first.reinitialised.values()) == [[0, 1]], str(first)


@pytest.mark.parametrize(
    "made",
    [
        lambda x: torch.tensor(x.tolist()),
        lambda x: torch.as_tensor(x.numpy()),
        lambda x: torch.linspace(0, 1, 40).view(8, 5),
    ],
    ids=["a list", "an array", "a grid"],
)
def test_what_a_step_makes_its_inputs_of_is_data(made: Callable[[Tensor], Tensor]) -> None:
    class Making(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = head(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(made(x))

    torch.manual_seed(0)
    report = reinit_dead_units(Making(), {"net.1": [1]}, torch.randn(8, 5), optimizers=None)
    assert report.reinitialised == {"net.1": [1]}, str(report)


def test_a_nested_tensor_in_the_batch_costs_nothing() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = head(5)

        def forward(self, batch: Tensor) -> Tensor:
            return self.net(torch.cat(batch.unbind()))

    torch.manual_seed(0)
    batch = torch.nested.nested_tensor([torch.randn(3, 5), torch.randn(2, 5)])
    report = reinit_dead_units(Nested(), {"net.1": [1]}, batch, optimizers=None)
    assert report.reinitialised == {"net.1": [1]}, str(report)


@pytest.mark.parametrize("write", [lerped, lerped_at_once, set_as_data, clamped, clamped_data])
def test_a_step_that_writes_weights_itself_costs_nothing(write: Callable[..., None]) -> None:
    """Grill et al., 2020 (BYOL): a target that follows; Arjovsky et al., 2017 (WGAN): clipping."""

    callback = DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(Follower(write), callback, max_epochs=2)
    assert callback.reviver is not None
    first, *_ = callback.reviver.events
    follows = write in (lerped, lerped_at_once, set_as_data)
    revived = ["net.1", "target.1"] if follows else ["net.1"]
    assert first.reinitialised == {layer: [0, 1] for layer in revived}, str(first)
    if follows:
        assert first.made_by["target.1"] == ["target.0.weight", "target.0.bias"]
        assert first.read_by["target.1"] == ["target.2.weight"]
    else:
        assert set(first.refused["target.1"].values()) == {"target.2.weight is frozen"}


def test_a_scripted_module_costs_only_what_flows_into_it() -> None:
    class Scripted(Learner):
        def __init__(self) -> None:
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self.augment = torch.jit.script(nn.Sequential(nn.Linear(12, 12)))
            self.early, self.late = head(), head()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            wide = self.augment(batch[0] + self.early(batch[0]))
            return (self.late(wide) - batch[1]).pow(2).mean()

    callback = DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(Scripted(), callback, max_epochs=2)
    assert callback.reviver is not None
    first, *_ = callback.reviver.events
    assert first.reinitialised == {"late.1": [0, 1]}, str(first)
    assert "scripted module" in first.refused["early.1"][0]


def test_an_activation_that_is_written_into_place_is_revived() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = head(5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.net[0](x)
            hidden[hidden < 0] = 0.0
            return self.net[2](hidden)

    torch.manual_seed(0)
    model, x = Net(), torch.randn(8, 5)
    before = model(x)
    report = reinit_dead_units(model, {"setitem": [0, 1]}, x, optimizers=None)
    assert report.reinitialised == {"setitem": [0, 1]}, str(report)
    assert torch.equal(model(x), before)


class Weighted(nn.Module):
    """Kendall et al., "Multi-Task Learning Using Uncertainty", 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = head(5), nn.Linear(8, 1)
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[1](self.net[0](x))
        losses = [self.net[2](hidden).pow(2).mean(), self.other(hidden).abs().mean()]
        weights = self.log_variance
        return sum(torch.exp(-weights[i]) * own + weights[i] for i, own in enumerate(losses))


def test_losses_that_are_weighted_by_one_vector_steer_nothing() -> None:
    torch.manual_seed(0)
    model, x = Weighted(), torch.randn(8, 5)
    before = model(x)
    report = reinit_dead_units(model, {"net.1": [0, 1]}, x, optimizers=None)
    assert report.reinitialised == {"net.1": [0, 1]}, str(report)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8, elementwise_affine=False), nn.GroupNorm(2, 8)])
def test_a_norm_without_weights_in_one_branch_is_not_what_makes_the_unit(norm: Any) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.branch, self.norm = head(5), nn.Linear(5, 8), copy.deepcopy(norm)
            if isinstance(self.norm, nn.GroupNorm):
                self.norm.weight = self.norm.bias = None

        def forward(self, x: Tensor) -> Tensor:
            return self.net[2](self.net[1](self.net[0](x) + self.norm(self.branch(x))))

    torch.manual_seed(0)
    model, x = Branches(), torch.randn(8, 5)
    report = reinit_dead_units(model, {"net.1": [0, 1]}, x, optimizers=None)
    assert report.reinitialised == {"net.1": [0, 1]}, str(report)
    assert report.made_by["net.1"] == ["net.0.weight", "net.0.bias"]


@pytest.mark.parametrize(
    "view", [lambda w: w[None], lambda w: w[:, :], lambda w: w[: len(w)]], ids=["None", "::", ":T"]
)
def test_a_parameter_that_is_used_whole_by_way_of_an_index_was_used(view: Any) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.positions = head(5), nn.Parameter(torch.randn(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * view(self.positions))

    model, x = Positions(), torch.randn(8, 3, 5)
    report = reinit_dead_units(model, {"net.1": [0, 1]}, x, optimizers=None)
    assert report.reinitialised == {"net.1": [0, 1]}, str(report)
    assert report.notes == []


def test_positions_of_longer_sequences_may_use_no_unit() -> None:
    class Longer(Learner):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(64, 12))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x = batch[0][: 4 + batch_idx * 4]
            loss = self.net(x + self.positions[: len(x)]) - batch[1][: len(x)]
            return loss.pow(2).mean()

    callback = DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(Longer(), callback, max_epochs=2)
    assert callback.reviver is not None
    first, *_ = callback.reviver.events
    assert (first.step, first.reinitialised) == (2, {"net.1": [0, 1]}), str(first)
