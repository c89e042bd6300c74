"""Tensors that were joined and are cut apart again: each part is what it was before.

As the density in ``cat([rgb(x), density(x)], -1)[..., 3]`` (Mildenhall et al., "NeRF", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_deadunits.observation.identity import Descent, Joint, part_of
from lightning_deadunits.observation.lineage.axes import Folded
from lightning_deadunits.observation.lineage.axis_rules import carried, groups_of
from lightning_deadunits.observation.lineage.call import Invocation, Operand, Rule
from lightning_deadunits.observation.lineage.joining import Given, differ, in_order, together
from lightning_deadunits.observation.lineage.parts import taken_along
from lightning_deadunits.observation.lineage.ways import JOINS_ALONG

_MOST_PARTS = 64


def joint_of(call: Invocation, given: Given) -> Joint | None:
    """Return what a call has joined, None if parts of it are not to be told apart."""
    if call.function not in JOINS_ALONG or len(given) > _MOST_PARTS:
        return None
    stacks = call.function is torch.stack
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
    axis = dim % call.out.ndim
    parts: list[Descent | None] = []
    for tensor, own in given:
        if tensor.ndim + stacks != call.out.ndim:
            return None  # cat passes over an empty vector
        known = own is not None and not own.weight and own.axes is not None
        parts.append(own._replace(calls=()) if known and own is not None else None)
    told = [own for own in parts if own is not None]
    if any(own.sizes or own.members is not None or own.axes != told[0].axes for own in told):
        return None
    sizes = tuple([1 if stacks else tensor.shape[axis] for tensor, _ in given])
    return Joint(axis, sizes, tuple(parts))


def joint_after(call: Invocation, rule: Rule, operand: Operand) -> Joint | None:
    """Return what is left of a joint after a call that only moves what it is given."""
    source, own = operand
    if own.joint is None:
        return None
    along = Folded((), (own.joint.axis,))
    moved = carried(rule.move, along, source, call.args, call.kwargs, call.out)
    if moved is None or moved.sizes or len(moved.axes) != 1:
        return None
    if call.out.shape[moved.axes[0]] != source.shape[own.joint.axis]:
        return None
    return own.joint._replace(axis=moved.axes[0])


def cut_out(call: Invocation, descent: Descent, operand: Operand) -> Descent | None:
    """Return the descent of what is cut out of a joint, if it is some of its parts, or of one.

    Args:
        call: The call that cuts.
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
    if taken is None or taken == (0, source.shape[joint.axis]):
        return None
    if joint.axis in axes and not _is_whole_beside(call, own, source):
        return None
    chosen, start, stop = _parts_in(joint, *taken)
    if not chosen or any(part is None for part in chosen):
        return None
    parts = [part for part in chosen if part is not None]
    if len(parts) == 1:
        (part,) = parts
        if joint.axis in axes and (start or stop):
            places = f"{start}_{stop}" if taken[1] - taken[0] > 1 else str(start)
            before = ["all"] * axes.index(joint.axis)
            producers = part_of(part.producers, ".".join([*before, places]))
            part = part._replace(producers=producers, joint=None)
        return part._replace(axes=descent.axes, sizes=descent.sizes, calls=descent.calls)
    if start or stop:
        return None
    if joint.axis in axes:
        return _side_by_side(parts, descent, source)
    rows = together(parts, descent.axes or ())
    return rows._replace(
        calls=descent.calls, sizes=descent.sizes, mixed=rows.mixed or differ(parts)
    )


def laid_out(call: Invocation, descent: Descent, operand: Operand) -> Descent | None:
    """Return the descent of layers of a stack whose units are laid out on one axis.

    As in ``torch.stack(heads, 1).flatten(1)``; None for any other call.
    """
    (source, own), (shape, fresh) = operand, (tuple(operand.tensor.shape), tuple(call.out.shape))
    if own.joint is None or own.sizes or None in own.joint.parts:
        return None
    beside = [own.joint.axis, *(own.axes or ())]
    groups = groups_of(shape, fresh)
    if groups is None or beside not in groups:
        return None
    axis = groups.index(beside)
    parts = [part for part in own.joint.parts if part is not None]
    units = fresh[axis] // shape[own.joint.axis]
    found = _side_by_side(parts, descent._replace(axes=(axis,), sizes=()), source)
    joint = Joint(axis, tuple([size * units for size in own.joint.sizes]), own.joint.parts)
    return found._replace(joint=joint)


def _side_by_side(parts: list[Descent], descent: Descent, source: Tensor) -> Descent:
    both = together(parts, descent.axes or ())._replace(calls=descent.calls, sizes=descent.sizes)
    return in_order(both, [(source, part) for part in parts])


def _is_whole_beside(call: Invocation, own: Descent, source: Tensor) -> bool:
    """Tell whether the other axes of the units are taken as a whole."""
    joint_axis = None if own.joint is None else own.joint.axis
    others = [axis for axis in own.axes or () if axis != joint_axis]
    return all(taken_along(call, axis, source) == (0, source.shape[axis]) for axis in others)


def _parts_in(joint: Joint, start: int, stop: int) -> tuple[Sequence[Descent | None], int, int]:
    """Return the parts of which a range of places has some, and the range in a single one.

    The range is (0, 0) where parts are taken as a whole.
    """
    at, chosen, first, last = 0, [], 0, 0
    for size, part in zip(joint.sizes, joint.parts, strict=True):
        low, high = max(start - at, 0), min(stop - at, size)
        if low < high:
            chosen.append(part)
            if (low, high) != (0, size):
                first, last = low, high
        at += size
    return chosen, first, last
