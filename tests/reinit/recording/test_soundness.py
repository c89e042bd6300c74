"""What a recording cannot follow is refused with its reason, and costs the other units nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits.reinit.recording.replay import Visitor, replay
from lightning_deadunits.reinit.recording.tape import Call
from tests.reinit.recording.stepping import Small, record, revive, small
from tests.zoo import kill


def x() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def numpy_detour(net: Small, batch: Tensor) -> Tensor:
    hidden = net.hidden(batch).detach().numpy()
    return net.head(torch.from_numpy(np.maximum(hidden, 0.0) * 2))


def extension(net: Small, batch: Tensor) -> Tensor:
    hidden = net.hidden(batch).detach()
    result = torch.empty(8, 6)
    ctypes.memmove(result.data_ptr(), hidden.data_ptr(), hidden.numel() * 4)
    return net.head(result)


def memory_shared_with_numpy(net: Small, batch: Tensor) -> Tensor:
    buffer = np.zeros((8, 6), np.float32)
    view = torch.from_numpy(buffer)
    hidden = net.hidden(batch)
    buffer[:] = hidden.detach().numpy()
    return net.head(view)


def memory_shared_with_numpy_that_was_overwritten(net: Small, batch: Tensor) -> Tensor:
    buffer = np.ones((8, 6), np.float32)
    view = torch.from_numpy(buffer).zero_()
    buffer[:] = net.hidden(batch).detach().numpy()
    return net.head(view)


def raw_change_in_place(net: Small, batch: Tensor) -> Tensor:
    product = net.a(batch).detach()
    hidden = torch.relu(product)
    shifted = hidden * 1.0
    values = (ctypes.c_float * shifted.numel()).from_address(shifted.data_ptr())
    for index in range(shifted.numel()):
        values[index] += 1.0
    return net.head(shifted)


def read_by_python(read: Callable[[Tensor], Any]) -> Callable[[Small, Tensor], Tensor]:
    def step(net: Small, batch: Tensor) -> Tensor:
        hidden = net.hidden(batch)
        read(hidden)
        return net.head(hidden)

    return step


READS = {
    "item": lambda h: h[0, 2].item(),
    "bool": lambda h: bool(h[0, 2] + 1),
    "float": lambda h: float(h.sum()),
    "int": lambda h: int(h.sum()),
    "index": lambda h: range(h.sum().long()),
    "tolist": lambda h: h.tolist(),
    "numpy": lambda h: h.detach().numpy(),
    "an array": lambda h: np.asarray(h.detach()),
    "format": lambda h: f"{h.sum():.2f}",
    "repr": lambda h: repr(h),
    "any": lambda h: bool((h > 0)[:, 2].any()),
    "data pointer": lambda h: h.data_ptr(),
    "contains": lambda h: 3.0 in h,
}


@pytest.mark.parametrize(
    "step",
    [
        *(numpy_detour, extension, memory_shared_with_numpy, raw_change_in_place),
        memory_shared_with_numpy_that_was_overwritten,
    ],
)
def test_what_no_call_shows_refuses_the_units_that_may_flow_into_it(step: Any) -> None:
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = revive(net, [record(net, lambda: step(net, x()))], {"relu.a": [2]})
    assert not report.reinitialised, str(report)
    assert list(report.refused["relu.a"]) == [2]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("name", READS)
def test_a_value_that_python_reads_refuses_the_units_that_it_depends_on(name: str) -> None:
    net = small()
    step = read_by_python(READS[name])
    report = revive(net, [record(net, lambda: step(net, x()))], {"relu.a": [2], "relu.b": [1]})
    assert "relu.a" not in report.reinitialised, str(report)
    assert "Python" in report.refused["relu.a"][2] or "followed" in report.refused["relu.a"][2]
    assert report.reinitialised == {"relu.b": [1]}


def test_units_after_a_detour_are_revived() -> None:
    net = small()
    report = revive(net, [record(net, lambda: numpy_detour(net, x()))], {"relu.b": [1]})
    assert report.reinitialised == {"relu.b": [1]}


def test_a_detour_names_the_module() -> None:
    class Detour(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.from_numpy(h.numpy() * 2) + 1

    net = small()
    net.detour = Detour()
    report = revive(
        net, [record(net, lambda: net.head(net.detour(net.b(net.hidden(x())))))], {"relu.a": [2]}
    )
    assert "code in detour uses a tensor that no torch call made" in report.refused["relu.a"][2]


def test_a_random_call_is_replayed_with_the_numbers_that_it_drew() -> None:
    net = small()

    def step() -> Tensor:
        h = nn.functional.dropout(net.hidden(x()), 0.5, training=True)
        return net.head(h + 0.1 * net.b(torch.randn(8, 6)))

    tape = record(net, step, training=True)
    assert not tape.obstacles


def test_a_generator_of_ones_own_is_replayed_and_left_as_it_was() -> None:
    net, generator = small(), torch.Generator().manual_seed(3)

    def step() -> Tensor:
        return net(x() + torch.randn(8, 4, generator=generator))

    tape = record(net, step)
    state = generator.get_state()
    report = revive(net, [tape], {"relu.a": [2]})
    assert not tape.obstacles
    assert report.reinitialised == {"relu.a": [2]}
    assert torch.equal(state, generator.get_state())


def test_an_output_that_only_a_logger_sees_must_stay() -> None:
    net, logged = small(), []

    def step() -> Tensor:
        hidden = net.hidden(x())
        logged.append(hidden.detach()[:, 2].sum() + 1)
        return net.head(hidden)

    report = revive(net, [record(net, step)], {"relu.a": [2], "relu.b": [1]})
    assert report.reinitialised == {"relu.b": [1]}
    assert "output depends on it" in report.refused["relu.a"][2]


def test_memory_from_empty_that_calls_have_written_is_no_obstacle() -> None:
    net = small()

    def step() -> Tensor:
        result = torch.empty(8, 6)
        result[:, :3] = net.hidden(x())[:, :3]
        result[:, 3:] = net.hidden(x())[:, 3:]
        return net.head(result)

    tape = record(net, step)
    assert not tape.obstacles
    assert revive(net, [tape], {"relu.a": [2]}).reinitialised == {"relu.a": [2]}


OVERWRITTEN: dict[str, Callable[[], Tensor]] = {
    "filled": lambda: torch.Tensor(8, 6).fill_(3.0),
    "filled, of a type": lambda: torch.FloatTensor(8, 6).fill_(3.0),
    "zeros": lambda: torch.Tensor([[1.0] * 6] * 8).zero_(),
    "copied": lambda: torch.Tensor(8, 6).copy_(torch.ones(6)),
    "drawn": lambda: torch.Tensor(8, 6).normal_(),
    "initialised": lambda: nn.init.uniform_(torch.Tensor(8, 6)),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_what_a_call_overwrites_may_come_from_anywhere(name: str) -> None:
    net, seen = small(), []

    def step() -> Tensor:
        made = OVERWRITTEN[name]()
        seen.append(made.clone())
        return net.head(net.hidden(x()) * 2) * made[:, :3]

    tape = record(net, step)
    assert not tape.obstacles
    assert revive(net, [tape], {"relu.a": [2]}).reinitialised == {"relu.a": [2]}
    replayed: list[Tensor] = []

    class Look(Visitor):
        def call(self, position: int, call: Call, args: Any, kwargs: Any) -> Any:
            out = super().call(position, call, args, kwargs)
            replayed.extend([out] if call.function is Tensor.clone else [])
            return out

    replay(tape, Look())
    assert torch.equal(replayed[0], seen[0])


def test_constants_of_the_legacy_constructor_are_refused_with_the_way_out() -> None:
    net = small()
    tape = record(net, lambda: net(x()) * torch.Tensor([2.0]))
    assert (
        "`torch.tensor` or `torch.full`"
        in revive(net, [tape], {"relu.a": [2]}).refused["relu.a"][2]
    )


def test_labels_that_are_seen_at_the_end_only_are_no_obstacle() -> None:
    net, labels = small(), torch.randint(0, 3, (8,))
    tape = record(net, lambda: nn.functional.cross_entropy(net(x()), labels), training=True)
    assert not tape.obstacles
    assert revive(net, [tape], {"relu.a": [2]}).reinitialised == {"relu.a": [2]}


@pytest.mark.parametrize("kind", ["tensor", "in a dict", "on the module", "integers"])
def test_noise_goes_on_everything_that_came_in(kind: str) -> None:
    """What is zero on this batch need not be on the next: a reader of it must be refused."""
    net = small()
    other = torch.zeros(8, 6, dtype=torch.int64 if kind == "integers" else torch.float32)
    holder: Any = {"y": other}
    if kind == "on the module":
        net.register_buffer("y", other)
        holder = {"y": net.y}

    def step() -> Tensor:
        return net.head(net.hidden(x()) + holder["y"])

    report = revive(net, [record(net, step)], {"relu.a": [2]})
    assert "reads it together with" in report.refused["relu.a"][2]


Bounded = Callable[[Tensor], Any]

BOUNDED: dict[str, tuple[float, Bounded]] = {
    "labels": (0.0, lambda y: nn.functional.binary_cross_entropy(y, torch.ones(8, 6))),
    "labels that are 1": (1.0, lambda y: nn.functional.binary_cross_entropy(y, torch.ones(8, 6))),
    "odds": (0.0, torch.bernoulli),
    "indices": (2.0, lambda y: nn.functional.embedding(y[:, 0].long(), torch.zeros(3, 6))),
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("added", [True, False])
def test_what_bears_no_noise_may_be_another_on_the_next_batch(name: str, added: bool) -> None:
    """A call that raises on noise is no reason to take what it is given for a constant."""
    value, bounded = BOUNDED[name]
    net, given = small(), torch.full((8, 6), value)

    def step() -> tuple[Tensor, Any]:
        hidden = net.hidden(x())
        return net.head(hidden + (given - value) if added else hidden), bounded(given)

    report = revive(net, [record(net, step)], {"relu.a": [2]})
    if added:
        assert "reads it together with" in report.refused["relu.a"][2]
    else:
        assert report.reinitialised == {"relu.a": [2]}


def test_what_can_be_no_other_value_refuses_the_units_that_are_added_to_it() -> None:
    net, given = small(), torch.zeros(8, 6)

    def step() -> tuple[Tensor, Tensor]:
        row = nn.functional.embedding((given[:, 0] * 1e6).long(), torch.randn(1, 6))
        return net.head(net.hidden(x()) + given), row

    report = revive(net, [record(net, step)], {"relu.a": [2]})
    assert "for all that is known" in report.refused["relu.a"][2]


@pytest.mark.parametrize("stepped", ["a", "c"])
def test_what_was_made_before_a_step_may_be_used_after_it(stepped: str) -> None:
    """It is compared with a replay unless it descends from the weights that were stepped."""

    def step(change: Callable[[Tensor], Tensor]) -> None:
        hidden = net.hidden(x())
        loss = net.head(hidden).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.head(change(torch.relu(hidden.detach())))
        _ = loss.detach() + loss.detach()

    def unseen(hidden: Tensor) -> Tensor:
        shifted = hidden * 1.0
        values = (ctypes.c_float * shifted.numel()).from_address(shifted.data_ptr())
        for index in range(shifted.numel()):
            values[index] += 1.0
        return shifted

    net = small()
    optimizer = torch.optim.SGD(getattr(net, stepped).parameters(), lr=0.1)
    assert not record(net, lambda: step(lambda hidden: hidden), training=True).obstacles
    if stepped == "c":  # of what `a` made nothing is known any more once `a` was stepped
        assert record(net, lambda: step(unseen), training=True).obstacles


def test_a_step_that_takes_gradients_is_revived() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        net[2].bias[1] = -100.0
    points = torch.randn(9, 2)

    def step() -> Tensor:
        where = points.clone().requires_grad_()
        u = net(where)
        (slope,) = torch.autograd.grad(u.sum(), where, create_graph=True)
        return (slope.pow(2).sum(1) - u.squeeze(1)).pow(2).mean()

    before = step().detach()
    report = revive(net, [record(net, step, training=True)], {"3": [1]})
    assert report.reinitialised == {"3": [1]}, str(report)
    assert torch.equal(step().detach(), before)


def test_a_gradient_with_respect_to_a_unit_refuses_it() -> None:
    net = small()

    def step() -> Tensor:
        hidden = net.hidden(x())
        loss = net.head(hidden).pow(2).sum()
        (slope,) = torch.autograd.grad(loss, hidden, create_graph=True)
        return loss + slope.pow(2).sum()

    report = revive(net, [record(net, step, training=True)], {"relu.a": [2], "relu.b": [1]})
    assert "relu.a" in report.refused, str(report)


def test_a_penalty_on_the_weights_is_no_part_of_what_is_computed() -> None:
    net = small()

    def step() -> Tensor:
        return net(x()).pow(2).mean() + 1e-3 * sum(p.pow(2).sum() for p in net.parameters())

    report = revive(net, [record(net, step, training=True)], {"relu.a": [2]})
    assert report.reinitialised == {"relu.a": [2]}, str(report)


def test_what_uses_gradients_of_backward_refuses_what_came_before() -> None:
    net = small()

    def step() -> Tensor:
        out = net(x())
        out.sum().backward()
        return out.mean() + net.b.weight.grad.norm()

    report = revive(net, [record(net, step, training=True)], {"relu.a": [2]})
    assert "gradients that backward left" in report.refused["relu.a"][2]


def test_a_running_mean_of_norms_of_gradients_is_no_part_of_what_is_computed() -> None:
    net, running = small(), torch.zeros(())

    def step() -> Tensor:
        out = net(x())
        out.sum().backward()
        weight = torch.ones(())
        running.mul_(0.9).add_(0.1 * weight * net.b.weight.grad.norm())
        float(running)
        return out

    tape = record(net, step, training=True)
    assert not tape.obstacles
    assert revive(net, [tape], {"relu.a": [2]}).reinitialised == {"relu.a": [2]}


class Jumping(nn.Module):
    """A threshold written as a comparison: autograd holds the mask until backward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(6, 2)
        kill(self.encoder, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.decoder(h * (h > 0.1))


def test_a_mask_that_autograd_alone_holds_is_no_result_of_the_pass() -> None:
    torch.manual_seed(0)
    model, x = Jumping(), torch.randn(8, 4)
    tape = record(model, lambda: model(x).pow(2).mean(), training=True)
    assert revive(model, [tape], {"mul": [1]}).reinitialised == {"mul": [1]}


def test_an_input_that_the_step_draws_itself_is_data() -> None:
    torch.manual_seed(0)
    model = Jumping()
    tape = record(model, lambda: model(torch.randn(8, 4)).pow(2).mean(), training=True)
    assert revive(model, [tape], {"mul": [1]}).reinitialised == {"mul": [1]}
