"""Tags: sets of NaN by which many channels are told apart in few replays.

Each item has a tag, a set of cells (blocks of samples) and replays to be NaN in. All tags have the
same number of ones, so that two of them mixed are never taken for a third: a place that shows a tag
is reached by that item alone. A batch of 8 samples tells 70 items apart in one replay, 12 870 in
two.

A model that mixes samples (a mean over the batch, a roll of it) garbles the tags. That is noticed,
for tags are few among those there could be; with one cell, replays alone tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lightning_deadunits.observation import axis_rules as rules
from lightning_deadunits.observation.moves import MOVES
from lightning_deadunits.private_api import is_functorch_tensor
from lightning_deadunits.reinit.recording.tape import leaves_of, mapped

Item = TypeVar("Item", bound=Hashable)

LONGEST = 62
"""Bits of a code: an int64 holds them, and one for what no pass shows."""


class CellsLostError(Exception):
    """A tensor that was reached has no axis for the samples, or samples are mixed in it."""


@dataclass(frozen=True, eq=False)
class Codebook(Generic[Item]):
    """Codes for some items, and how they are spread over cells and passes.

    Attributes:
        items: The items.
        codes: Their codes, int64, one for each item.
        cells: How many blocks of samples are told apart.
        bits: Bits of a code.
    """

    items: Sequence[Item]
    codes: Tensor
    cells: int
    bits: int

    @classmethod
    def of(cls, items: Sequence[Item], cells: int) -> Codebook[Item]:
        """Make codes that tell items apart which are seen alone."""
        needed = next(n for n in range(2, LONGEST + 1) if comb(n, n // 2) >= len(items))
        bits = min(LONGEST, -(-needed // cells) * cells)  # what the passes have room for
        return cls(items, _some_codes(bits, len(items)), cells, bits)

    @classmethod
    def of_single_bits(cls, items: Sequence[Item], cells: int) -> Codebook[Item]:
        """Make codes that show also when mixed, at the price of many more passes.

        One cell of every pass is left out: where it shows, the model mixes the samples, and no
        code explains it.
        """
        per_pass = max(1, cells - 1)
        places = [i // per_pass * cells + i % per_pass for i in range(len(items))]
        return cls(items, torch.tensor([1 << place for place in places]), cells, max(places) + 1)

    @property
    def passes(self) -> int:
        """How many passes show every bit of the codes."""
        return -(-self.bits // self.cells)

    @cached_property
    def code_of(self) -> dict[Item, int]:
        """The code of each item."""
        return dict(zip(self.items, self.codes.tolist(), strict=True))

    @cached_property
    def item_of(self) -> dict[int, Item]:
        """The item of each code."""
        return {code: item for item, code in self.code_of.items()}

    def inside(self, code: int) -> list[Item]:
        """Return the items that are in a mixture.

        Raises:
            CellsLostError: If they do not explain it, so that the samples must have been mixed.
        """
        if code in self.item_of:
            return [self.item_of[code]]
        own: list[int] = self.codes[(self.codes & code) == self.codes].tolist()
        mixture = 0
        for each in own:
            mixture |= each
        if mixture != code:
            raise CellsLostError
        return [self.item_of[each] for each in own]

    def fits(self, tensor: Tensor, axes: Sequence[int]) -> bool:
        """Tell whether the samples are on some axis of a tensor, so that it can carry any code."""
        return self.cells == 1 or self._axis(tensor, axes) is not None

    def mark(self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int) -> Tensor:
        """Return a copy with the channels of some codes made NaN where pass ``number`` has a one.

        NaN is not lost in a maximum or a ReLU.

        Args:
            tensor: What is to carry the codes.
            axes: Axes that together index the channels, ascending.
            codes: Code of every channel, 0 for none, int64 of shape ``(C,)``.
            number: Which pass it is.
        """
        chosen = self._chosen(tensor, axes, codes, number)
        return torch.where(chosen.to(tensor.device), tensor + torch.nan, tensor)

    def read(self, tensor: Tensor, axes: Sequence[int], number: int) -> Tensor | None:
        """Return what pass ``number`` shows of the code at every place.

        Args:
            tensor: What may carry codes.
            axes: Axes that together index the channels, ascending; () if there are none.
            number: Which pass it is.

        Returns:
            Int64 of shape ``(P, C)``: positions, channels; None if nothing is NaN.

        Raises:
            CellsLostError: If something is NaN and there is no axis for the samples.
        """
        # A sum takes a third of the time, and most tensors carry no code at all.
        if not bool(tensor.sum().isnan()):
            return None
        changed = tensor.isnan()
        own = self._axis(changed, axes)
        if own is None and self.cells > 1:
            raise CellsLostError
        front = [] if own is None else [own]
        middle = [axis for axis in range(changed.ndim) if axis not in (*axes, *front)]
        channels = torch.Size([changed.shape[axis] for axis in axes]).numel()
        blocks = changed.permute([*front, *middle, *axes]).reshape(self.cells, -1, channels)
        weights = 1 << self._bits(number)
        return (blocks.cpu().long() * weights.reshape(-1, 1, 1)).sum(0)

    def _bits(self, number: int) -> Tensor:
        """Return which bits of a code a pass shows."""
        return torch.arange(number * self.cells, (number + 1) * self.cells).clamp(max=LONGEST)

    def _chosen(self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int) -> Tensor:
        sizes = [tensor.shape[axis] for axis in axes]
        ones = ((codes.unsqueeze(1) >> self._bits(number)) & 1).bool()
        own = self._axis(tensor, axes)
        if own is None:
            # A place without samples is always on if it can be: a code that none has.
            whole = ones[:, 0] if self.cells == 1 else codes != 0
            return _spread(whole.reshape(sizes), list(axes), tensor.ndim)
        ones = ones.repeat_interleave(tensor.shape[own] // self.cells, dim=1)
        return _spread(ones.reshape(*sizes, tensor.shape[own]), [*axes, own], tensor.ndim)

    def _axis(self, tensor: Tensor, axes: Sequence[int]) -> int | None:
        if self.cells == 1:
            return None
        for axis, size in enumerate(tensor.shape):
            if axis not in axes and size and size % self.cells == 0:
                return axis
        return None


def _spread(values: Tensor, axes: list[int], ndim: int) -> Tensor:
    """View a tensor whose axes are those of another one such that it broadcasts to that one."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    shape = [1] * ndim
    for index in order:
        shape[axes[index]] = values.shape[index]
    return values.permute(order).reshape(shape)


