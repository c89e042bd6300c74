"""What calls make of tags: NaN is hidden by some functions, and cannot be in booleans at all.

Booleans and integers are *tainted* where a tag reached what they were computed from, as by
``h > 0``, and taint what they choose or scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage import axis_rules as rules
from lightning_deadunits.observation.lineage.moves import MOVES
from lightning_deadunits.observation.lineage.ways import axis_of
from lightning_deadunits.private_api import is_functorch_tensor
from lightning_deadunits.reinit.recording.functions import name_of
from lightning_deadunits.reinit.recording.tape import mapped, tensors_of

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
    """Return a result as it should be for tags to get through: NaN stays, and is not told of."""
    if function in _CHECKS:
        return torch.full_like(out, _CHECKS[function])
    name = name_of(function).strip("_")
    if name.endswith("_like") or name.startswith("new_"):
        return out
    given = args[:1] if name == "to" or name.endswith("_as") else (args, kwargs)  # a shape, a type
    tensors = tensors_of(given)
    hides = name in _DROPPING or name in _RANKING
    if name == "setitem" and isinstance(args[0], Tensor):
        _write(args[0], args[1])
        return out

    def marked(item: Any) -> Any:
        if not isinstance(item, Tensor) or item.is_complex() or is_functorch_tensor(item):
            return item
        whole = not item.is_floating_point()
        hidden = [(t, taint) for t in tensors if (taint := taint_of(t, whole or hides)) is not None]
        if not hidden:
            return item
        pattern = _pattern(function, name, args, kwargs, dict(hidden), item)
        if whole:
            setattr(item, _TAINT, pattern)
            return item
        in_place = any(item is tensor for tensor in tensors)
        return (item.masked_fill_ if in_place else item.masked_fill)(pattern, torch.nan)

    return mapped(out, marked)


def taint_of(tensor: Tensor, tagged: bool = True) -> Tensor | None:
    """Return where a tensor is tainted, or tagged with NaN if that counts; None if nowhere."""
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
    nowhere = pattern = torch.zeros(out.shape, dtype=torch.bool, device=out.device)
    if name in _BY_VALUE:
        for taint in hidden.values():
            pattern = pattern | taint
        if pattern.shape == out.shape:
            return pattern
    elif MOVES.get(function, rules.reduce) is not rules.reduce and all(
        any(tensor is leaf for leaf in tensors_of(args[0])) for tensor in hidden
    ):

        def as_numbers(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return hidden[leaf].float() if leaf in hidden else torch.zeros_like(leaf).float()

        moved = function(mapped(args[0], as_numbers), *args[1:], **kwargs)
        if isinstance(moved, Tensor) and moved.shape == out.shape:
            return moved != 0
    axis = axis_of(function, args, kwargs) if name in _RANKING else None
    if axis is not None and [id(tensor) for tensor in hidden] == [id(args[0])]:
        ranked = hidden[args[0]].any(axis, keepdim=out.ndim == args[0].ndim)
        if ranked.ndim == out.ndim:
            return ranked.expand(out.shape)
    pattern = nowhere
    for taint in hidden.values():
        if taint.ndim and out.ndim and taint.shape[0] == out.shape[0]:
            taint = taint.flatten(1).any(1) if taint.ndim > 1 else taint
            pattern = pattern | taint.reshape(-1, *[1] * (out.ndim - 1))
        else:
            pattern = pattern | taint.any()
    return pattern


def _write(target: Tensor, index: Any) -> None:
    """Taint what is written where a tainted index says."""
    for place in tensors_of(index):
        taint = taint_of(place, tagged=False)
        if taint is not None and target.is_floating_point():
            target.masked_fill_(taint if taint.shape == target.shape else taint.any(), torch.nan)


def steering(function: Callable[..., Any], args: tuple[Any, ...], looks_up: bool) -> list[Tensor]:
    """Return the tainted tensors by whose values a call steers the model.

    They choose rows of weights, as integers do where it looks something up, or the size of the
    result goes by them, which Python sees.
    """
    name = name_of(function).strip("_")
    masks = name == "getitem"
    sized = name in _SIZED or (name == "where" and len(args) == 1)
    if not (masks or sized or looks_up):
        return []
    given = tensors_of(args[1] if masks else args)
    if not sized:
        given = [t for t in given if t.dtype == torch.bool or not (masks or t.is_floating_point())]
    return [tensor for tensor in given if taint_of(tensor) is not None]


def is_readable(out: Any) -> bool:
    """Tell whether a result may hold values: no shape, and none of ``torch.vmap``'s, say."""
    if isinstance(out, Tensor):
        return not is_functorch_tensor(out)
    return isinstance(out, (tuple, list, dict)) and type(out) is not torch.Size
