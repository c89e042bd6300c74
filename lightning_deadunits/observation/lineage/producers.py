"""Where units are made: the unit axes of what a convolution, linear layer or norm returns.

And by which of their arguments. A stack of weights ``(E, in, out)`` makes E x out units, as in
ensembles, vectorised critics and batched experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from string import ascii_letters
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.identity import Members
from lightning_deadunits.observation.lineage.axes import (
    Args,
    Axes,
    Folded,
    KnownAxes,
    Kwargs,
    MakerAxes,
)
from lightning_deadunits.observation.lineage.axis_rules import one_unit
from lightning_deadunits.observation.lineage.ways import TIMES


def _rows(known: KnownAxes, args: Args, kwargs: Kwargs) -> bool:
    return False


def _columns(known: KnownAxes, args: Args, kwargs: Kwargs) -> bool:
    return True


def _always(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> bool:
    return True


class Maker(NamedTuple):
    """A function that makes units.

    Attributes:
        axes: Tells their axes.
        weights: Returns the arguments that may be the weights.
        columns: Tells whether the units are the columns of the weights, not their rows.
        kept: Tells where units are that are kept, because samples or positions are mixed only, as
            by the edges of a graph; None where units are made.
        mixes: Whether it sums over what it reads, so that what came before makes nothing of it.
        spatial: Whether it is a convolution, whose channels may come in groups.
        weighs_first: Whether the first of the arguments that may be weights makes the units, and
            what follows is added to them.
        grouped: Returns which of several stacked weights made each row, where an argument tells.
        by_data: Tells whether data are what makes the units where no weights are given: those of a
            hypernetwork, or two activations. Else that is something that nobody knows, a buffer.
        states: Tells the axes of what is returned behind the first result, if they are others.
        results: Words for what is returned, where that are several things; "" for the first.
        addend: Returns what is added to what the weights make, a bias or what data have made.
    """

    axes: MakerAxes
    weights: Callable[[Args, Kwargs], list[Tensor]]
    columns: Callable[[KnownAxes, Args, Kwargs], bool] = _rows
    kept: MakerAxes | None = None
    mixes: bool = True
    spatial: bool = False
    weighs_first: bool = False
    grouped: Callable[[Args, Kwargs], Members | None] | None = None
    by_data: Callable[[KnownAxes, Args, Kwargs, Tensor], bool] = _always
    states: MakerAxes | None = None
    results: tuple[str, ...] = ()
    addend: Callable[[Args, Kwargs], Any] | None = None


# --- which axes -----------------------------------------------------------------------------------


def _last(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    return (out.ndim - 1,) if out.ndim else None


def _states(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """The last states of a recurrent layer: stacked layers and directions have units each."""
    return (0, 2) if out.shape[0] > 1 else (2,)


def _second(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    return (1,) if out.ndim > 1 else None


def _before_space(spatial: int) -> MakerAxes:
    """A convolution's channels stand right before its spatial axes, batched or not."""

    def channels(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
        return (out.ndim - 1 - spatial,)

    return channels


def _normalised(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """LayerNorm leaves the units where they are, and makes the last axis one where none is."""
    source = args[0] if args else kwargs["input"]
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    if not isinstance(shape, int) and len(shape) > 1:
        return known.axes(source)  # elements, or channels: which it is cannot be told
    return known.axes(source) or _last(known, args, kwargs, out)


def _product(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | Folded | None:
    """``a @ b``: rows come from ``a``, columns from ``b``; what is unknown is the weight."""
    factors = _factors(args, kwargs)
    if factors is None or out.ndim == 0:
        return None
    left, right = factors
    of_left, of_right = known.axes(left), known.axes(right)
    if any(known.is_weight(own) and own.ndim == 1 for own in factors):
        return one_unit(out)
    if (right.ndim == 1 and of_left and of_right is None) or (
        left.ndim == 1 and of_right and of_left is None
    ):
        return one_unit(out)  # the units are summed over
    row = max(0, out.ndim - 2) if right.ndim > 1 else out.ndim - 1
    if _is_matrix(of_left, left) and of_right is None and not known.is_weight(right):
        return (row,)  # a hypernetwork makes the weights
    if known.is_weight(right) or (of_right is None and not known.is_weight(left)):
        return (*_stacked(known, right, out), out.ndim - 1)
    if _is_matrix(of_right, right) and of_left is None and not known.is_weight(left):
        return (out.ndim - 1,)
    if known.is_weight(left) or of_left is None:
        return (*_stacked(known, left, out, right.ndim > 1), row)
    assert of_right is not None
    batch = {axis + out.ndim - left.ndim for axis in of_left if axis < left.ndim - 1}
    batch |= {axis + out.ndim - right.ndim for axis in of_right if axis != right.ndim - 2}
    return tuple(sorted(axis for axis in batch if 0 <= axis < out.ndim))


def _is_matrix(axes: Axes | None, factor: Tensor) -> bool:
    """Tell whether both axes of a matrix, or of each of a stack of them, index units."""
    return bool(axes) and factor.ndim > 1 and {factor.ndim - 2, factor.ndim - 1} <= {*(axes or ())}


def _factors(args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor] | None:
    """Return what is multiplied, which stands behind what is added."""
    named = (value for key, value in kwargs.items() if key != "out")
    operands = [value for value in (*args, *named) if isinstance(value, Tensor)]
    return (operands[-2], operands[-1]) if len(operands) > 1 else None


def _product_keeps(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """A graph's edges mix nodes: ``A @ h`` of features, ``h @ A`` of what has its units elsewhere.

    A square parameter is taken for learned edges; another one makes units of its own.
    """
    factors = _factors(args, kwargs)
    if factors is None or out.ndim == 0:
        return None
    left, right = factors
    of_left, of_right = known.axes(left), known.axes(right)
    if right.ndim < 2 or left.ndim < 2:
        return _weighted_sum(left, of_left, right, of_right)
    if of_right and not of_left and right.ndim - 1 in of_right:
        # Of units that are features of groups, those on the mixed axis are gone.
        shift = out.ndim - right.ndim
        kept = tuple(axis + shift for axis in of_right if axis != right.ndim - 2)
        if _is_stacked(known, right):  # a sum of layers, for each row of gates
            return (*kept[:-1], out.ndim - 2, kept[-1]) if left.shape[-2] > 1 else kept
        if not _makes(known, left):
            return kept
    if of_left and not of_right and left.ndim - 1 not in of_left and not _makes(known, right):
        shift = max(0, out.ndim - left.ndim)
        return tuple(axis + shift for axis in of_left)
    return None


def _weighted_sum(
    left: Tensor, of_left: Axes | None, right: Tensor, of_right: Axes | None
) -> Axes | None:
    """A vector of gates, or of positions' weights, sums what has its units on other axes."""
    if right.ndim < 2 and of_left and not of_right and left.ndim - 1 not in of_left:
        return of_left
    summed = right.ndim - 2
    if left.ndim < 2 and of_right and not of_left and summed >= 0 and summed not in of_right:
        return tuple(axis - (axis > summed) for axis in of_right)
    return None


def _is_stacked(known: KnownAxes, right: Tensor) -> bool:
    own = known.descent(right)
    return own is not None and own.stacked == right.ndim - 2


def _makes(known: KnownAxes, weight: Tensor) -> bool:
    square = weight.ndim > 1 and weight.shape[-1] == weight.shape[-2]
    return known.is_weight(weight) and not square


def _product_by_data(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> bool:
    """What is summed over makes nothing: of ``h @ buffer`` the columns are the buffer's."""
    data = [own for own in _factors(args, kwargs) or () if known.axes(own) is not None]
    return len(data) > 1 or any(_is_matrix(known.axes(own), own) for own in data)


def _product_columns(known: KnownAxes, args: Args, kwargs: Kwargs) -> bool:
    factors = _factors(args, kwargs)
    return factors is None or known.is_weight(factors[1]) or not known.is_weight(factors[0])


def _stacked(known: KnownAxes, weight: Tensor, out: Tensor, matrices: bool = True) -> Axes:
    """Return the axes of a product, by a matrix or by a vector, that tell stacked weights apart."""
    own = known.descent(weight)
    if weight.ndim < 3 or own is None or not own.weight or own.members is not None or own.unsure:
        return ()  # with members each row has one of them, and none has all
    shift = out.ndim - weight.ndim + (not matrices)
    return tuple(
        axis + shift
        for axis in range(weight.ndim - 2)
        if weight.shape[axis] > 1 and weight.stride(axis) and axis + shift >= 0
    )


def _outer(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``x[..., None] * w`` of raw inputs: a weight of its own at every place but the samples'.

    Where the weight is the same along an axis, that may hold features, or positions.
    """
    given = _all(args, kwargs)
    if len(given) < 2:
        return None
    *summands, left, right = given
    weight, raw = (left, right) if known.is_weight(left) else (right, left)
    own = known.descent(weight)
    if own is None or not own.weight or own.members is not None or known.descent(raw) is not None:
        return None
    shift, before = out.ndim - weight.ndim, out.ndim - raw.ndim
    made = [a + shift for a, size in enumerate(weight.shape) if size > 1 and weight.stride(a)]
    brought = any(a < before or raw.shape[a - before] < out.shape[a] for a in made)
    if not brought or not all(known.is_weight(summand) for summand in summands):
        return None
    whole = 0 not in made and all(a in made or out.shape[a] == 1 for a in range(1, out.ndim))
    return tuple(made) if whole else None


def _einsum(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | Folded | None:
    """Letters that a weight brings, or that index units already, index the units."""
    spelled = _spelled(args)
    if spelled is None:
        return None
    factors, result = spelled
    data: set[str] = set()
    carried: set[str] = set()
    made: set[str] = set()
    weights: list[set[str]] = []
    others: list[set[str]] = []
    for letters, operand in factors:
        own = known.descent(operand)
        if own is not None and own.weight:
            rows = 0 if own.members is None else own.members.rows.ndim
            data |= set(letters[:rows])
            weights.append(set(letters[rows:]))
            for axis in range(rows, len(letters)):
                # What is expanded over samples is the same weight for all of them.
                if operand.shape[axis] > 1 and operand.stride(axis):
                    made.add(letters[axis])
            continue
        axes = known.axes(operand)
        if axes is None:
            others.append(set(letters))
        else:
            data |= set(letters)
            carried |= {letters[axis] for axis in axes}
    shown = set(result)
    # What nothing is known of are weights, but not beside weights, nor where it has samples.
    samples = data - carried
    if weights or (samples and all(samples & own for own in others)):
        data = data.union(*others)
    elif not data:
        data = set(next((ls for ls, o in factors if not known.is_weight(o)), ""))
    if any((own & data) - shown and (own & shown) - data for own in weights):
        carried &= made  # as in a product, units of before are positions of what a weight makes
    fresh = carried | made | (shown - data)
    axes = tuple([index for index, letter in enumerate(result) if letter in fresh])
    return axes if axes or not any(own - shown for own in weights) else one_unit(out)


def _einsum_keeps(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """As in a product: ``nctv,vw->nctw`` mixes the nodes ``v`` of what has its units in ``c``."""
    spelled = _spelled(args)
    if spelled is None:
        return None
    factors, result = spelled
    carried: set[str] = set()
    units: set[str] = set()
    for letters, operand in factors:
        axes = known.axes(operand)
        if axes:
            carried |= set(letters)
            units |= {letters[axis] for axis in axes}
    if not units & set(result):
        return None
    mixes = False
    rows: set[str] = set()
    for letters, operand in factors:
        rows |= _rows_of_gates(known, letters, operand, factors, result)
    if rows:
        return tuple(i for i, letter in enumerate(result) if letter in units | rows)
    for letters, operand in factors:
        if known.axes(operand):
            continue
        if known.is_weight(operand) and not set(letters) & {*result, *units}:
            mixes = True  # a weight of each of several tensors, which are summed
            continue
        sizes = dict(zip(letters, operand.shape, strict=True))
        fresh = [letter for letter in letters if letter in result and letter not in carried]
        summed = {sizes[x] for x in letters if x in carried - units and x not in result}
        if known.is_weight(operand) and not (fresh and {sizes[x] for x in fresh} <= summed):
            return None
        mixes = mixes or bool(summed)
    return tuple(i for i, letter in enumerate(result) if letter in units) if mixes else None


def _rows_of_gates(
    known: KnownAxes,
    letters: str,
    operand: Tensor,
    factors: list[tuple[str, Tensor]],
    result: str,
) -> set[str]:
    """Return the letters that gates bring, if they sum layers over a stack: for each of them."""
    if known.axes(operand):
        return set()
    others, stacks = "", ""
    for own, factor in factors:
        of = known.descent(factor)
        if of is not None and of.stacked is not None:
            stacks += own[of.stacked]
        if factor is not operand:
            others += own
    sums = any(x in stacks and x not in result for x in letters)
    return {x for x in letters if sums and x in result and x not in others}


def _einsum_by_data(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> bool:
    factors, result = _spelled(args) or ([], "")
    data = 0
    for letters, own in factors:
        axes = known.axes(own)
        if axes is not None:
            data += 1
            if any(letters[axis] in result for axis in axes):
                return True
    return data > 1


def _einsum_columns(known: KnownAxes, args: Args, kwargs: Kwargs) -> bool:
    spelled = _spelled(args)
    if spelled is None:
        return False
    factors, result = spelled
    for letters, operand in factors:
        if known.is_weight(operand):
            others = "".join(own for own, other in factors if other is not operand)
            made = [i for i, x in enumerate(letters) if x in result and x not in others]
            summed = [i for i, x in enumerate(letters) if x not in result]
            return bool(made and summed) and made[-1] > summed[0]
    return False


def _spelled(args: Args) -> tuple[list[tuple[str, Tensor]], str] | None:
    """Return the factors of an einsum with their letters, and those of the result."""
    if not isinstance(args[0], str):
        return None
    operands = tuple(args[1]) if isinstance(args[1], (list, tuple)) else args[1:]
    letters, result = spelled_out(args[0], operands)
    return list(zip(letters, operands, strict=True)), result


def spelled_out(equation: str, operands: Args) -> tuple[list[str], str]:
    """Return the letters of the operands and of the result, without dots or an implicit result.

    Example:
        >>> spelled_out("...i,io", (torch.zeros(2, 3, 4), torch.zeros(4, 5)))
        (['ZYi', 'io'], 'ZYo')
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    spare = [letter for letter in reversed(ascii_letters) if letter not in equation]
    free = [o.ndim - len(p) + 3 if "." in p else 0 for p, o in zip(parts, operands, strict=True)]
    dots = "".join(spare[: max(free)])
    if not arrow:
        single = sorted(x for x in set(given) - {",", "."} if given.count(x) == 1)
        result = "..." * ("." in given) + "".join(single)
    parts = [p.replace("...", dots[len(dots) - n :]) for p, n in zip(parts, free, strict=True)]
    return parts, result.replace("...", dots)


def _of_value(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Attention mixes positions of the values; their features stay where they are."""
    return known.axes(args[2] if len(args) > 2 else kwargs["value"])


def summed_axes(args: Args, kwargs: Kwargs, operand: Tensor) -> set[int]:
    """Return the axes of an operand over which a product sums."""
    if isinstance(args[0], str):
        factors, result = _spelled(args) or ([], "")
        letters = next((own for own, factor in factors if factor is operand), "")
        return {axis for axis, letter in enumerate(letters) if letter not in result}
    factors_of = _factors(args, kwargs)
    right = factors_of is not None and operand is factors_of[1]
    return {max(0, operand.ndim - 2) if right else operand.ndim - 1}


# --- by which weights -----------------------------------------------------------------------------


def _flat(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _all(args: Args, kwargs: Kwargs) -> list[Tensor]:
    return _flat((*args, *kwargs.values()))


def _product_first(args: Args, kwargs: Kwargs) -> list[Tensor]:
    """``addmm(bias, left, right)``: what is added stands last."""
    given = _all(args, kwargs)
    return [*given[1:], *given[:1]]


def _after_first(args: Args, kwargs: Kwargs) -> list[Tensor]:
    """``f(input, weight, bias)``: a parameter as the input makes nothing."""
    return _flat((*args[1:], *(value for name, value in kwargs.items() if name != "input")))


def _first(args: Args, kwargs: Kwargs) -> Any:
    return args[0] if args else kwargs.get("input")


def _bias(args: Args, kwargs: Kwargs) -> Any:
    return args[2] if len(args) > 2 else kwargs.get("bias")


def _value(args: Args, kwargs: Kwargs) -> list[Tensor]:
    return _flat((args[2] if len(args) > 2 else kwargs["value"],))


def _groups(args: Args, kwargs: Kwargs) -> Members | None:
    """``grouped_mm(rows, (E, in, out), offs)``: the rows of each weight end where it says."""
    ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
    weight = kwargs.get("mat_b", kwargs.get("mat2", args[1] if len(args) > 1 else None))
    if not isinstance(ends, Tensor) or not isinstance(weight, Tensor) or weight.ndim != 3:
        return None
    return Members(weight.shape[0], ends, ends=True)


_GROUPED = tuple(
    getattr(home, name)
    for home, name in ((F, "grouped_mm"), (torch, "_grouped_mm"), (torch, "grouped_mm"))
    if hasattr(home, name)
)

STATES, CELLS = "states", "cells"
_RECURRENT = (torch.gru, torch.rnn_tanh, torch.rnn_relu)
_BLOCKS = (
    *(torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),
    F.multi_head_attention_forward,
)
_CONVOLUTIONS = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}
_CHANNEL_NORMS = (
    *(F.batch_norm, F.instance_norm, F.group_norm),
    *(torch.batch_norm, torch.instance_norm, torch.group_norm),
)
_LAYER_NORMS = (F.layer_norm, F.rms_norm, torch.layer_norm)
_PRODUCTS = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm),
    *(Tensor.__rmatmul__, torch.mv, Tensor.mv, torch.linalg.matmul, torch.sparse.mm),
)
_SUMS_OF_PRODUCTS = (
    *(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addmv, Tensor.addmv),
)

PRODUCERS: dict[Callable[..., Any], Maker] = {
    F.linear: Maker(_last, _after_first, weighs_first=True, addend=_bias),
    F.bilinear: Maker(_last, _after_first),
    **dict.fromkeys((F.embedding, F.embedding_bag), Maker(_last, _after_first, _columns)),
    **dict.fromkeys(_RECURRENT, Maker(_last, _all, states=_states, results=("", STATES))),
    torch.lstm: Maker(_last, _all, states=_states, results=("", STATES, CELLS)),
    torch.lstm_cell: Maker(_last, _all, results=("", CELLS)),
    **dict.fromkeys(_BLOCKS, Maker(_last, _all)),
    **{
        functions[transposed]: Maker(
            _before_space(spatial),
            _after_first,
            columns,
            spatial=True,
            weighs_first=True,
            addend=_bias,
        )
        for spatial, functions in _CONVOLUTIONS.items()
        for transposed, columns in enumerate((_rows, _columns))
    },
    **dict.fromkeys(_CHANNEL_NORMS, Maker(_second, _after_first, mixes=False)),
    **dict.fromkeys(_LAYER_NORMS, Maker(_normalised, _after_first, mixes=False)),
    **dict.fromkeys(
        _PRODUCTS, Maker(_product, _all, _product_columns, _product_keeps, by_data=_product_by_data)
    ),
    **dict.fromkeys(
        _SUMS_OF_PRODUCTS,
        Maker(
            _product,
            _product_first,
            _product_columns,
            _product_keeps,
            by_data=_product_by_data,
            addend=_first,
        ),
    ),
    **dict.fromkeys(_GROUPED, Maker(_last, _after_first, _columns, grouped=_groups)),
    torch.einsum: Maker(_einsum, _all, _einsum_columns, _einsum_keeps, by_data=_einsum_by_data),
    **dict.fromkeys(TIMES, Maker(_outer, _all, mixes=False)),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), Maker(_outer, _product_first, mixes=False)),
    F.unfold: Maker(_second, _all),
    F.scaled_dot_product_attention: Maker(_of_value, _value),
}
"""Functions that make units."""
