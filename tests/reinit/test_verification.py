"""What tracing may get wrong is caught at the end, and taken back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_deadunits import ReinitConfig, reinit_dead_units
from lightning_deadunits.reinit import eligibility, revive, weights
from lightning_deadunits.reinit.dataflow import trace as tracing
from lightning_deadunits.reinit.dataflow.trace import Trace
from lightning_deadunits.reinit.ops.operation import Operation
from lightning_deadunits.reinit.surgery import surgeon
from lightning_deadunits.reinit.surgery.verification import Settled
from tests.zoo import Net, ResNet, conv, kill
from tests.zoo.parts import raw


def network() -> tuple[nn.Module, torch.Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.a(x)))
        return self.b(x) + self.c(x)

    net = Net(forward, a=conv(3, 8), bn=nn.BatchNorm2d(8), b=conv(8, 4), c=conv(8, 4, 1))
    kill(net.bn, 2, 5)
    x = torch.randn(8, 3, 6, 6)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(3):
        net(x).pow(2).mean().backward()
        optimizer.step()
    return net, x, optimizer


def untouched(before: Any, net: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    state, moments, grads = before
    same = all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    for index, entry in optimizer.state_dict()["state"].items():
        same &= all(torch.equal(value, moments[index][key]) for key, value in entry.items())
    return same and all(
        torch.equal(p.grad, grads[name]) for name, p in net.named_parameters() if p.grad is not None
    )


def snapshot(net: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    grads = {name: p.grad for name, p in net.named_parameters()}
    return copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"], grads))


def off_by_one(original: Any) -> Any:
    def parts(session: Any, reader: tuple[int, int]) -> Any:
        return original(session, (reader[0], (reader[1] + 1) % 8))

    return parts


def forgetful(original: Any) -> Any:
    def traced(session: Any, units: Any, **kwargs: Any) -> Trace:
        found = original(session, units, **kwargs)
        for own in found.units.values():
            last = own.reads[-1].weights.parameter
            own.reads = [part for part in own.reads if part.weights.parameter is not last]
        return found

    return traced


MUTATIONS = {
    "an outgoing index is off by one": (tracing, "reading_parts", off_by_one),
    "a reader is forgotten": (eligibility, "trace", forgetful),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_caught_and_taken_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, mutate = MUTATIONS[name]
    net, x, optimizer = network()
    before = snapshot(net, optimizer)
    monkeypatch.setattr(module, attribute, mutate(getattr(module, attribute)))
    report = reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert report.reinitialised == {}
    assert all("would change by" in reason for reason in report.refused["relu"].values())
    assert untouched(before, net, optimizer)


def test_stale_gradients_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset between backward and the optimizer's step must not be followed by a stale update."""
    net, x, optimizer = network()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(net, optimizer)
    monkeypatch.setattr(surgeon, "clear_gradients", lambda planned: None)
    report = reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert report.reinitialised == {}
    assert all("gradient" in reason for reason in report.refused["relu"].values())
    assert untouched(before, net, optimizer)


def test_a_reset_between_backward_and_step_is_not_undone_by_the_step() -> None:
    net, x, optimizer = network()
    reference, _, other = network()
    reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    optimizer.step()
    other.step()
    for model in (net, reference):
        model.eval()
    assert torch.equal(net(x), reference(x))


