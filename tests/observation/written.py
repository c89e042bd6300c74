"""Layers as people write them, of one or two lines each; they note what truly makes their units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.observation.kinds import Kind, Noting


class Written(Noting):
    """A network of some parts and a function of them.

    Args:
        run: Returns the output of the network, given itself and its input.
        parts: Its modules and parameters.
    """

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def drawn(*shape: int) -> nn.Parameter:
    """Return a parameter that makes dead units of some and firing ones of others."""
    return nn.Parameter(torch.randn(shape))


def dying(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer of which unit 1 is dead."""
    layer = nn.Linear(inputs, outputs)
    nn.init.constant_(layer.bias[1:2], -100.0)
    return layer


def modulated(net: Any, x: Tensor) -> Tensor:
    """Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020."""
    images = x.repeat_interleave(6, 1).view(-1, 3, 4, 3)
    filters = net.w[None] * net.style(x)[:, None, :, None, None]
    out = F.conv2d(
        images.reshape(1, -1, 4, 3), filters.reshape(-1, 3, 3, 3), padding=1, groups=len(x)
    )
    return net.note(F.relu(out.reshape(len(x), 3, 4, 3)), (1,), "style", "w")


def mixed_filters(net: Any, x: Tensor) -> Tensor:
    """Chen et al., "Dynamic Convolution", 2020; samples one by one in the last call."""
    images = x.repeat_interleave(6, 1).view(-1, 2, 6, 3)
    for part in (images[:-1], images[-1:]):
        share = net.attend(part.mean((2, 3))).softmax(1)
        filters = torch.einsum("nk,koihw->noihw", share, net.w).reshape(-1, 2, 3, 3)
        out = F.conv2d(part.reshape(1, -1, 6, 3), filters, groups=len(part))
        net.note(F.relu(out.view(len(part), 5, 4, 1)), (1,), "w")
    return images


def chain(net: Any, x: Tensor) -> Tensor:
    """Products with vectors, by square weights."""
    for row in x:
        first = net.note(F.relu(net.first @ row), (0,), "first")
        second = net.note(F.relu(torch.mv(net.second, first)), (0,), "second")
        net.note(F.relu(net.third.matmul(second)), (0,), "third")
    return x


def cell(net: Any, x: Tensor) -> Tensor:
    """A cell whose part of the input is computed once: Li et al., "IndRNN", 2018."""
    hidden, read = x.new_zeros(len(x), 5), net.read(x)
    for _ in range(2 + len(x) % 3):
        hidden = net.note(F.relu(read + net.keep * hidden), (1,), "read")
    return hidden


def written_rows(net: Any, x: Tensor) -> Tensor:
    """A sequence filled step by step, as many steps as features."""
    out = x.new_zeros(len(x), 5, 5)
    for step in range(5):
        out[:, :, step] = net.fc(x + step)
    return net.note(net.act(out), (1,), "fc")


def one_for_all(net: Any, x: Tensor, how: str) -> Tensor:
    """One weight, once for every sample."""
    if how == "einsum":
        out = torch.einsum("bi,bio->bo", x, net.w.expand(len(x), -1, -1))
    else:
        out = torch.bmm(x[:, None], torch.stack([net.w] * len(x)))[:, 0]
    return net.note(F.relu(out), (1,), "w")


def one_each(net: Any, x: Tensor) -> Tensor:
    """An expert for every sample, their weights stacked by hand."""
    chosen = [int(value > 0) for value in x[:, 0]]
    out = F.relu(torch.bmm(x[:, None], torch.stack([net.w[k] for k in chosen]))[:, 0])
    for k in set(chosen):
        net.note(out[[own == k for own in chosen]], (1,), f"w.{k}")
    return out


def shared_expert(net: Any, x: Tensor) -> Tensor:
    """An expert for all tokens beside one that is chosen."""
    chosen = (x[:, 0] * 7).long().abs() % 3
    out = F.relu(torch.bmm(x[:, None], net.w[chosen])[:, 0] + net.shared(x))
    for k in chosen.unique().tolist():
        net.note(out[chosen == k], (1,), f"w.{k}", "shared")
    return out


def gated_expert(net: Any, x: Tensor) -> Tensor:
    """Two projections of one expert, multiplied: the rows of both are the same expert's."""
    chosen = (x[:, 0] * 7).long().abs() % 3
    gate = torch.bmm(x[:, None], net.gate[chosen])[:, 0]
    out = F.relu(gate * torch.bmm(x[:, None], net.up[chosen])[:, 0])
    for k in chosen.unique().tolist():
        net.note(out[chosen == k], (1,), f"gate.{k}", f"up.{k}")
    return out


def density(net: Any, x: Tensor) -> Tensor:
    """Mildenhall et al., "NeRF", 2020: one unit of a layer is rectified, three are not."""
    raw = net.out(x)
    sigma = net.note(F.relu(raw[..., 3])[:, None], (1,), "out")
    return torch.sigmoid(raw[..., :3]) * sigma