def _some_codes(bits: int, count: int) -> Tensor:
    """Return distinct random numbers of ``bits`` bits of which half are ones."""
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < count:
        noise = torch.rand(count, bits, generator=generator)
        drawn = (1 << noise.topk(bits // 2, dim=1).indices).sum(1)
        found = torch.unique(torch.cat((found, drawn)))
    return found[torch.randperm(len(found), generator=generator)[:count]]


# --- what calls make of tags --------------------------------------------------------------------

_CHECKS = {
    **dict.fromkeys((torch.isnan, Tensor.isnan, torch.isinf, Tensor.isinf), False),
    **dict.fromkeys((torch.isfinite, Tensor.isfinite), True),
}
"""What the model is told of a tagged tensor, for it may refuse to go on with one."""
_DROPPING = {
    *("where", "nan_to_num", "fmax", "fmin", "sign", "sgn", "heaviside"),
    *("gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal"),
    *("not_equal", "isclose", "logical_and", "logical_or", "logical_xor", "logical_not"),
}
"""Value by value, these return what is no NaN although they are given one."""
_BY_VALUE = {
    *_DROPPING,
    *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "and", "or", "xor", "invert"),
    *("rand", "ror", "rxor", "iand", "ior", "ixor", "add", "radd", "iadd", "sub", "rsub", "isub"),
    *("mul", "rmul", "imul", "div", "truediv", "rtruediv", "to", "type", "type_as", "bool", "long"),
    *("int", "float", "double", "half", "bfloat16", "byte", "short", "clone", "detach"),
    *("contiguous", "masked_fill", "maximum", "minimum", "clamp"),
}
"""What each value of their result is like depends on the values at its own place alone."""
_RANKING = {
    *("sort", "argsort", "msort", "topk", "kthvalue", "median", "nanmedian", "mode", "quantile"),
    *("nanquantile", "nanmean", "nansum", "histc", "searchsorted", "bucketize", "renorm"),
}
"""These put NaN in another place, or none."""
_SIZED = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}
"""How large their result is depends on the values; Python sees it."""
_TAINT = "_deadunits_taint"