def test_a_failure_while_writing_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, optimizer = network()
    before = snapshot(net, optimizer)
    written = []
    original = weights.WeightSlice.write_

    def failing(self: Any, tensor: Any, values: Any) -> None:
        written.append(tensor)
        if len(written) == 3:
            raise RuntimeError("out of memory")
        original(self, tensor, values)

    monkeypatch.setattr(weights.WeightSlice, "write_", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert untouched(before, net, optimizer)


def test_a_failing_optimizer_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, optimizer = network()
    before = snapshot(net, optimizer)

    def failing(*args: Any) -> None:
        raise RuntimeError("no memory of it")

    monkeypatch.setattr(revive.OptimizerMemory, "forget_", failing)
    with pytest.raises(RuntimeError, match="no memory of it"):
        reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert untouched(before, net, optimizer)


def test_one_culprit_does_not_cost_the_others_their_revival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = tracing.reading_parts

    def wrong_for_two(session: Any, reader: tuple[int, int]) -> Any:
        return original(session, (reader[0], 3 if reader[1] == 2 else reader[1]))

    net, x, optimizer = network()
    monkeypatch.setattr(tracing, "reading_parts", wrong_for_two)
    report = reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert report.reinitialised == {"relu": [5]}
    assert list(report.refused["relu"]) == [2]


def test_a_unit_with_which_a_replay_raises_does_not_cost_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Settled._normalise_

    def failing(self: Settled, index: int, *given: Any) -> None:
        if 2 in self._normed[index]:
            raise RuntimeError("no statistics of 2")
        original(self, index, *given)

    net, x, optimizer = network()
    monkeypatch.setattr(Settled, "_normalise_", failing)
    report = reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert report.reinitialised == {"relu": [5]}
    assert report.refused["relu"][2] == "the model would fail (RuntimeError: no statistics of 2)"


def test_an_event_on_resnet18_with_50_dead_units_takes_six_replays() -> None:
    torch.manual_seed(0)
    net, x = ResNet(width=64, blocks=2, stages=4), torch.randn(8, 3, 32, 32)
    units = {}
    for index, block in enumerate(net.layers):
        units[f"layers.{index}.relu.bn1"] = list(range(7 if index < 2 else 6))
        kill(block.bn1, *units[f"layers.{index}.relu.bn1"])
    report = reinit_dead_units(net, units, x)
    assert report.num_reinitialised == 50
    # Of the eval tape four, two of which compute no convolution; of the training tape two.
    assert report.passes == 6


def test_random_state_modes_and_buffers_are_as_before() -> None:
    net, x, _ = network()
    net.a.eval()
    modes = [module.training for module in net.modules()]
    mean = net.bn.running_mean.clone()
    state = torch.get_rng_state()
    reinit_dead_units(net, {"relu": [2]}, x)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    kept = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(mean[kept], net.bn.running_mean[kept])
    assert not torch.equal(mean[2], net.bn.running_mean[2])


def test_a_dry_run_touches_nothing() -> None:
    net, x, optimizer = network()
    before = snapshot(net, optimizer)
    config = ReinitConfig(dry_run=True)
    report = reinit_dead_units(net, {"relu": [2]}, x, optimizers=[optimizer], config=config)
    assert report.planned == {"relu": [2]}
    assert "would re-initialise 1 unit" in str(report)
    assert untouched(before, net, optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    net, x, _ = network()
    net, x = net.to(dtype).eval(), x.to(dtype)
    before = net(x)
    report = reinit_dead_units(net, {"relu": [2, 5]}, x)
    assert report.reinitialised == {"relu": [2, 5]}, str(report)
    assert torch.equal(before, net.eval()(x))


def test_a_compiled_model_is_not_compiled_anew() -> None:
    net, x, _ = network()
    net.eval()
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        before = compiled(x)
        report = reinit_dead_units(compiled, {"relu": [2, 5]}, x)
        with torch.compiler.set_stance("fail_on_recompile"):
            after = compiled(x)
    assert report.reinitialised == {"relu": [2, 5]}
    assert torch.equal(before, after)


def test_sharded_models_are_refused() -> None:
    class FSDPModule:
        pass

    class Sharded(nn.Sequential, FSDPModule):
        pass

    net = Sharded(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = reinit_dead_units(net, {"1": [0]}, torch.randn(4, 4))
    assert "sharded" in report.refused["1"][0]


def test_the_same_seed_draws_the_same_weights() -> None:
    rows = []
    for seed in (1, 1, 2):
        net, x, _ = network()
        reinit_dead_units(net, {"relu": [2]}, x, seed=seed)
        rows.append(net.a.weight[2].detach().clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_the_same_seed_draws_the_same_weights_of_a_parameter_without_a_layer() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.w - self.shift) @ self.v

    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        net = Net(forward, w=raw(6, 8), shift=raw(8), v=raw(8, 3))
        with torch.no_grad():
            net.shift[[2, 5]] = 100
        report = reinit_dead_units(net, {"relu": [2, 5]}, torch.randn(16, 6), seed=seed)
        assert report.num_reinitialised == 2
        rows.append(net.w.detach().T[[2, 5]])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0][0], rows[0][1])


def test_arguments_are_checked() -> None:
    net, x, _ = network()
    with pytest.raises(ValueError, match=r"name layers of the model, but got 'gelu'.*relu"):
        reinit_dead_units(net, {"gelu": [2]}, x)
    with pytest.raises(ValueError, match=r"in \[0, 8\), but got \[8\]"):
        reinit_dead_units(net, {"relu": [8]}, x)
    with pytest.raises(TypeError, match="a tensor, a tuple or a mapping"):
        reinit_dead_units(net, {"relu": [2]}, 3)


def test_a_living_unit_is_refused() -> None:
    net, x, _ = network()
    report = reinit_dead_units(net, {"relu": [0]}, x)
    assert report.refused == {"relu": {0: "it fires on the recorded batch"}}


def test_operations_have_names() -> None:
    assert Operation("link", torch.add).name == "add"


def test_what_was_done_before_a_failure_is_taken_back_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = tracing.reading_parts

    def wrong_for_two(session: Any, reader: tuple[int, int]) -> Any:
        return original(session, (reader[0], 3 if reader[1] == 2 else reader[1]))

    net, x, optimizer = network()
    before = snapshot(net, optimizer)
    monkeypatch.setattr(tracing, "reading_parts", wrong_for_two)
    operate = surgeon.Surgeon._operate_on

    def failing(self: Any, traces: Any, outcome: Any) -> None:
        if outcome.units:
            raise KeyboardInterrupt
        operate(self, dict(reversed(traces.items())), outcome)

    monkeypatch.setattr(surgeon.Surgeon, "_operate_on", failing)
    with pytest.raises(KeyboardInterrupt):
        reinit_dead_units(net, {"relu": [2, 5]}, x, optimizers=[optimizer])
    assert untouched(before, net, optimizer)


def test_two_parameters_of_the_same_memory_count_as_tied() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].weight.data = net[0].weight.data
    kill(net[0], 1)
    report = reinit_dead_units(net, {"1": [1]}, torch.randn(8, 6))
    assert "is tied to" in report.refused["1"][1]