def squeezed(net: Any, x: Tensor) -> Tensor:
    """One output, a last batch of one sample squeezed to a number."""
    net.note(F.relu(net.fc(x).squeeze()).view(-1, 1), (1,), "fc")
    return net.note(F.relu(net.fc(x[:1]).squeeze()).view(1, 1), (1,), "fc")


def same_parts(net: Any, x: Tensor) -> Tensor:
    """One part of the units, spelled in three ways."""
    for part in (slice(0, 8, 2), slice(None, None, 2), slice(0, 99, 2)):
        net.note(net.act(net.fc(x)[:, part]), (1,), "fc")
    return x


def gathered_scales(net: Any, x: Tensor) -> Tensor:
    """BatchEnsemble (Wen, Tran & Ba, 2020), its members chosen by sample."""
    chosen = (x[:, 0] * 7).long().abs() % 3
    out = F.relu((x @ net.w)[:, None] * net.scale[chosen])[:, 0]
    for k in chosen.unique().tolist():
        net.note(out[chosen == k], (1,), "w", f"scale.{k}")
    return out


def overwritten(net: Any, x: Tensor) -> Tensor:
    """Memory that is written over as a whole, by one layer and then by another."""
    memory = torch.empty(len(x), 5)
    memory.copy_(net.one(x))
    net.note(net.act(memory), (1,), "one")
    memory.copy_(net.other(x))
    return net.note(net.act(memory), (1,), "other")


def gated_latents(net: Any, x: Tensor, how: str) -> Tensor:
    """Rajamanoharan et al., "Gated Sparse Autoencoders", 2024: a gate has a shift of its own."""
    gate, values = x @ net.w + net.shift, F.relu(x @ (net.w * net.scale.exp()) + net.bias)
    net.note(values, (1,), "w", "scale", "bias")
    if how == "product":
        out = (gate > 0).to(x.dtype) * values
    elif how == "where":
        out = torch.where(gate > 0, values, 0.0)
    else:
        out = values.masked_fill_(gate <= 0, 0.0)
    return net.note(out, (1,), "w", "scale", "shift", "bias")


_NEIGHBOURS = np.array([[0, 1, 3, 2, 2], [2, 3, 1, 0, 0]])

