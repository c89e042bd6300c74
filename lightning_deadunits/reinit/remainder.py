"""What can revive a unit where some of what makes it is frozen, tied or shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.probe import Recording
from lightning_deadunits.reinit.running.session import Session
from lightning_deadunits.reinit.tracing import Part, UnitTrace


def remainder(
    session: Session, training: Recording, trace: UnitTrace, left: Mapping[Part, str]
) -> UnitTrace | str:
    """Return a trace without what is to be left as it is, or why nothing is left of it.

    A norm behind weights that stay has a scale and a shift to revive the unit with, as in a
    pre-activation network, and right statistics already. A norm that is frozen itself may let a
    fresh row through. A bias alone may do, too. Which of it does, the example shows.

    Args:
        session: The session.
        training: A pass in training mode.
        trace: The whole trace.
        left: The parts that stay, with the reason.
    """
    kept = [part for part in trace.makes if part not in left]
    stays = {part.index for part in left if part.role == "weight"}
    statistics = dict(trace.statistics)
    for norm, before in trace.statistics.items():
        if before[0] in stays:
            del statistics[norm]
            # The norm would take back what is done before it.
            kept = [part for part in kept if not _between(session, part, before, norm)]
    reason = next(iter(left.values()))
    if not kept:
        return reason
    frozen = {part.index for part in left} - {part.index for part in kept}
    fixed = {
        norm: before
        for norm, before in statistics.items()
        if norm[0] in frozen and _is_fixed(session, training, norm)
    }
    fed = {norm: before for norm, before in statistics.items() if norm not in fixed}
    return replace(trace, makes=kept, statistics=fed, fixed=fixed, left=reason)


def _between(session: Session, part: Part, before: Channel, norm: Channel) -> bool:
    """Tell whether weights add to a channel, or multiply it, on its way to a norm."""
    link = session.recorded.calls[part.index].operation.kind == "link"
    return part.index == before[0] or (link and before[0] < part.index < norm[0])


def _is_fixed(session: Session, training: Recording, norm: Channel) -> bool:
    """Tell whether a norm goes by its running statistics even in training."""
    found = training.counterparts(session.recorded, {norm[0]})
    return bool(found) and all(training.calls[index].operation.fixed for index in found)
