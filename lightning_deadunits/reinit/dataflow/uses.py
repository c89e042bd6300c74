"""Every use of the weights: a unit that is to change them must be all that they make, or read.

Weights may be used several times: in a siamese encoder, an unrolled cell, or simply on several
tapes. That is no reason to refuse, as long as each use is the unit's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_deadunits.reinit.dataflow.passes import Passes, Use
from lightning_deadunits.reinit.dataflow.trace import Part, UnitTrace
from lightning_deadunits.reinit.ops import Channel, Operation

Fed = dict[Channel, set[tuple[str, int]]]


def with_all_uses(passes: Passes, channels: Mapping[Channel, set[tuple[str, int]]]) -> Fed:
    """Add to channels that consume units the same channels of other calls with the same weights.

    There they may read something else, or a unit that is not due: noise will show.
    """
    recorded = passes.recorded
    found: Fed = {channel: set(units) for channel, units in channels.items()}
    calls_of: dict[tuple[object, ...], list[int]] = {}
    for index, call in enumerate(recorded.calls):
        if call.operation.weight is not None and call.operation.read_axes:
            calls_of.setdefault(_weight_of(passes, call.operation), []).append(index)
    for (index, channel), units in channels.items():
        key = _weight_of(passes, recorded.calls[index].operation)
        for other in calls_of.get(key, ()):
            found.setdefault((other, channel), set()).update(units)
    return found


def _weight_of(passes: Passes, operation: Operation) -> tuple[object, ...]:
    """Return what tells the weights of a call, and how it reads them."""
    view = operation.weight
    owner = passes.parameters.owner(view)
    if view is None or owner is None:
        return (id(operation),)
    place = view.storage_offset(), tuple(view.shape), tuple(view.stride())
    return (id(owner), place, operation.kind, operation.read_sizes)


def other_uses(passes: Passes, part: Part, trace: UnitTrace) -> list[str]:
    """Return the titles of calls that use some weights, but are no use of the unit's own.

    Args:
        passes: The passes.
        part: Weights that make a unit or read it.
        trace: All weights of that unit.
    """
    own = {other.index for other in (*trace.makes, *trace.reads) if _covers(other, part)}
    foreign = [use.call for use in _overlapping(passes, part) if use.call not in own]
    titles = (passes.recorded.calls[index].title for index in foreign)
    own_titles = (passes.recorded.calls[index].title for index in sorted(own))
    return list(dict.fromkeys((*own_titles, *titles))) if foreign else []


def _covers(other: Part, part: Part) -> bool:
    """Tell whether a part holds all the weights of another one that they have in common."""
    if other.weights.parameter is not part.weights.parameter:
        return False
    return other is part or bool(
        other.weights.positions.shape == part.weights.positions.shape
        and (other.weights.positions == part.weights.positions).all()
    )


def _overlapping(passes: Passes, part: Part) -> Iterable[Use]:
    parameter: Tensor = part.weights.parameter
    uses = [use for use in passes.recorded.uses if use.parameter is parameter]
    # Most weights are given to calls as a whole.
    return [
        use
        for use in uses
        if use.view.shape == parameter.shape or passes.parameters.meet(use.view, part.weights)
    ]
