"""What functions do to the units on the way from their producers to the activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_WORDS = {
    **{name: name for name in ("add", "mul", "div", "pow", "square", "sqrt", "rsqrt", "abs")},
    **{name: name for name in ("exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos")},
    **{name: name for name in ("sign", "round", "floor", "ceil", "remainder", "reciprocal")},
    **dict.fromkeys(("iadd", "radd"), "add"),
    **dict.fromkeys(("sub", "subtract", "isub", "rsub"), "sub"),
    **dict.fromkeys(("imul", "rmul", "multiply"), "mul"),
    **dict.fromkeys(("truediv", "true_divide", "divide", "itruediv"), "div"),
    **dict.fromkeys(("rtruediv", "rdiv"), "rdiv"),
    **{name: name for name in ("maximum", "minimum", "fmax", "fmin", "real", "imag", "angle")},
    **dict.fromkeys(("cumsum", "cumprod", "roll", "flip"), "roll"),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), "permute"),
}
"""Arithmetic by the names of its functions; a constant's value is not told, it may change."""


def _named(name: str) -> list[Callable[..., Any]]:
    """Return the functions of torch of one name, in place or not, operators too."""
    spelled = (name, f"{name}_", f"__{name}__")
    found = [getattr(home, each, None) for home in (torch, Tensor) for each in spelled]
    return [function for function in found if callable(function)]


_IN_PLACE_OPERATORS = {
    *("iadd", "isub", "imul", "itruediv", "idiv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
}
_NEGATIONS = {"neg", "negative", "rsub"}
_SUBTRACTIONS = {"sub", "subtract", "isub"}
_ADDITIONS = {"add", "iadd"}
TIMES = {f for name in ("mul", "multiply", "imul", "rmul") for f in _named(name)}
"""Functions that multiply value by value."""

FACTORS = {*TIMES, *_named("div")}
"""Functions that multiply or divide value by value."""

JOINS_ALONG = {torch.cat, torch.concat, torch.concatenate, torch.stack}
"""Moves that bring tensors together along an axis that they are told."""

JOINS = JOINS_ALONG | {torch.hstack, torch.vstack}
"""Moves that bring the units of several tensors together."""

PIECES = {
    *(torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.split_with_sizes),
    *(torch.tensor_split, Tensor.tensor_split, torch.unbind, Tensor.unbind),
    *(torch.hsplit, Tensor.hsplit, torch.vsplit, Tensor.vsplit, torch.dsplit, Tensor.dsplit),
}
"""Functions that return the parts of a tensor, in order."""

CHOICES = {
    *(Tensor.__getitem__, torch.select, Tensor.select, Tensor.narrow, torch.narrow),
    *(torch.index_select, Tensor.index_select),
}
"""Functions that return one part of a tensor."""

REPEATS = {
    *(Tensor.repeat, torch.tile, Tensor.tile, torch.repeat_interleave, Tensor.repeat_interleave),
}
"""Functions that return a tensor several times over."""

EXPANSIONS = {Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to}
"""Functions that show an axis of one place as one of several."""

_ROW_WRITES = (
    *("index_add", "index_copy", "index_put", "scatter", "scatter_add", "scatter_reduce"),
    *("masked_scatter", "slice_scatter", "select_scatter"),
)
ROW_WRITES = {function for name in _ROW_WRITES for function in _named(name)}
"""Functions that put rows of a tensor in the place of some of another one, or add them to these."""

SCRAMBLES = ROW_WRITES | {
    function
    for name in ("gather", "take_along_dim", "take", "sort", "msort", "argsort", "topk", "flip")
    for function in _named(name)
}
"""Functions after which rows stand where others stood."""

ROW_ADDITIONS = {f for f in ROW_WRITES if "add" in f.__name__}

OVERWRITES = {
    *(Tensor.copy_, Tensor.zero_, Tensor.fill_, Tensor.normal_, Tensor.uniform_, Tensor.random_),
    *(Tensor.bernoulli_, torch.rand_like, torch.randn_like, torch.randint_like),
}
"""Functions in whose result nothing is left of what their first argument was, but its shape."""

_AXES: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("sort", "argsort", "mode", "gather"), (1, -1)),
    **dict.fromkeys(("topk", "kthvalue"), (2, -1)),
    **dict.fromkeys(("median", "nanmedian", "nanmean", "nansum"), (1, None)),
    **dict.fromkeys(("quantile", "nanquantile", "take_along_dim"), (2, None)),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), (2, 0)),
    **dict.fromkeys(("unbind", "msort"), (1, 0)),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), (1, 0)),
    "vsplit": (2, 0),
    "hsplit": (2, 1),
    "dsplit": (2, 2),
}
"""Where functions are given an axis, and which one is meant if they are not; None for all."""

