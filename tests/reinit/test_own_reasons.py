"""A hard unit is revived exactly, or refused with its own reason, and costs no other one.

Every network has a plain dead unit behind the hard one: it is revived in any case.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from lightning_deadunits import reinit_dead_units
from tests.zoo import kill
from tests.zoo.snapshot import same

REVIVED = ""
COMPUTED = "no layer that makes it was found"


class Hard(nn.Module):
    """Two layers with a dead unit between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
        kill(self.a, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.relu(self.a(x)))
        return out


class TiedDecoder(Hard):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.relu(self.a(x)), self.a.weight.t(), self.b.bias)


class LowRank(nn.Module):
    """A frozen layer with a sum of low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x @ self.down.t() @ self.up.t()
        return out


class Company(nn.Module):
    """A hard part, and behind it a layer with a dead unit of its own."""

    def __init__(self, hard: nn.Module) -> None:
        super().__init__()
        self.hard = hard
        self.mid, self.relu, self.last = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
        kill(self.mid, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.relu(self.mid(self.hard(x))))
        return out


def shared_bias(hard: Hard) -> None:
    hard.b.bias = hard.a.bias


def shared_memory(hard: Hard) -> None:
    hard.b.weight.data = hard.a.weight.data


def expanded_bias(hard: Hard) -> None:
    hard.a.bias = nn.Parameter(torch.full((1,), -100.0).expand(6))


def frozen_consumer(hard: Hard) -> None:
    hard.b.requires_grad_(False)


def low_rank(hard: Hard) -> None:
    hard.a, hard.b = LowRank(hard.a), LowRank(hard.b)  # type: ignore[assignment]


def transposed(hard: Hard) -> None:
    for layer in (hard.a, hard.b):
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())


def one_block_of_memory(hard: Hard) -> None:
    flat = torch.randn(72)
    hard.a.weight = nn.Parameter(flat[:36].view(6, 6))
    hard.b.weight = nn.Parameter(flat[36:].view(6, 6))


def meta_beside_it(hard: Hard) -> None:
    hard.spare = nn.Linear(2, 2, device="meta")


def lazy_beside_it(hard: Hard) -> None:
    hard.spare = nn.LazyLinear(2)


def normed_producer(hard: Hard) -> None:
    parametrizations.weight_norm(hard.a)


def normed_consumer(hard: Hard) -> None:
    parametrizations.weight_norm(hard.b)


def normed_by_hooks(hard: Hard) -> None:
    weight_norm(hard.b)


def spectral_producer(hard: Hard) -> None:
    parametrizations.spectral_norm(hard.a)


def spectral_consumer(hard: Hard) -> None:
    parametrizations.spectral_norm(hard.b)


CASES: dict[Callable[[Hard], None], str] = {
    shared_bias: "hard.a.bias is tied to hard.b.bias",
    shared_memory: "hard.b.weight is tied to hard.a.weight",
    expanded_bias: "hard.a.bias is expanded",
    frozen_consumer: "hard.b.weight is frozen",
    low_rank: "hard.b.base.weight is frozen",
    transposed: REVIVED,
    one_block_of_memory: REVIVED,
    meta_beside_it: REVIVED,
    lazy_beside_it: REVIVED,
    normed_producer: COMPUTED,
    normed_consumer: "whose weights are no plain parameters",
    normed_by_hooks: "whose weights are no plain parameters",
    spectral_producer: REVIVED,  # by its bias: its weights are left
    spectral_consumer: "parametrised and so computed of themselves",
}


def outputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what a network computes in eval and in training mode, its buffers as before."""
    found = []
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for training in (False, True):
        with torch.no_grad():
            found.append(net.train(training)(x))
            for name, buffer in net.named_buffers():
                buffer.copy_(kept[name])
    return found


def check(net: Company, x: Tensor, reason: str) -> None:
    before = outputs(net, x)
    hard = {
        name: p.clone()
        for name, p in net.hard.named_parameters()
        if p.device == x.device and not nn.parameter.is_lazy(p)
    }
    optimizer = torch.optim.Adam(p for p in net.parameters() if not nn.parameter.is_lazy(p))
    units = {"hard.relu": [1], "relu": [2]}
    report = reinit_dead_units(net, units, x, optimizers=[optimizer])
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(net, x), strict=True))
    assert report.reinitialised.get("relu") == [2], str(report)
    if reason == REVIVED:
        assert report.reinitialised["hard.relu"] == [1], str(report)
        return
    assert reason in report.refused["hard.relu"][1]
    now = dict(net.hard.named_parameters())
    untouched = {name: now[name] for name in hard if name != "b.weight" and name != "b.bias"}
    assert same({name: hard[name] for name in untouched}, untouched)


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_it_is_revived_exactly_or_refused_with_its_own_reason(
    change: Callable[[Hard], None],
) -> None:
    torch.manual_seed(0)
    hard = Hard()
    change(hard)
    check(Company(hard), torch.randn(8, 6), CASES[change])


def test_a_tied_decoder_is_named_as_the_reason() -> None:
    torch.manual_seed(0)
    check(Company(TiedDecoder()), torch.randn(8, 6), "hard.a.weight both makes and reads it")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_any_precision_are_revived(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(Company(Hard()).to(dtype), torch.randn(8, 6, dtype=dtype), REVIVED)


def test_groups_that_split_a_layer_forget_both_parts() -> None:
    torch.manual_seed(0)
    net, x = Company(Hard()), torch.randn(8, 6)
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    optimizer = torch.optim.Adam(
        [{"params": weights, "lr": 1e-3}, {"params": biases, "lr": 1e-3, "betas": (0.5, 0.9)}]
    )
    net(x).square().mean().backward()
    optimizer.step()
    state = optimizer.state
    state[net.mid.weight]["exp_avg"].fill_(1.0)
    state[net.mid.bias]["exp_avg"].fill_(1.0)
    report = reinit_dead_units(net, {"relu": [2]}, x, optimizers=[optimizer])
    assert report.reinitialised == {"relu": [2]}
    for parameter in (net.mid.weight, net.mid.bias):
        rows = state[parameter]["exp_avg"].reshape(6, -1)
        assert not rows[2].any()
        assert bool((rows[[0, 1, 3, 4, 5]] == 1.0).all())


def test_one_optimizer_that_cannot_forget_in_part_costs_only_its_own_units() -> None:
    torch.manual_seed(0)
    net, x = Company(Hard()), torch.randn(8, 6)
    plain = [*net.mid.parameters(), *net.last.parameters()]
    optimizers = [torch.optim.Adafactor(net.hard.parameters()), torch.optim.Adam(plain)]
    net(x).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    kill(net.hard.a, 1)
    kill(net.mid, 2)
    units = {"hard.relu": [1], "relu": [2]}
    report = reinit_dead_units(net, units, x, optimizers=optimizers)
    assert report.reinitialised == {"relu": [2]}
    assert "row_var" in report.refused["hard.relu"][1]
