"""What is zero, false or chosen by a mask on the example only is not taken for the unit's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import reinit_dead_units

DEAD = [1, 2]
WHOLE = torch.zeros(8, 8, dtype=torch.long)
BYTES = WHOLE.to(torch.uint8)
NONE = torch.zeros(8, dtype=torch.bool)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(8, 6, generator=GENERATOR)
OTHER = torch.rand(8, 8, generator=GENERATOR) + 0.5


class Net(nn.Module):
    """Reads what units say after something was done with it.

    Args:
        join: Does it.
    """

    def __init__(self, join: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o, self.join = nn.Linear(6, 8), nn.Linear(8, 3), join
        with torch.no_grad():
            self.a.weight[DEAD], self.a.bias[DEAD] = 0.0, -1.0

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return self.o(self.join(torch.relu(self.a(x)), *others))


def written(h: Tensor, mask: Tensor, y: Tensor) -> Tensor:
    h = h.clone()
    h[mask] = y[mask]
    return h


JOINED: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], tuple[Any, ...]]] = {
    "a quotient of bytes": (lambda h, u: h + u / 255, (BYTES,), (BYTES + 9,)),
    "a product with a number": (lambda h, u: h + u * 0.5, (WHOLE,), (WHOLE + 9,)),
    "a cast to double": (lambda h, u: (h + u.double()).float(), (WHOLE,), (WHOLE + 9,)),
    "a cast to half": (lambda h, u: h + u.half(), (BYTES,), (BYTES + 9,)),
    "a cast to the type of units": (lambda h, u: h + u.type_as(h), (WHOLE,), (WHOLE + 9,)),
    "a function of integers": (lambda h, u: h + torch.log1p(u), (WHOLE,), (WHOLE + 9,)),
    "a mean of integers": (
        lambda h, u: h + u.mean(1, True, dtype=torch.float), (WHOLE,), (WHOLE + 9,)
    ),
    "a list": (lambda h, u: h + torch.tensor(u)[:, None], ([0.0] * 8,), ([1.0] * 8,)),
    "a list by new_tensor": (lambda h, u: h + h.new_tensor(u)[:, None], ([0.0] * 8,), ([1.0] * 8,)),
    "rows chosen by a mask": (written, (NONE, OTHER), (~NONE, OTHER)),
    "rows chosen by integers": (
        lambda h, ids, y: written(h, ids == 3, y), (WHOLE[0], OTHER), (WHOLE[0] + 3, OTHER)
    ),
    "channels chosen by integers": (
        lambda h, i: h.view(-1, 2, 4)[torch.arange(8), i].repeat(1, 2), (WHOLE[0],), (WHOLE[0] + 1,)
    ),
    "channels gathered": (
        lambda h, i: h.gather(1, i), (torch.arange(8).expand(8, 8),), (WHOLE + 7,)
    ),
    "channels in another order": (
        lambda h, order: h[:, order], (torch.arange(8),), (torch.arange(8).roll(1),)
    ),
    "ones added to a channel": (
        lambda h, i: h.scatter_add(1, i[:, None], torch.ones(8, 1)), (WHOLE[0],), (WHOLE[0] + 1,)
    ),
    "masked_scatter": (
        lambda h, mask, y: h.masked_scatter(mask[:, None].expand_as(h), y[mask]),
        (NONE, OTHER),
        (~NONE, OTHER),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JOINED)
def test_what_is_added_on_other_batches_has_units_refused(case: str) -> None:
    join, example, other = JOINED[case]
    net = Net(join)
    with torch.no_grad():
        before = net(X, *other)
        report = reinit_dead_units(net, {"relu": DEAD}, (X, *example), optimizers=None)
        assert torch.equal(net(X, *other), before)
    assert list(report.refused["relu"]) == DEAD


KEPT: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "scaled by bytes": (lambda h, u: h * (u / 255), (BYTES + 9,)),
    "masked": (lambda h, mask: h * mask[:, None], (~NONE,)),
    "filled with zeros": (lambda h, mask: h.masked_fill(mask[:, None], 0.0), (NONE,)),
    "rows chosen by a mask": (lambda h, mask: h[mask], (~NONE,)),
    "rows chosen in two": (
        lambda h, mask: torch.cat([h[mask] * 2, h[~mask]]), (torch.arange(8) < 3,)
    ),
    "rows in another order": (lambda h, order: h[order], (torch.arange(8).roll(1),)),
    "rows gathered along an edge": (
        lambda h, e: torch.zeros(8, 8).index_add(0, e[1], h[e[0]]), (torch.arange(8).view(2, 4),)
    ),
    "channels in a fixed order": (lambda h, x: h[:, torch.arange(8).flip(0)] + 0 * x, (1,)),
    "rows set to zero": (
        lambda h, mask: h.masked_scatter(mask[:, None].expand_as(h), torch.zeros_like(h)), (NONE,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_leaves_units_zero_does_not(case: str) -> None:
    join, example = KEPT[case]
    net = Net(join)
    report = reinit_dead_units(net, {"relu": DEAD}, (X, *example), optimizers=None)
    assert report.reinitialised == {"relu": DEAD}, report
