"""The registry: which function is described by which rule, and what becomes of the others.

A new operation is taught here, by a line in ``_DESCRIBERS`` that names its rule. A rule is given
one call and says which channels it reads and makes, by which of its weights; or None, if it does
not hold for this call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.lineage.moves import MOVES
from lightning_deadunits.reinit.ops.conv_norm import convolution, norm
from lightning_deadunits.reinit.ops.elementwise import FACTORS, SUMS, elementwise
from lightning_deadunits.reinit.ops.linear import (
    addmm,
    bilinear,
    einsum,
    embedding,
    grouped,
    inner,
    linear,
    matmul,
    multi_dot,
    rmatmul,
    tensordot,
)
from lightning_deadunits.reinit.ops.operation import Described, Given, Kind, Operation
from lightning_deadunits.reinit.recording.functions import DESCRIBED
from lightning_deadunits.reinit.recording.tape import tensors_of

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MATMULS = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm),
    *(torch.mv, Tensor.mv, torch.dot, Tensor.dot),
)
_GROUPED = tuple(
    getattr(home, name)
    for home, name in ((F, "grouped_mm"), (torch, "_grouped_mm"))
    if hasattr(home, name)
)
_ADDMMS = (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)
_AFFINE = ("weight", "bias")
_RUNNING = ("running_mean", "running_var")

_MOVES = {
    *MOVES,
    *(torch.where, Tensor.where, Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.hstack),
    *(torch.vstack, Tensor.masked_fill, torch.masked_fill, Tensor.contiguous, Tensor.to),
    *(Tensor.clone, torch.clone, Tensor.float, Tensor.type_as, Tensor.__setitem__, F.prelu),
}

PRODUCTS = {
    *(*_CONVOLUTIONS, *_TRANSPOSED, *_MATMULS, *_ADDMMS, *_GROUPED),
    *(F.linear, F.bilinear, Tensor.__rmatmul__),
    *(torch.einsum, torch.inner, Tensor.inner, torch.tensordot, F.scaled_dot_product_attention),
    *(torch.sparse.mm, torch.bilinear, torch.linalg.multi_dot),
}

_DESCRIBERS: dict[Callable[..., Any], Callable[[Given], Described | None]] = {
    **{function: convolution(n + 1, False) for n, function in enumerate(_CONVOLUTIONS)},
    **{function: convolution(n + 1, True) for n, function in enumerate(_TRANSPOSED)},
    **dict.fromkeys(_MATMULS, matmul),
    **dict.fromkeys(_ADDMMS, addmm),
    **dict.fromkeys(_GROUPED, grouped),
    **dict.fromkeys((torch.inner, Tensor.inner), inner),
    **dict.fromkeys((F.bilinear, torch.bilinear), bilinear),
    **dict.fromkeys((*SUMS, *FACTORS), elementwise),
    **dict.fromkeys(
        (F.group_norm, torch.group_norm), norm("input", "num_groups", *_AFFINE, mixes=True)
    ),
    **dict.fromkeys((F.embedding, F.embedding_bag), embedding),
    F.linear: linear,
    Tensor.__rmatmul__: rmatmul,
    torch.tensordot: tensordot,
    torch.linalg.multi_dot: multi_dot,
    torch.einsum: einsum,
    F.batch_norm: norm("input", *_RUNNING, *_AFFINE, "training", mixes=False),
    torch.batch_norm: norm("input", *_AFFINE, *_RUNNING, "training", mixes=False),
    F.instance_norm: norm("input", *_RUNNING, *_AFFINE, "use_input_stats", mixes=False),
    torch.instance_norm: norm("input", *_AFFINE, *_RUNNING, "use_input_stats", mixes=False),
    F.layer_norm: norm("input", "normalized_shape", *_AFFINE, mixes=True),
    torch.layer_norm: norm("input", "normalized_shape", *_AFFINE, mixes=True),
    F.rms_norm: norm("input", "normalized_shape", "weight", mixes=True),
    torch.rms_norm: norm("input", "normalized_shape", "weight", mixes=True),
}


DESCRIBED.update(_DESCRIBERS)


def describe(given: Given) -> Described | None:
    """Return what a call does and the activations it reads, None if it has no weights."""
    describer = _DESCRIBERS.get(given.function)
    described = None
    with suppress(Exception):  # an unforeseen signature: what it does is unknown then
        described = describer(given) if describer else None
    return described or _otherwise(given)


def _otherwise(given: Given) -> Described | None:
    """Describe a call that has no rule, or of which its rule does not hold."""
    if not any(tensor.is_floating_point() for tensor in tensors_of(given.out)):
        return None
    floats = [t for t in tensors_of((given.args, given.kwargs)) if t.is_floating_point()]
    reads = [tensor for tensor in floats if not given.owns(tensor)]
    if len(reads) == len(floats):
        product = given.function in PRODUCTS and len(reads) > 1
        return (Operation("product", given.function), reads) if product else None
    if all(given.owns(tensor) for tensor in tensors_of(given.out)):
        return None  # a view of a parameter
    kind: Kind = "link" if given.function in _MOVES else "opaque"
    return Operation(kind, given.function), reads
