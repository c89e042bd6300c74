"""Coupled groups, and what the traces of several units come to."""

from __future__ import annotations

from lightning_deadunits.reinit.dataflow.passes import UnitKey
from lightning_deadunits.reinit.dataflow.trace import Part, UnitTrace
from lightning_deadunits.reinit.ops import Channel
from lightning_deadunits.reinit.weight_slice import WeightSlice

Traces = dict[UnitKey, UnitTrace]


def coupled_groups(traces: Traces) -> list[list[UnitKey]]:
    """Return the units in groups that share weights, so that one cannot go without the others."""
    group_of: dict[tuple[str, Channel], list[UnitKey]] = {}
    for unit, trace in traces.items():
        merged = [unit]
        for other in {id(g): g for share in trace.shares if (g := group_of.get(share))}.values():
            merged += other
        for member in merged:
            for share in traces[member].shares:
                group_of[share] = merged
    groups = {id(group): group for group in group_of.values()}
    loose = [[unit] for unit, trace in traces.items() if not trace.shares]
    return list(groups.values()) + loose


def refuse_with_group(traces: Traces, refused: dict[UnitKey, str], groups: Traces) -> None:
    """Refuse units that share weights with refused ones; both arguments are changed."""
    for group in coupled_groups(groups):
        lost = [unit for unit in group if unit in refused]
        for unit in group:
            if lost and unit not in refused:
                layer, number = lost[0]
                refused[unit] = f"it shares weights with unit {number} of {layer}, which is refused"
                traces.pop(unit, None)


def parts_by_call(traces: Traces) -> dict[tuple[str, tuple[int, str]], list[Part]]:
    """Sort the parts that make units by layer, call and role; each of the weights once."""
    found: dict[tuple[str, tuple[int, str]], list[Part]] = {}
    seen: set[tuple[str, int, int, int]] = set()
    for (layer, _), trace in traces.items():
        for part in trace.makes:
            if (key := (part.role, *weights_key(part.weights))) not in seen:
                seen.add(key)
                found.setdefault((layer, (part.index, part.role)), []).append(part)
    return found


def made_by(traces: Traces) -> set[int]:
    """Return the calls that fresh weights feed, whose results so must differ."""
    parts = {part.index for trace in traces.values() for part in trace.makes}
    # A norm without weights of its own is fed by fresh ones all the same.
    norms = (n for trace in traces.values() for n in (*trace.statistics, *trace.fixed))
    return parts | {index for index, _ in norms}


def biases_of(traces: Traces) -> dict[Channel, WeightSlice]:
    """Return the biases of channels that no norm stands behind, which would take a shift back."""
    return {
        (part.index, part.channel): part.weights
        for trace in traces.values()
        for part in trace.makes
        if part.role == "bias" and not trace.statistics
    }


def weights_key(weights: WeightSlice) -> tuple[int, int, int]:
    """Return what tells some weights, whichever call uses them."""
    places = weights.positions
    return id(weights.parameter), int(places[0]) if len(places) else -1, len(places)


def left_in(traces: Traces) -> set[UnitKey]:
    """Return the units that must do without some of what made them."""
    return {unit for unit, trace in traces.items() if trace.left}


def statistics_of(traces: Traces) -> set[Channel]:
    """Return the norms whose running statistics are to be those of fresh weights."""
    return {channel for trace in traces.values() for channel in trace.statistics}
