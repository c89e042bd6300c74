"""Which positions of a batch are padding, as torch's own transformer layers are told.

In eval mode ``nn.TransformerEncoder`` drops padded positions by a fused kernel; with an observer
in place it computes them, and throws them away. They are nobody's activations: neither zeros nor
firing, they do not count as values seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Padding(NamedTuple):
    """Padded positions of the sequences that a layer works on.

    Attributes:
        mask: Bool, shape ``(N, T)`` or ``(T,)``, True where padded; None if nothing is.
        batch_first: Whether activations are ``(N, T, *)`` rather than ``(T, N, *)``.
    """

    mask: Tensor | None
    batch_first: bool


def reads_padding(module: nn.Module) -> bool:
    """Tell whether a module is told by its caller what is padding."""
    return isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))


def padding_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Padding:
    """Return the padding that a transformer layer was called with."""
    decoder = isinstance(module, nn.TransformerDecoderLayer)
    keyword, position = ("tgt_key_padding_mask", 4) if decoder else ("src_key_padding_mask", 2)
    mask = args[position] if len(args) > position else kwargs.get(keyword)
    attention = module.self_attn
    # A subclass may take other arguments and attend in its own way: then nothing is told.
    if not (isinstance(mask, Tensor) and isinstance(attention, nn.MultiheadAttention)):
        return Padding(None, True)
    if mask.dtype != torch.bool:
        mask = mask == -torch.inf
    return Padding(mask, attention.batch_first)


def padded_values(padding: Padding | None, activation: Tensor) -> Tensor | None:
    """Return which values of an activation are padding, broadcastable to it, None if none is."""
    if padding is None or padding.mask is None:
        return None
    mask = padding.mask
    if mask.ndim == 2 and not padding.batch_first:
        mask = mask.t()
    if activation.ndim != mask.ndim + 1 or activation.shape[: mask.ndim] != mask.shape:
        return None
    return mask.unsqueeze(-1)
