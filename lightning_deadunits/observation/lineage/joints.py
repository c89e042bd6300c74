"""Tensors that were joined and are cut apart again: each part is what it was before.

As the density in ``cat([rgb(x), density(x)], -1)[..., 3]`` (Mildenhall et al., "NeRF", 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.identity import Descent, Joint, part_of
from lightning_deadunits.observation.lineage.axes import Axes, Folded
from lightning_deadunits.observation.lineage.axis_rules import (
    carried,
    drop,
    getitem,
    groups_of,
    keep_rank,
    keep_same_rank,
    movedim,
    permute,
    reshape,
    reverse,
    transpose,
    transpose_last,
    unsqueeze_,
)
from lightning_deadunits.observation.lineage.call import Given, Invocation, Operand, Rule, units_of
from lightning_deadunits.observation.lineage.joining import (
    differ,
    flaw_beside,
    in_order,
    together,
)
from lightning_deadunits.observation.lineage.parts import taken_along
from lightning_deadunits.observation.lineage.producers import CELLS
from lightning_deadunits.observation.lineage.ways import (
    CHOICES,
    JOINS_ALONG,
    OVERWRITES,
    PIECES,
    REPEATS,
    SCRAMBLES,
    axis_of,
    plain_name,
)

_MOST_PARTS = 64
_PURE = {
    *(reshape, permute, transpose, transpose_last, reverse, movedim),
    *(drop, getitem, unsqueeze_, keep_rank, keep_same_rank),
}
"""Moves after which values are what they were, if what they are given says no more."""
_IMPURE = SCRAMBLES | OVERWRITES | REPEATS | {F.pad, F.glu, F.pixel_shuffle, F.pixel_unshuffle}


def joint_of(call: Invocation, given: Given) -> Joint | None:
    """Return what a call has joined, None if parts of it are not to be told apart."""
    axis = _joined_axis(call)
    if axis is None:
        return None
    stacks = call.function is torch.stack
    of_units = any(own is not None and axis in (own.axes or ()) for _, own in given)
    if torch.compiler.is_compiling() and not stacks and not of_units:
        return None  # the number of samples may be symbolic, and would be fixed
    sizes: list[int] = []
    parts: list[Descent | None] = []
    for tensor, own in given:
        if tensor.ndim + stacks != call.out.ndim:
            return None  # cat passes over an empty vector
        if own is None or own.weight or own.axes is None:
            sizes.append(1 if stacks else tensor.shape[axis])
            parts.append(None)
        elif own.joint is not None and own.joint.axis == axis and not stacks:
            sizes += own.joint.sizes
            parts += own.joint.parts
        else:
            sizes.append(1 if stacks else tensor.shape[axis])
            parts.append(_plain(own))
    told = [own for own in parts if own is not None]
    if not told or len(parts) > _MOST_PARTS or any(own.axes != told[0].axes for own in told):
        return None
    if any(own.sizes or own.members is not None for own in told):
        return None
    return Joint(axis, tuple(sizes), tuple(parts))


def padded(call: Invocation, operand: Operand, axes: Axes) -> Joint | None:
    """Return units between what was padded on both sides of them, along one of their axes."""
    source, own = operand
    grown = [axis for axis in axes if call.out.shape[axis] > source.shape[axis]]
    if len(grown) != 1 or own.sizes or own.members or call.out.ndim != source.ndim:
        return None
    pads = call.kwargs.get("pad", call.args[1] if len(call.args) > 1 else ())
    place = 2 * (call.out.ndim - 1 - grown[0])
    low, high = pads[place : place + 2]
    if low < 0 or high < 0:
        return None
    return Joint(grown[0], (low, source.shape[grown[0]], high), (None, _plain(own), None))


def _plain(own: Descent) -> Descent:
    return own._replace(calls=(), joint=None, stacked=None)


def _joined_axis(call: Invocation) -> int | None:
    """Return the axis of the result along which a call joins, None if it joins nothing."""
    if call.function in JOINS_ALONG:
        return (axis_of(call.function, call.args, call.kwargs) or 0) % call.out.ndim
    name = plain_name(call.function)
    return {"hstack": min(1, call.out.ndim - 1), "vstack": 0}.get(name)


def of_recurrent_layers(call: Invocation, word: str, made: Descent) -> Descent:
    """Return the descent of the last states, or cells, of each layer and direction.

    The last state of the last layer is what it returns at the last position; a cell is not.
    """
    if len(made.axes or ()) < 2:
        return made._replace(way=(word,)) if word == CELLS else made
    places, _, units = call.out.shape
    layers = next(arg for arg in call.args if type(arg) is int)
    parts: list[Descent | None] = []
    for place in range(places):
        behind = place - places * (layers - 1) // layers
        if word == CELLS or behind < 0:
            part = made._replace(producers=part_of(made.producers, str(place)), way=(word,))
        elif places == layers:
            part = made
        else:  # of two directions
            side = f"0_{units}" if behind == 0 else f"{units}_"
            part = made._replace(producers=part_of(made.producers, side))
        parts.append(part._replace(calls=()))
    return made._replace(way=(word,), joint=Joint(0, (1,) * places, tuple(parts)))


def joint_after(call: Invocation, rule: Rule, operand: Operand, descent: Descent) -> Joint | None:
    """Return what is left of a joint after a call that only moves what it is given.

    Args:
        call: The call.
        rule: What its function does.
        operand: What it was given, of which the joint is known.
        descent: What else is known of the result.
    """
    source, own = operand
    if own.joint is None or rule.move not in _PURE or call.function in _IMPURE:
        return None
    if own.sizes or descent.sizes:
        return None
    if call.function in PIECES or call.function in CHOICES:
        kept = (own.joint.axis, *(own.axes or ()))
        if not all(_is_whole(call, axis, source) for axis in kept):
            return None
    elif units_of(call.out, descent) != units_of(source, own):
        return None
    axis = _axis_after(call, rule, own.joint.axis, source)
    if axis is None or call.out.shape[axis] != source.shape[own.joint.axis]:
        return None
    return own.joint._replace(axis=axis)


def _is_whole(call: Invocation, axis: int, source: Tensor) -> bool:
    """Tell whether all places of an axis are taken, in their order."""
    return taken_along(call, axis, source) == (0, source.shape[axis])


def _axis_after(call: Invocation, rule: Rule, axis: int, source: Tensor) -> int | None:
    """Return where an axis is after a call, None if it is no more."""
    moved = carried(rule.move, Folded((), (axis,)), source, call.args, call.kwargs, call.out)
    if moved is None or moved.sizes or len(moved.axes) != 1:
        return None
    return moved.axes[0]


def cut_out(call: Invocation, rule: Rule, descent: Descent, operand: Operand) -> Descent | None:
    """Return the descent of what is cut out of a joint: of some of its parts, or of one.

    Args:
        call: The call that cuts.
        rule: What its function does.
        descent: What is known of the result, cut or not.
        operand: What it was cut out of.

    Returns:
        None if there is nothing more to know.
    """
    source, own = operand
    joint, axes = own.joint, own.axes or ()
    if joint is None:
        return None
    taken = taken_along(call, joint.axis, source)
    others = [axis for axis in axes if axis != joint.axis]
    if own.sizes or not all(_is_whole(call, axis, source) for axis in others):
        return None
    if taken is None or taken == (0, source.shape[joint.axis]):
        return None
    depth = axes.index(joint.axis) if joint.axis in axes else None
    sizes, parts = _parts_in(joint, *taken, depth=depth)
    told = [part for part in parts if part is not None]
    if not told:
        return Descent(None, ())  # of what nothing is known
    if len(parts) == 1:
        return told[0]._replace(axes=descent.axes, sizes=descent.sizes, calls=descent.calls)
    both = _side_by_side(parts, descent, source) if depth is not None else _rows(parts, descent)
    axis = None if descent.sizes else _axis_after(call, rule, joint.axis, source)
    return both if axis is None else both._replace(joint=Joint(axis, sizes, parts))


def laid_out(call: Invocation, descent: Descent, operand: Operand) -> Descent | None:
    """Return the descent of layers of a stack whose units are laid out on one axis.

    As in ``torch.stack(heads, 1).flatten(1)``; None for any other call.
    """
    (source, own), (shape, fresh) = operand, (tuple(operand.tensor.shape), tuple(call.out.shape))
    if own.joint is None or own.sizes or own.joint.axis in (own.axes or ()):
        return None
    beside = [own.joint.axis, *(own.axes or ())]
    groups = groups_of(shape, fresh)
    if groups is None or beside not in groups:
        return None
    axis = groups.index(beside)
    units = fresh[axis] // shape[own.joint.axis]
    found = _side_by_side(own.joint.parts, descent._replace(axes=(axis,), sizes=()), source)
    joint = Joint(axis, tuple([size * units for size in own.joint.sizes]), own.joint.parts)
    return found._replace(joint=joint)


def _side_by_side(parts: tuple[Descent | None, ...], descent: Descent, source: Tensor) -> Descent:
    """Return the descent of units of several parts, one after another."""
    given: Given = [(source, part) for part in parts]
    return in_order(_together(parts, descent)._replace(flaw=flaw_beside(given)), given)


def _rows(parts: tuple[Descent | None, ...], descent: Descent) -> Descent:
    """Return the descent of rows of several parts."""
    rows = _together(parts, descent)
    others = None in parts or differ([part for part in parts if part is not None])
    return rows._replace(mixed=True) if others else rows


def _together(parts: tuple[Descent | None, ...], descent: Descent) -> Descent:
    both = together([part for part in parts if part is not None], descent.axes or ())
    return both._replace(calls=descent.calls, sizes=descent.sizes)


def _parts_in(
    joint: Joint, start: int, stop: int, *, depth: int | None
) -> tuple[tuple[int, ...], tuple[Descent | None, ...]]:
    """Return the parts of which a range of places has some, and how many of each.

    Args:
        joint: The joint.
        start: The first place.
        stop: The place behind the last one.
        depth: How many unit axes stand before the joint's, None if that indexes no units.
    """
    at = 0
    sizes: list[int] = []
    chosen: list[Descent | None] = []
    for size, part in zip(joint.sizes, joint.parts, strict=True):
        low, high = max(start - at, 0), min(stop - at, size)
        at += size
        if low >= high:
            continue
        if part is not None and depth is not None and (low, high) != (0, size):
            end = "" if high == size else high  # as words for parts are spelled
            places = f"{low}_{end}" if high - low > 1 else str(low)
            producers = part_of(part.producers, ".".join([*["all"] * depth, places]))
            part = part._replace(producers=producers)
        sizes.append(high - low)
        chosen.append(part)
    return tuple(sizes), tuple(chosen)
