"""Networks in which the order of calls is no identity; they note what truly makes their units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

Truth = dict[tuple[str, ...], tuple[Tensor, Tensor]]
"""What makes the units, and a word for the way: zeros per unit, values seen per unit."""


class Noting(nn.Module):
    """A network that counts its own zeros, by loops over units, under what makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.truth: Truth = {}
        self.notes = True

    def note(self, activation: Tensor, unit_dims: tuple[int, ...], *made_by: str) -> Tensor:
        if not self.notes:  # nor could Dynamo trace it
            return activation
        values = activation.detach().movedim(unit_dims, tuple(range(len(unit_dims))))
        values = values.reshape(*values.shape[: len(unit_dims)], -1).flatten(0, -2)
        zeros = torch.tensor([sum(v == 0 for v in unit) for unit in values.tolist()])
        seen = torch.full_like(zeros, values.shape[1])
        before = self.truth.get(made_by, (torch.zeros_like(zeros), torch.zeros_like(zeros)))
        self.truth[made_by] = (before[0] + zeros, before[1] + seen)
        return activation


class Experts(Noting):
    """Experts behind one activation, run only if a token is routed to them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, 8) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(8, 6) for _ in range(3))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        expert, out = (x[:, 0] * 7).long().abs() % 3, torch.zeros_like(x)
        for k in range(3):
            rows = (expert == k).nonzero().flatten()
            if len(rows):
                hidden = self.note(self.act(self.up[k](x[rows])), (1,), f"up.{k}")
                out[rows] = self.down[k](hidden)
        return out


class StackedExperts(Noting):
    """The same by rows of one stacked weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        expert, out = (x[:, 0] * 7).long().abs() % 3, x.new_zeros(len(x), 8)
        for k in expert.unique():
            rows = (expert == k).nonzero().flatten()
            hidden = F.relu(F.linear(x[rows], self.up[k]))
            out[rows] = self.note(hidden, (1,), f"up.{int(k)}")
        return out


class GatheredExperts(Noting):
    """The same at once: each token gathers the weights of its expert."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        expert = (x[:, 0] * 7).long().abs() % 3
        hidden = F.relu(torch.bmm(x.unsqueeze(1), self.up[expert]).squeeze(1))
        for k in expert.unique().tolist() if self.notes else ():
            self.note(hidden[expert == k], (1,), f"up.{k}")
        return hidden


class Siamese(Noting):
    """One encoder, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = [self.note(self.encoder(v), (1,), "encoder.0") for v in (x, x.abs() - 1)]
        return self.head(torch.cat(both, -1))


class Unrolled(Noting):
    """A recurrent cell, unrolled: one layer, not one per step."""

    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for _ in range(1 + len(x) % 4):
            h = self.note(F.relu(self.ih(x) + self.hh(h)), (1,), "ih", "hh")
        return h