REDUCES_OR_CHOOSES = {torch.max, Tensor.max, torch.min, Tensor.min}
"""Functions that reduce one tensor, or choose value by value among two."""

WRITES = {Tensor.__setitem__}
"""Functions that return nothing and write into what they are given."""


def getter(name: str) -> Callable[..., Any]:
    """Return the function that a torch function mode is given for ``x.<name>``."""
    found: Callable[..., Any] = getattr(Tensor, name).__get__
    return found


_GETTERS = {getter("real"): "real", getter("imag"): "imag"}


def way_of(function: Callable[..., Any]) -> str:
    """Return what a function does to units, in a word, "" for nothing that matters."""
    return _GETTERS.get(function) or _WORDS.get(plain_name(function), "")


def turned(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Any
) -> str:
    """Return the word for a function that rolls or flips: with its numbers if units are moved.

    Args:
        function: The function.
        args: What it was given.
        kwargs: What it was given by name.
        axes: The unit axes of its first argument.
    """
    name, ndim = plain_name(function), args[0].ndim
    if name not in ("roll", "flip"):
        return "roll"
    numbers = _numbers((*args[1:], *kwargs.values()))
    along = _numbers((*args[2:], *kwargs.values())) if name == "roll" else numbers
    moved = not along or any(number % ndim in axes for number in along)
    return f"{name}{'_'.join([str(number) for number in numbers])}" if moved else "roll"


def _numbers(values: Any) -> list[int]:
    found = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += [int(item) for item in value]
        elif isinstance(value, int):
            found.append(int(value))
    return found


def plain_name(function: Callable[..., Any]) -> str:
    """Return a function's name without what marks operators and those in place."""
    # Not by the function itself: Dynamo fails at its own guard where a table has one that is
    # wrapped in Python, as ``Tensor.__rsub__`` is.
    return str(getattr(function, "__name__", "")).strip("_")


def is_in_place(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call writes into its first argument and returns it."""
    return kwargs.get("inplace") is True or writes_and_returns(
        str(getattr(function, "__name__", ""))
    )


def writes_and_returns(name: str) -> bool:
    """Tell by a function's name whether it writes into its first argument and returns it."""
    if name.startswith("__"):
        return name.strip("_") in _IN_PLACE_OPERATORS
    return name.endswith("_")


def axis_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int | None:
    """Return the axis along which a call cuts, joins, ranks or gathers; None for all, or no one."""
    place, default = _AXES.get(plain_name(function), (0, None))
    axis = kwargs.get("dim", args[place] if len(args) > place > 0 else default)
    return axis if isinstance(axis, int) and not isinstance(axis, bool) else None


def pieces_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
) -> list[int | slice]:
    """Return which places of the axis that it cuts each part has that a function returned.

    By places, not by number: ``x.split([2, 4])[1]`` and ``x[2:]`` are the same units,
    ``x.split([4, 2])[1]`` are others.
    """
    if plain_name(function) == "unbind":
        return list(range(len(out)))
    axis, start = axis_of(function, args, kwargs) or 0, 0
    places: list[int | slice] = []
    for part in out:
        stop = start + part.shape[axis]
        places.append(slice(start, stop))
        start = stop
    return places


def negated_by(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Return the argument whose sign a function changes, None if there is none."""
    name = plain_name(function)
    if name in _NEGATIONS:
        return args[0]  # 1 - x, too: it is x.__rsub__(1)
    alpha = kwargs.get("alpha", 1) if kwargs else 1
    negates = isinstance(alpha, (int, float)) and alpha < 0
    if name in _SUBTRACTIONS or (negates and name in _ADDITIONS):
        return args[1] if len(args) > 1 and negates == (name in _ADDITIONS) else None
    if function in FACTORS and any(isinstance(a, (int, float)) and a < 0 for a in args):
        return next((arg for arg in args if isinstance(arg, Tensor)), None)
    return None
