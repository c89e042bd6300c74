"""Weights that are used several times, in one pass or on several tapes: each use the unit's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reinit.recording.stepping import record, revive
from tests.zoo import Net, kill


def discriminator_step(net: Any, real: Tensor, noise: Tensor) -> Tensor:
    return F.softplus(net.d(net.g(noise))).mean() + F.softplus(-net.d(real)).mean()


def gan() -> nn.Module:
    torch.manual_seed(0)
    d = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    g = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    kill(d[0], 1)
    kill(g[0], 5)
    return Net(lambda self, x: self.d(self.g(x)), d=d, g=g)


def test_a_discriminator_on_real_and_fake_is_revived() -> None:
    net, real, noise = gan(), torch.randn(8, 4), torch.randn(8, 3)
    tape = record(net, discriminator_step, net, real, noise, training=True)
    before = discriminator_step(net, real, noise)
    report = revive(net, [tape], {"d.1": [1], "g.1": [5]})
    assert report.reinitialised == {"d.1": [1], "g.1": [5]}, str(report)
    assert torch.equal(discriminator_step(net, real, noise), before)


def test_a_gan_step_with_manual_optimisation_is_revived() -> None:
    net, real, noise = gan(), torch.randn(8, 4), torch.randn(8, 3)
    optimizers = [torch.optim.Adam(net.d.parameters()), torch.optim.Adam(net.g.parameters())]

    def step() -> None:
        optimizers[0].zero_grad()
        discriminator_step(net, real, noise).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        F.softplus(-net.d(net.g(noise))).mean().backward()
        optimizers[1].step()

    tape = record(net, step, training=True)
    assert not tape.obstacles
    before = discriminator_step(net, real, noise)
    report = revive(net, [tape], {"d.1": [1], "g.1": [5]})
    assert report.reinitialised == {"d.1": [1], "g.1": [5]}, str(report)
    assert torch.equal(discriminator_step(net, real, noise), before)


def test_weights_that_make_something_else_in_a_second_use_are_refused() -> None:
    torch.manual_seed(0)
    net = Net(lambda self, x: x, a=nn.Linear(4, 6), c=nn.Linear(6, 2))
    kill(net.a, 3)

    def step(x: Tensor) -> Tensor:
        return net.c(F.relu(net.a(x))) + net.a(x).mean(1, keepdim=True)

    report = revive(net, [record(net, step, torch.randn(8, 4))], {"relu": [3]})
    assert report.refused["relu"][3] in (
        "a.weight is used more than once: by a (linear)",
        "a (linear) makes it, and the model's output reads the same before it",
    )


def test_weights_that_read_something_else_in_a_second_use_are_refused() -> None:
    torch.manual_seed(0)
    net = Net(lambda self, x: x, a=nn.Linear(6, 6), c=nn.Linear(6, 2))
    kill(net.a, 3)

    def step(x: Tensor) -> Tensor:
        return net.c(F.relu(net.a(x))) + net.c(x)

    report = revive(net, [record(net, step, torch.randn(8, 6))], {"relu": [3]})
    assert "c (linear) uses the weights that read it, too" in report.refused["relu"][3]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_unrolled_cell_is_revived(steps: int) -> None:
    torch.manual_seed(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = F.relu(self.i(x[:, t]) + self.h(h))
        return self.o(h)

    net = Net(forward, i=nn.Linear(4, 8), h=nn.Linear(8, 8), o=nn.Linear(8, 2))
    kill(net.i, 2)
    x = torch.randn(6, steps, 4)
    before = net(x)
    report = revive(net, [record(net, net, x), record(net, net, x, training=True)], {"relu": [2]})
    assert report.reinitialised == {"relu": [2]}, str(report)
    assert torch.equal(net(x), before)


def test_batched_experts_are_revived_each_for_itself() -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.up, net.bias = nn.Parameter(torch.randn(3, 4, 8)), nn.Parameter(torch.randn(3, 1, 8))
    net.down = nn.Parameter(torch.randn(3, 8, 2))
    with torch.no_grad():
        net.bias[0, 0, 1] = net.bias[2, 0, 7] = -100.0
    x = torch.randn(6, 4)

    def step() -> Tensor:
        inner = F.relu(torch.baddbmm(net.bias, x.expand(3, 6, 4), net.up))
        return torch.bmm(inner, net.down).sum(0)

    before = step()
    report = revive(net, [record(net, step)], {"relu": [1, 2 * 8 + 7]})
    assert report.reinitialised == {"relu": [1, 23]}, str(report)
    assert torch.equal(step(), before)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.heads = nn.ModuleDict(
            {k: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)) for k in "ab"}
        )
        kill(self.trunk[0], 2)
        kill(self.heads["b"][0], 3)

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.heads[task](self.trunk(x))


def test_a_trunk_is_silenced_in_every_head_that_a_tape_runs() -> None:
    net, x = TwoHeads(), torch.randn(8, 4)
    tapes = [record(net, net, x, task) for task in "ab"]
    before = [net(x, task) for task in "ab"]
    report = revive(net, tapes, {"trunk.1": [2], "heads.b.1": [3]})
    assert report.reinitialised == {"trunk.1": [2], "heads.b.1": [3]}, str(report)
    assert all(torch.equal(net(x, task), b) for task, b in zip("ab", before, strict=True))


def test_a_layer_that_no_tape_ran_is_refused_and_the_others_go_on() -> None:
    net, x = TwoHeads(), torch.randn(8, 4)
    report = revive(net, [record(net, net, x, "a")], {"trunk.1": [2], "heads.b.1": [3]})
    assert report.reinitialised == {"trunk.1": [2]}
    assert report.refused == {"heads.b.1": {3: "its layer ran in none of the recorded passes"}}


def test_a_tape_that_cannot_be_replayed_costs_the_others_nothing() -> None:
    net, x = TwoHeads(), torch.randn(8, 4)
    tapes = [record(net, net, x, "a"), record(net, net.heads["b"], torch.randn(8, 8))]
    call = next(tapes[1].calls)
    call.function = torch.nonexistent if hasattr(torch, "nonexistent") else _failing
    report = revive(net, tapes, {"trunk.1": [2], "heads.b.1": [3]})
    assert report.reinitialised == {"trunk.1": [2]}
    assert "cannot be replayed" in report.refused["heads.b.1"][3]


def _failing(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("gone")


def test_a_unit_that_fires_on_one_tape_alone_is_refused() -> None:
    net, x = TwoHeads(), torch.randn(8, 4)
    net.trunk[0].bias.data[2] = -3.0
    quiet, loud = torch.zeros(8, 4), 100 * torch.randn(8, 4)
    report = revive(
        net, [record(net, net, x * 0, "a"), record(net, net, loud, "b")], {"trunk.1": [2]}
    )
    assert quiet.sum() == 0
    assert report.refused["trunk.1"][2] == "it fires on the recorded batch"