def with_tags(
    function: Callable[..., Any], out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return a result as it should be for tags to get through.

    NaN stays, and is not told of. Booleans and integers cannot be NaN: they are *tainted* where a
    tag reached what they were computed from, as by ``h > 0``, and taint what they choose or scale.
    """
    if function in _CHECKS:
        return torch.full_like(out, _CHECKS[function])
    name = getattr(function, "__name__", "").strip("_")
    if name.endswith("_like") or name.startswith("new_"):
        return out
    given = args[:1] if name == "to" or name.endswith("_as") else (args, kwargs)  # a shape, a type
    tensors = [leaf for leaf in leaves_of(given) if isinstance(leaf, Tensor)]
    hides = name in _DROPPING or name in _RANKING
    if name == "setitem" and isinstance(args[0], Tensor):
        _write(args[0], args[1])
        return out

    def marked(item: Any) -> Any:
        if not isinstance(item, Tensor) or item.is_complex() or not is_readable(item):
            return item
        whole = not item.is_floating_point()
        hidden = [(t, taint) for t in tensors if (taint := taint_of(t, whole or hides)) is not None]
        if not hidden:
            return item
        pattern = _pattern(function, name, args, kwargs, dict(hidden), item)
        if not whole and any(item is tensor for tensor in tensors):
            return item.masked_fill_(pattern, torch.nan)
        if not whole:
            return item.masked_fill(pattern, torch.nan)
        setattr(item, _TAINT, pattern)
        return item

    return mapped(out, marked)


def taint_of(tensor: Tensor, tagged: bool = True) -> Tensor | None:
    """Return where a tensor is tainted, or tagged; None if nowhere.

    Args:
        tensor: The tensor.
        tagged: Whether NaN of floating point tensors counts.
    """
    if tensor.is_floating_point():
        if not tagged or is_functorch_tensor(tensor) or not bool(tensor.sum().isnan()):
            return None
        return tensor.isnan()
    taint: Tensor | None = getattr(tensor, _TAINT, None)
    return taint


def _pattern(
    function: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    hidden: dict[Tensor, Tensor],
    out: Tensor,
) -> Tensor:
    """Return where a result depends on what is tainted: by value, by place, or by sample."""
    pattern = torch.zeros(out.shape, dtype=torch.bool, device=out.device)
    if name in _BY_VALUE:
        for taint in hidden.values():
            pattern = pattern | taint
        if pattern.shape == out.shape:
            return pattern
        pattern = torch.zeros(out.shape, dtype=torch.bool, device=out.device)
    elif MOVES.get(function, rules.reduce) is not rules.reduce and args:

        def as_numbers(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return hidden[leaf].float() if leaf in hidden else torch.zeros(leaf.shape)

        moved = function(mapped(args[0], as_numbers), *args[1:], **kwargs)
        if isinstance(moved, Tensor) and moved.shape == out.shape:
            return moved != 0
    for taint in hidden.values():
        if taint.ndim and out.ndim and taint.shape[0] == out.shape[0]:
            taint = taint.flatten(1).any(1) if taint.ndim > 1 else taint
            pattern = pattern | taint.reshape(-1, *[1] * (out.ndim - 1))
        else:
            pattern = pattern | taint.any()
    return pattern


def _write(target: Tensor, index: Any) -> None:
    """Taint what is written where a tainted index says."""
    for place in leaves_of(index):
        taint = taint_of(place, tagged=False) if isinstance(place, Tensor) else None
        if taint is not None and target.is_floating_point():
            target.masked_fill_(taint if taint.shape == target.shape else taint.any(), torch.nan)


def is_readable(out: Any) -> bool:
    """Tell whether a result may hold values: no shape, and none of ``torch.vmap``'s, say."""
    if isinstance(out, Tensor):
        return not is_functorch_tensor(out)
    return isinstance(out, (tuple, list, dict)) and type(out) is not torch.Size


def sizes_by(function: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """Return the tainted tensors by whose values the size of a result goes: Python sees that."""
    name = getattr(function, "__name__", "").strip("_")
    if name == "getitem":
        given = [leaf for leaf in leaves_of(args[1]) if isinstance(leaf, Tensor)]
        given = [mask for mask in given if mask.dtype == torch.bool]
    elif name in _SIZED or (name == "where" and len(args) == 1):
        given = [leaf for leaf in leaves_of(args) if isinstance(leaf, Tensor)]
    else:
        return []
    return [tensor for tensor in given if taint_of(tensor) is not None]