SPELLINGS: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[], dict[str, Any]]]] = {
    "a modulated convolution": (
        modulated,
        lambda: {"w": drawn(3, 3, 3, 3), "style": nn.Linear(6, 3)},
    ),
    "a dynamic convolution": (
        mixed_filters,
        lambda: {"w": drawn(2, 5, 2, 3, 3), "attend": nn.Linear(2, 2)},
    ),
    "a product with a vector": (
        lambda net, x: net.note(F.relu(x @ net.w)[:, None], (1,), "w"),
        lambda: {"w": drawn(6)},
    ),
    "an einsum with a vector": (
        lambda net, x: net.note(F.relu(torch.einsum("bi,i->b", x, net.w))[:, None], (1,), "w"),
        lambda: {"w": drawn(6)},
    ),
    "square weights times vectors": (
        chain,
        lambda: {"first": drawn(6, 6), "second": drawn(6, 6), "third": drawn(6, 6)},
    ),
    "weights of each sample times it": (
        lambda net, x: net.note(
            F.relu(torch.bmm(net.hyper(x).view(-1, 5, 6), x[:, :, None])[:, :, 0]), (1,), "hyper"
        ),
        lambda: {"hyper": nn.Linear(6, 30)},
    ),
    "each sample times weights of its own": (
        lambda net, x: net.note(
            F.relu(torch.bmm(x[:, None], net.hyper(x).view(-1, 6, 5))[:, 0]), (1,), "hyper"
        ),
        lambda: {"hyper": nn.Linear(6, 30)},
    ),
    "tokens mixed by an einsum": (
        lambda net, x: net.note(
            F.relu(torch.einsum("ntc,ts->nsc", net.fc(x[:, None] + net.steps), net.w)), (1,), "w"
        ),
        lambda: {"fc": nn.Linear(6, 5), "w": drawn(3, 4), "steps": torch.randn(3, 6)},
    ),
    "a raw input, a gate and stacked weights": (
        lambda net, x: net.note(
            F.relu(
                torch.einsum("bti,be,eio->bto", x.view(-1, 2, 3), net.gate(x).softmax(-1), net.w)
            ),
            (2,),
            "w",
        ),
        lambda: {"gate": nn.Linear(6, 2), "w": drawn(2, 3, 5)},
    ),
    "weights of each sample's and its tokens": (
        lambda net, x: net.note(
            F.relu(torch.einsum("boi,bti->bto", net.hyper(x).view(-1, 5, 3), x.view(-1, 2, 3))),
            (2,),
            "hyper",
        ),
        lambda: {"hyper": nn.Linear(6, 15)},
    ),
    "a vector times tokens": (
        lambda net, x: net.note(F.relu(net.w @ x.view(-1, 2, 3))[..., None], (2,), "w"),
        lambda: {"w": drawn(2)},
    ),
    "stacked weights times a vector": (
        lambda net, x: [net.note(F.relu(net.w @ row), (0, 1), "w") for row in x],
        lambda: {"w": drawn(2, 4, 6)},
    ),
    "gathered factors of a shared product": (
        gathered_scales,
        lambda: {"w": drawn(6, 5), "scale": drawn(3, 1, 5)},
    ),
    "memory that is written over": (
        overwritten,
        lambda: {"one": dying(6, 5), "other": nn.Linear(6, 5), "act": nn.ReLU()},
    ),
    "one weight expanded over samples": (
        lambda net, x: one_for_all(net, x, "einsum"),
        lambda: {"w": drawn(6, 5)},
    ),
    "one weight stacked over samples": (
        lambda net, x: one_for_all(net, x, "stack"),
        lambda: {"w": drawn(6, 5)},
    ),
    "an expert of each sample's, stacked": (one_each, lambda: {"w": drawn(2, 6, 5)}),
    "a shared expert beside gathered ones": (
        shared_expert,
        lambda: {"w": drawn(3, 6, 5), "shared": nn.Linear(6, 5)},
    ),
    "a gated expert, gathered": (
        gated_expert,
        lambda: {"gate": drawn(3, 6, 5), "up": drawn(3, 6, 5)},
    ),
    "an index by an array": (
        lambda net, x: net.note(F.relu(net.fc(x)[_NEIGHBOURS]), (2,), "fc"),
        lambda: {"fc": dying(6, 5)},
    ),
    "axes swapped in place": (
        lambda net, x: net.note(F.relu(net.fc(x.view(-1, 2, 3)).swapdims_(1, 2)), (1,), "fc"),
        lambda: {"fc": dying(3, 5)},
    ),
    "a sequence written step by step": (
        written_rows,
        lambda: {"fc": dying(6, 5), "act": nn.ReLU()},
    ),
    "a cell that reads its input once": (
        cell,
        lambda: {"read": nn.Linear(6, 5), "keep": drawn(5)},
    ),
    "a part spelled otherwise": (same_parts, lambda: {"fc": dying(6, 8), "act": nn.ReLU()}),
    "samples split in two": (
        lambda net, x: [
            net.note(net.act(half), (1,), "fc") for half in torch.vsplit(net.fc(x), [2])
        ],
        lambda: {"fc": dying(6, 5), "act": nn.ReLU()},
    ),
    "subtracted by a factor": (
        lambda net, x: (
            net.note(F.relu(torch.add(x, net.fc(x), alpha=-1)), (1,), "fc", "neg")
            + net.note(F.relu(torch.add(x, net.fc(x), alpha=2)), (1,), "fc")
        ),
        lambda: {"fc": dying(6, 6)},
    ),
    **{
        f"raw features, each with weights of its own, by {how}": (
            lambda net, x, run=run: net.note(
                F.relu(run(x[..., None], net.w, net.bias)), (1, 2), "w", "bias"
            ),
            lambda: {"w": drawn(6, 3), "bias": drawn(6, 3)},
        )
        for how, run in (
            ("addcmul", lambda x, w, bias: torch.addcmul(bias, w, x)),
            ("multiplying", lambda x, w, bias: x * w + bias),
            ("multiplying them", lambda x, w, bias: bias + w * x),
        )
    },
    **{
        f"latents with a gate, by {how}": (
            lambda net, x, how=how: gated_latents(net, x, how),
            lambda: {
                "w": drawn(6, 5),
                "scale": drawn(5),
                "shift": nn.Parameter(torch.tensor([0.0, -99, 1, 0, -99])),
                "bias": drawn(5),
            },
        )
        for how in ("product", "where", "filling")
    },
    "units multiplied by a number": (
        lambda net, x: net.note(F.relu(net.fc(x) * 3), (1,), "fc"),
        lambda: {"fc": dying(6, 5)},
    ),
    "one unit of several": (density, lambda: {"out": dying(6, 4)}),
    "a single output, squeezed": (squeezed, lambda: {"fc": nn.Linear(6, 1)}),
    "a norm of channels and positions": (
        lambda net, x: net.note(F.relu(net.norm(net.fc(x.view(-1, 2, 3, 1)))), (1,), "fc", "norm"),
        lambda: {"fc": nn.Conv2d(2, 4, 1), "norm": nn.LayerNorm([4, 3, 1])},
    ),
}

WRITTEN = [
    Kind(name, lambda run=run, parts=parts: Written(run, **parts()))
    for name, (run, parts) in SPELLINGS.items()
]
"""Of none of these the order of calls, or the place of an axis, tells what its units are."""
