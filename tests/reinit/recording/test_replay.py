"""A replay computes what the recorded pass did, bit for bit, and leaves everything as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils._pytree import tree_leaves

from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.reinit.recording import Recorder, Tape
from lightning_deadunits.reinit.recording.layers import names_on
from lightning_deadunits.reinit.recording.replay import Visitor, replay
from lightning_deadunits.scan import call
from tests.zoo import CASES, Case, seeded


class Finals(Visitor):
    """Collects what a replay comes to."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def result(self, key: Any, value: Tensor, read_by: str | None) -> None:
        if read_by is None:
            self.values.append(value)


def finals(tape: Tape) -> list[Tensor]:
    visitor = Finals()
    replay(tape, visitor)
    return visitor.values


def recorded(model: nn.Module, example: Any, training: bool) -> tuple[Tape, list[Tensor]]:
    model.train(training)
    with torch.no_grad(), Recorder(model).recording(training=training) as box:
        output = call(model, example)
    assert box.tape is not None
    return box.tape, [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "inside vmap"], ids=str)
def test_a_replay_returns_what_the_pass_returned(case: Case) -> None:
    seeded()
    model, example = case.build(), case.example()
    for training in (False, True):
        tape, outputs = recorded(model, example, training)
        assert not tape.obstacles
        found = finals(tape)
        for output in outputs:
            assert any(o.shape == output.shape and torch.equal(o, output) for o in found)


def test_a_replay_changes_neither_state_nor_random_numbers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout())
    tape, _ = recorded(net, torch.randn(6, 4), training=True)
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    replay(tape)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_replay_computes_with_the_weights_as_they_are_then() -> None:
    net = nn.Linear(4, 2)
    x = torch.randn(3, 4)
    tape, _ = recorded(net, x, training=False)
    with torch.no_grad():
        net.weight.mul_(2)
        expected = net(x)
    assert torch.equal(finals(tape)[0], expected)


def gan_step(d: nn.Module, g: nn.Module, optimizers: list[Any], x: Tensor) -> None:
    for parameters, sign, optimizer in ((d, 1.0, optimizers[0]), (g, -1.0, optimizers[1])):
        loss = sign * d(g(torch.randn(len(x), 3))).mean() + d(x).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.parameters(), 1.0)
        optimizer.step()


def test_arithmetic_of_optimizers_and_gradients_is_left_out() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"d": nn.Linear(4, 1), "g": nn.Linear(3, 4)})
    optimizers = [
        torch.optim.Adam(model["d"].parameters()),
        torch.optim.Adam(model["g"].parameters()),
    ]
    recorder = Recorder(model)
    with recorder.recording(training=True) as box:
        gan_step(model["d"], model["g"], optimizers, torch.randn(5, 4))
    assert box.tape is not None
    assert not box.tape.obstacles
    names = [c.function.__name__ for c in box.tape.calls]
    assert set(names) <= {"linear", "randn", "mean", "mul", "add", "__rmul__", "rmul"}
    assert names.count("linear") == 6


def test_a_closure_inside_of_an_optimizers_step_is_recorded() -> None:
    net, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).pow(2).mean()
        loss.backward()
        return loss

    with Recorder(net).recording(training=True) as box:
        optimizer.step(closure)
    assert box.tape is not None
    assert [c.function.__name__ for c in box.tape.calls] == ["linear", "pow", "mean"]


def test_no_intermediate_result_is_kept_alive() -> None:
    held: list[int] = []

    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.repeat(1000, 1) * 2).relu().sum(0)

    x = torch.randn(2, 4)
    with torch.no_grad(), Recorder(Big()).recording(training=False) as box:
        out = Big()(x)
        held.append(out.numel())
    assert box.tape is not None
    copies = [leaf for leaf in box.tape.leaves.values() if isinstance(leaf, Tensor)]
    assert sum(copy.nbytes for copy in copies) == x.nbytes


def test_it_records_beside_an_observer_that_counts() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    observer, recorder = Observer(net), Recorder(net)
    recording = recorder.recording(training=False)
    with torch.no_grad(), observer.watching(), observer.one_pass(), recording as box:
        net(x)
    assert box.tape is not None
    assert box.tape.num_units.keys() == set(observer.counts)
    assert names_on([box.tape]) == {"1": 8}
    assert box.tape.modules == {"", "0", "1", "2"}


def test_an_exception_in_the_step_leaves_no_hook_and_no_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    with pytest.raises(RuntimeError), Recorder(net).recording(training=False):
        net(torch.randn(3, 5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.overrides._get_current_function_mode() is None
    assert not _global_optimizer_pre_hooks
