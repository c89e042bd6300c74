"""Which layers of the tapes are meant by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_deadunits.observation.identity import member_key, read_key
from lightning_deadunits.observation.layer_names import LayerNames, aliases
from lightning_deadunits.reinit.recording.tape import SiteCall, Tape


def keys_of(
    tapes: Sequence[Tape], wanted: Iterable[str], names: LayerNames | None = None
) -> dict[str, str]:
    """Return the names that are wanted, by the keys of the layers on the tapes that bear them.

    They are the names that a training has given to layers; by default those that the layers of the
    tapes would be given.
    """
    keys = list(dict.fromkeys(key for tape in tapes for key in tape.num_units))
    local = LayerNames()
    local.settle(keys)
    found: dict[str, str] = {}
    left = []
    for name in wanted:
        known = None if names is None else names.key(name)
        key = known if known in keys else local.key(name)
        if key is None:
            left.append(name)
        else:
            found[key] = name
    for name in left:
        # By a longer name than is needed here, as it was given where there were more layers.
        asked = [key for key in keys if name in aliases(key) and key not in found]
        if len(asked) == 1:
            found[asked[0]] = name
    return found | _elsewhere(tapes, found)


def _elsewhere(tapes: Sequence[Tape], found: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of layers that are found on another tape, where they are made otherwise.

    A norm that is written by hand is another way in training mode. It is the only call of the same
    activation, then, that has as many units. Or a step composes the modules itself, and what is an
    activation of the network in validation is one of the whole module in training: it is the only
    one that the same weights make in the same way.
    """
    more: dict[str, str] = {}
    for tape in tapes:
        sizes = tape.num_units
        for key, name in found.items():
            if name in (found.get(own) for own in sizes):
                continue
            size = next(own.num_units[key] for own in tapes if key in own.num_units)
            for may_be_one in (_of_one_activation, _of_same_weights):
                alike = [k for k, n in sizes.items() if n == size and may_be_one(k, key)]
                if len(alike) == 1 and alike[0] not in found:
                    more[alike[0]] = name
                    break
    return more


def _of_same_weights(key: str, other: str) -> bool:
    """Tell whether two keys are of units that the same weights make in the same way."""
    call, against = read_key(key), read_key(other)
    return bool(call.parts) and (call.parts, call.way) == (against.parts, against.way)


def _of_one_activation(key: str, other: str) -> bool:
    """Tell whether two keys are of one activation, and of weights in common if both tell any."""
    call, against = read_key(key), read_key(other)
    weights, others = call.producers, against.producers
    alike = not weights or not others or not set(weights).isdisjoint(others)
    return call.base == against.base and alike


def names_on(tapes: Sequence[Tape]) -> dict[str, int]:
    """Return the names that the layers of some tapes have, and the number of their units."""
    sizes = {key: size for tape in tapes for key, size in tape.num_units.items()}
    names = LayerNames()
    names.settle(sizes)
    return {names[key]: size for key, size in sizes.items()}


def made_by_rows(tapes: Sequence[Tape], name: str) -> bool:
    """Tell whether a layer is one of several that share a call, its rows made by each of them."""
    return any(
        name in aliases(member_key(entry.layer, member, entry.site.members))
        for tape in tapes
        for entry in tape.entries
        if isinstance(entry, SiteCall) and entry.site.members is not None
        for member in range(entry.site.members.number)
    )
