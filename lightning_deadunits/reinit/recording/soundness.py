"""Which units a recording says enough about; the others are refused with a reason.

A replay is sound if everything that the pass did is on its tape. Where something is not, units that
ran before it may have flowed into it: they are refused. Units that ran later cannot have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_deadunits.reinit.recording.tape import SiteCall, Tape

UnitKey = tuple[str, int]


def refuse_unsound(
    tapes: Sequence[Tape], broken: Mapping[int, str], units: Iterable[UnitKey]
) -> dict[UnitKey, str]:
    """Return the units that a recording cannot vouch for, each with the reason.

    Args:
        tapes: The tapes.
        broken: Numbers of tapes that cannot be replayed, with the reason.
        units: The units.
    """
    reasons: dict[str, str] = {}
    for number, tape in enumerate(tapes):
        first: dict[str, int] = {}
        for position, entry in enumerate(tape.entries):
            if isinstance(entry, SiteCall):
                first.setdefault(entry.layer, position)
        for layer, position in first.items():
            later = [o.reason for o in tape.obstacles if o.position > position]
            if number in broken:
                reasons.setdefault(layer, broken[number])
            elif later:
                reasons.setdefault(layer, f"what it flows into cannot be followed: {later[0]}")
    return {(layer, unit): reasons[layer] for layer, unit in units if layer in reasons}