class Critics(Noting):
    """Vectorised critics; ``how`` writes the product."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.w = nn.Parameter(torch.randn(3, 6, 8))
        self.b = nn.Parameter(torch.randn(3, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        each = x.unsqueeze(0).expand(3, -1, -1)
        if self.how == "baddbmm":
            return self.note(F.relu(torch.baddbmm(self.b, each, self.w)), (0, 2), "w", "b")
        if self.how == "bmm":
            return self.note(F.relu(torch.bmm(each, self.w) + self.b), (0, 2), "w", "b")
        if self.how == "matmul":
            return self.note(F.relu(x @ self.w), (0, 2), "w")
        if self.how == "einsum":
            return self.note(F.relu(torch.einsum("bi,eio->beo", x, self.w)), (1, 2), "w")
        if self.how == "einsum of each":
            return self.note(F.relu(torch.einsum("ebi,eio->ebo", each, self.w)), (0, 2), "w")
        assert self.how == "vmap"
        hidden = torch.vmap(lambda w: F.relu(x @ w))(self.w)
        return self.note(hidden, (0, 2), "w")


class FeaturesFirst(Noting):
    """``w @ x``: the features are the units, not the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(7, 8))
        self.bias = nn.Parameter(torch.randn(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.note(F.relu(self.w.t() @ x.t() + self.bias), (0,), "w", "bias")
        return self.note(torch.relu(torch.mm(self.v, hidden)), (0,), "v")


class CReLU(Noting):
    """Two ways from the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        both = []
        for part in (x, x + 1):
            h = self.fc(part)
            both += [self.note(F.relu(-h), (1,), "fc", "neg"), self.note(F.relu(h), (1,), "fc")]
        return torch.cat(both, 1)


class Blocks(Noting):
    """Torchvision's: one ReLU, a norm each, a residual sum, some blocks dropped at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(3):
            block = nn.Module()
            block.conv1, block.bn1 = nn.Conv1d(1, 4, 1), nn.BatchNorm1d(4)
            block.conv2, block.bn2 = nn.Conv1d(4, 1, 1), nn.BatchNorm1d(1)
            self.layers.append(block)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = x.unsqueeze(1)
        for i, block in enumerate(self.layers):
            if (len(x) + i) % 3 == 1:
                continue
            at = f"layers.{i}."
            inner = self.relu(block.bn1(block.conv1(h)))
            inner = self.note(inner, (1,), f"{at}conv1", f"{at}bn1")
            h = self.note(
                self.relu(block.bn2(block.conv2(inner)) + h), (1,), f"{at}conv2", f"{at}bn2"
            )
        return h


class Hyper(Noting):
    """Weights that another network computes: that one makes the units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 48), nn.Linear(4, 48)
        self.z = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        for name in ("one", "other"):
            weight = getattr(self, name)(self.z.tanh() + len(x)).view(8, 6)
            out = self.note(F.relu(F.linear(x, weight)), (1,), name)
        return out


class Tied(Noting):
    """An autoencoder with one matrix: its rows make the code's units, its columns what is rebuilt.

    Square, so that sizes tell nothing.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6) - 0.5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = self.note(F.relu(F.linear(x, self.w)), (1,), "w")
        if self.how == "linear":
            h = F.linear(h, self.w.t())
        elif self.how == "einsum":
            h = torch.einsum("...o,oi", h, self.w)
        elif self.how == "attribute":
            h = h @ self.w.T.T
        elif self.how == "convolution":
            h = F.conv_transpose1d(h[..., None], self.w[..., None]).squeeze(-1)
        else:
            h = h @ self.w
        return self.note(F.relu(h), (1,), "w", "columns")


class Graph(Noting):
    """Two layers that mix nodes by the same learned edges: the features make the units."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 4, 1), nn.Conv1d(4, 4, 1)
        self.edges = nn.Parameter(torch.rand(6, 6))
        self.how = how

    def mix(self, h: Tensor) -> Tensor:
        if self.how == "left":
            return (self.edges @ h.transpose(1, 2)).transpose(1, 2)
        if self.how == "right":
            return h @ self.edges
        return torch.einsum("bcv,vw->bcw", h, self.edges)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        for name in "ab":
            x = self.note(F.relu(self.mix(getattr(self, name)(x)) - 0.5), (1,), name)
        return x


class HeadsInBatch(Noting):
    """Linear attention's feature map, its heads merged with the batch; and a single output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.one = nn.Linear(6, 8), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.fc(x).view(-1, 2, 4).reshape(-1, 4)
        heads = F.relu(heads + 0.1).unsqueeze(1).transpose(1, 2)
        self.note(heads.reshape(len(x), 2, 4), (1, 2), "fc")
        return self.note(F.relu(self.one(heads.squeeze(-1)).squeeze(-1)).unsqueeze(1), (1,), "one")


class BroadcastProduct(Noting):
    """A product with a parameter, written as factors and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.w = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.note(F.relu(self.fc(x)), (1,), "fc")
        return self.note(F.relu((h[..., None] * self.w).sum(1)), (1,), "fc", "w")


class Discriminator(Noting):
    """Called on real and on generated samples; its norm is spectral or by weight."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU())
        self.generator = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        real = self.note(self.net(x), (1,), "net.0")
        return real.sum() - self.note(self.net(self.generator(x)), (1,), "net.0").sum()


class Checkpointed(Noting):
    """Activation checkpointing, twice the same layer, and another one."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 6), reentrant

    def forward(self, x: Tensor) -> Tensor:
        for name in "aab":
            layer = getattr(self, name)
            h = checkpoint(lambda v, fc=layer: F.relu(fc(v)), x, use_reentrant=self.reentrant)
            self.note(h, (1,), name)
        return h


def set_to_zero(h: Tensor) -> Tensor:
    h[h < 0] = 0.0
    return h


def multiplied(h: Tensor) -> Tensor:
    h *= h > 0
    return h


class Gates(Noting):
    """Activations by comparison with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(14))
        self.theta = nn.Parameter(torch.full((6,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            h = layer(x)
            spelled = [
                lambda h: torch.where(h > 0, h, 0),
                lambda h: torch.where(h <= 0, torch.zeros_like(h), h),
                lambda h: torch.maximum(h, torch.zeros_like(h)),
                lambda h: torch.max(h, torch.tensor(0.0)),
                lambda h: h * (h > 0),
                lambda h: (h > self.theta).to(h.dtype) * h,
                lambda h: h.masked_fill(h < 0.1, 0.0),
                lambda h: F.leaky_relu(h, 0.0),
                lambda h: torch.where(h > 0, input=h, other=0.0),
                lambda h: h.masked_fill(mask=h < 0, value=0.0),
                lambda h: torch.fmax(h, torch.zeros_like(h)),
                lambda h: h.clamp(min=torch.tensor(0.0)),
                set_to_zero,
                multiplied,
            ][i]
            x = self.note(spelled(h), (1,), f"layers.{i}")
        return x


class TopK(nn.Module):
    """Keeps the k largest, as in sparse autoencoders."""

    def __init__(self, k: int, then: nn.Module | None = None) -> None:
        super().__init__()
        self.k, self.then = k, then

    def forward(self, x: Tensor) -> Tensor:
        values, places = x.topk(self.k, dim=-1)
        values = values if self.then is None else self.then(values)
        return torch.zeros_like(x).scatter(-1, places, values)


class Swish(nn.Module):
    """As many write it: with a module inside, here a bent one that is zero for a range."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x + 0)


class JumpReLU(nn.Module):
    """A threshold for each unit."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((units,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x > self.threshold)


class Autoencoder(Noting):
    """A sparse autoencoder's latents."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.topk = nn.Linear(6, 40), TopK(5)
        self.b, self.jump = nn.Linear(6, 40), JumpReLU(40)
        self.c, self.slope = nn.Linear(6, 40), nn.LeakyReLU(0.0)
        self.d, self.rectified = nn.Linear(6, 40), TopK(25, then=nn.ReLU())
        self.e, self.swish = nn.Linear(6, 40), Swish()

    def forward(self, x: Tensor) -> Tensor:
        self.note(self.topk(self.a(x)), (1,), "a")
        self.note(self.jump(self.b(x)), (1,), "b")
        self.note(self.rectified(self.d(x)), (1,), "d")
        self.note(self.swish(self.e(x)), (1,), "e")
        return self.note(self.slope(self.c(x)), (1,), "c")


@dataclass(frozen=True)
class Kind:
    """A kind of network."""

    name: str
    make: Callable[[], Noting]

    def __str__(self) -> str:
        return self.name

    def build(self) -> tuple[Noting, list[Tensor]]:
        torch.manual_seed(0)
        return self.make().eval(), [torch.randn(size, 6) for size in (4, 7, 5, 9)]


KINDS = [
    Kind("experts behind one activation", Experts),
    Kind("experts by rows of a stack", StackedExperts),
    Kind("experts by gathered weights", GatheredExperts),
    Kind("one encoder called twice", Siamese),
    Kind("an unrolled recurrent cell", Unrolled),
    *(
        Kind(f"critics by {how}", lambda how=how: Critics(how))
        for how in ("baddbmm", "bmm", "matmul", "einsum", "einsum of each", "vmap")
    ),
    Kind("features first", FeaturesFirst),
    Kind("concatenated ReLU", CReLU),
    Kind("residual blocks dropped at random", Blocks),
    Kind("a hypernetwork", Hyper),
    *(
        Kind(f"tied weights by {how}", lambda how=how: Tied(how))
        for how in ("linear", "matmul", "einsum", "attribute", "convolution")
    ),
    *(
        Kind(f"a graph's edges by {how}", lambda how=how: Graph(how))
        for how in ("left", "right", "einsum")
    ),
    Kind("heads merged with the batch", HeadsInBatch),
    Kind("a product by broadcasting", BroadcastProduct),
    Kind("a discriminator with weight norm", lambda: Discriminator(parametrizations.weight_norm)),
    Kind("a discriminator with weight norm by hooks", lambda: Discriminator(weight_norm)),
    Kind("a discriminator, spectral", lambda: Discriminator(parametrizations.spectral_norm)),
    Kind("checkpointing, reentrant", lambda: Checkpointed(True)),
    Kind("checkpointing, not reentrant", lambda: Checkpointed(False)),
    Kind("comparisons with itself", Gates),
    Kind("a sparse autoencoder", Autoencoder),
]


def untold(truth: Truth) -> Any:
    """Return a network's truth and leave it none."""
    kept = dict(truth)
    truth.clear()
    return kept