class Joined(nn.Module):
    """Has two dead units, and something done with what all of them say.

    Args:
        join: Does it, given the layer behind them and what they say.
    """

    def __init__(self, join: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.join = nn.Linear(6, 8), nn.Linear(8, 3), join
        with torch.no_grad():
            self.a.weight[:2], self.a.bias[:2] = 0.0, -1.0

    def forward(self, x: torch.Tensor) -> Any:
        return self.join(self.o, torch.relu(self.a(x)))


COMPARED = {
    "the share above a threshold": lambda o, h: (o(h), (h >= 6).float().mean()),
    "a gate that one loud unit opens": lambda o, h: o(h) * (h > 3).any(-1, keepdim=True),
    "a histogram of what is loud": lambda o, h: (o(h), torch.histc(h, 4, 8, 100)),
    "how many fire": lambda o, h: o(h) * ((h > 0).sum(-1, keepdim=True) > 7),
    "whether most fire, by integers": lambda o, h: o(h) + ((h > 0).long().sum(1) // 8)[:, None],
    "what is below the middle": lambda o, h: o(torch.where(h < h.median(), 0.0, h)),
    "what is above the mean": lambda o, h: o(torch.where(h > h.mean(1, keepdim=True), h, 0.0)),
    "the few that are loudest": lambda o, h: o(
        torch.zeros_like(h).scatter(1, h.topk(6).indices, h.topk(6).values)
    ),
    "which is the loudest": lambda o, h: o(h) + h.argmax(1, keepdim=True),
    "rows chosen by it": lambda o, h: o(h)[(h > 9).any(1).long()],
    "a branch": lambda o, h: o(h) if (h > 9).sum() == 0 else o(-h),
    "how many are loud, as a size": lambda o, h: o(h) + (h > 9).nonzero().shape[0],
    "the loud ones alone": lambda o, h: o(h) + h[h > 9].sum(),
    "rows of weights": lambda o, h: o(h) + o.weight[:, (h > 9).any(1).long()].t(),
    "rows of an embedding": lambda o, h: (
        o(h) + nn.functional.embedding((h > 9).any(1).long(), o.weight.t())
    ),
    "signs": lambda o, h: o(h) * torch.sign(h - 9).mean(1, keepdim=True),
    "compared in place": lambda o, h: o(h) * h.clone().gt_(9.0).mean(1, keepdim=True),
}
ALIKE = {
    "a product with its own sign": lambda o, h: o(h * (h > 0)),
    "a choice by itself": lambda o, h: o(torch.where(h > 0.1, h, 0.0)),
    "a mask of numbers": lambda o, h: o(h * (h > 0.1).float()),
    "a mask in another shape": lambda o, h: o((h.view(8, 2, 4) * (h > 0).view(8, 2, 4)).flatten(1)),
    "masks side by side": lambda o, h: o(h * torch.cat([(h > 0.1)[:, :4], (h > 0.2)[:, 4:]], 1)),
    "the largest over time": lambda o, h: o(h.view(2, 4, 8).topk(2, 1).values.mean(1)),
    "the middle over time": lambda o, h: o(h.view(2, 4, 8).sort(dim=1)[0][:, 2]),
    "a quantile over time": lambda o, h: o(h.view(2, 4, 8).quantile(0.75, 1)),
    "its shape alone": lambda o, h: o(h) + torch.ones(8, dtype=torch.bool).expand_as(h)[:, :3],
}


@pytest.mark.parametrize("how", COMPARED)
def test_what_compares_a_unit_with_more_than_the_example_has_is_noticed(how: str) -> None:
    net = Joined(COMPARED[how])
    report = reinit_dead_units(net, {"relu": [0, 1]}, torch.randn(8, 6), optimizers=None)
    assert list(report.refused["relu"]) == [0, 1]


@pytest.mark.parametrize("how", ALIKE)
def test_what_compares_a_unit_with_a_number_for_itself_alone_costs_none(how: str) -> None:
    net = Joined(ALIKE[how])
    report = reinit_dead_units(net, {"relu": [0, 1]}, torch.randn(8, 6), optimizers=None)
    assert report.reinitialised == {"relu": [0, 1]}


def test_a_function_that_overflows_above_the_example_costs_no_unit() -> None:
    net = Joined(lambda o, h: o(torch.expm1(h)))
    report = reinit_dead_units(net, {"relu": [0, 1]}, torch.randn(8, 6), optimizers=None)
    assert report.reinitialised == {"relu": [0, 1]}
