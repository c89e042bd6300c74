"""Which functions carry units along, and by which rule.

Everything that has no rule here keeps them where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.lineage import axis_rules as rules
from lightning_deadunits.observation.lineage.axes import Move
from lightning_deadunits.observation.lineage.ways import getter

_RESHAPES = (
    *(Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten, Tensor.ravel),
    *(torch.ravel, Tensor.unflatten, torch.unflatten, Tensor.view_as, Tensor.reshape_as),
    *(Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze),
)
_TRANSPOSES = (
    *(Tensor.transpose, torch.transpose, Tensor.transpose_, Tensor.swapdims, torch.swapdims),
    *(Tensor.swapaxes, torch.swapaxes, Tensor.swapaxes_, Tensor.swapdims_),
)
_TRANSPOSES_LAST = (
    *(Tensor.t, Tensor.t_, torch.t, Tensor.adjoint, torch.adjoint),
    *(getter("mT"), getter("mH")),
)
_REDUCTIONS = tuple(
    getattr(home, name)
    for home in (torch, Tensor)
    for name in (
        *("sum", "mean", "amax", "amin", "max", "min", "prod", "std", "var", "logsumexp"),
        *("median", "any", "all", "argmax", "argmin", "nansum", "nanmean", "count_nonzero", "mode"),
    )
)
_KEEPS = (
    *(torch.cat, torch.concat, torch.concatenate, torch.hstack, torch.chunk, Tensor.chunk),
    *(torch.split, Tensor.split, Tensor.split_with_sizes, torch.hsplit, Tensor.hsplit),
    *(torch.vsplit, Tensor.vsplit, torch.dsplit, Tensor.dsplit),
    *(Tensor.tensor_split, torch.tensor_split, Tensor.narrow, torch.narrow, F.pad, F.glu),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.interpolate, Tensor.repeat),
    *(torch.index_select, Tensor.index_select, Tensor.repeat_interleave, torch.repeat_interleave),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.channel_shuffle, torch.channel_shuffle),
)

MOVES: dict[Callable[..., Any], Move] = {
    **dict.fromkeys(_RESHAPES, rules.reshape),
    **dict.fromkeys((Tensor.permute, torch.permute), rules.permute),
    **dict.fromkeys(_TRANSPOSES, rules.transpose),
    **dict.fromkeys(_TRANSPOSES_LAST, rules.transpose_last),
    **dict.fromkeys((getter("T"), getter("H")), rules.reverse),
    **dict.fromkeys(
        (torch.movedim, Tensor.movedim, torch.moveaxis, Tensor.moveaxis), rules.movedim
    ),
    **dict.fromkeys(_REDUCTIONS, rules.reduce),
    **dict.fromkeys((Tensor.select, torch.select, Tensor.unbind, torch.unbind), rules.drop),
    torch.stack: rules.stack,
    Tensor.unsqueeze_: rules.unsqueeze_,
    Tensor.unfold: rules.unfold,
    Tensor.__getitem__: rules.getitem,
    **dict.fromkeys(_KEEPS, rules.keep_rank),
}

OPAQUE = {
    *(torch.tensordot, torch.inner, Tensor.inner, torch.linalg.multi_dot, torch.chain_matmul),
    *(torch.cdist, torch.kron, Tensor.kron, torch.rot90, Tensor.rot90, torch.view_as_real),
    *(Tensor.squeeze_, Tensor.as_strided, torch.as_strided, Tensor.as_strided_, Tensor.resize_),
    *(F.fold, torch.dstack, torch.column_stack, torch.block_diag, torch.cartesian_prod),
}
"""Functions of whose results nothing is known: sizes that happen to fit would tell wrong axes."""

PERMUTATIONS = {rules.permute, rules.transpose, rules.transpose_last, rules.reverse, rules.movedim}
"""Moves that change nothing but the order of the axes."""
