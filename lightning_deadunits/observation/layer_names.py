"""How layers are called in reports, tags and checkpoints: short where that is enough.

A layer's key says all: the activation, what makes its units, the way. Its name says as much as is
needed to tell it from the others: ``layer1.0.relu`` where one set of weights feeds the activation,
``layer1.0.relu.bn2`` where several do, ``relu-neg`` where the same weights feed it in two ways.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

from lightning_deadunits.observation.identity import Call, read_key

_MOST_LISTED = 8
"""Producers that a name lists at most: of a longer sum the last ones in the model's order."""


class LayerNames:
    """The names of layers by their keys: once given, a name stays."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def settle(self, keys: Iterable[str]) -> None:
        """Give a name to every key that has none yet; which ones depends on no order.

        Args:
            keys: Keys of layers, those of all processes.
        """
        fresh = [key for key in dict.fromkeys(keys) if key not in self._names]
        every = {key: read_key(key) for key in (*self._names, *fresh)}
        taken = set(self._names.values())
        for key in sorted(fresh, key=lambda key: _rank(every[key])):
            own = every[key]
            rivals = [
                call for other, call in every.items() if other != key and call.base == own.base
            ]
            name = next(name for name in _candidates(own, rivals) if name not in taken)
            self._names[key] = name
            taken.add(name)

    def __getitem__(self, key: str) -> str:
        """Return the name of a layer.

        Raises:
            KeyError: If it was never settled.
        """
        return self._names[key]

    def get(self, key: str) -> str:
        """Return the name of a layer; one that is not settled yet has that of its activation."""
        return self._names.get(key) or read_key(key).base

    def key(self, name: str) -> str | None:
        """Return the key of a layer by its name, None if there is none of that name."""
        return next((key for key, own in self._names.items() if own == name), None)

    def aliases(self, name: str) -> set[str]:
        """Return all names by which the layer of a name may be asked for."""
        key = self.key(name)
        return {name} if key is None else {name, *aliases(key)}

    def state_dict(self) -> dict[str, str]:
        """Return the names by key."""
        return dict(self._names)

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on with known names."""
        self._names = dict(state)


def names_of(keys: Iterable[str]) -> list[str]:
    """Return the names of layers that no others are known beside."""
    keys, names = list(dict.fromkeys(keys)), LayerNames()
    names.settle(keys)
    return [names[key] for key in keys]


def aliases(key: str) -> set[str]:
    """Return all names by which a layer may be asked for, whatever other layers there are.

    Example:
        >>> sorted(aliases("block.relu|block.bn1|sub"))
        ['block.relu', 'block.relu-sub', 'block.relu.bn1', 'block.relu.bn1-sub']
    """
    call = read_key(key)
    stems = _stems(call)
    names = {*stems, *(f"{stem}{_way(call)}" for stem in stems)}
    return names | {f"{name}-columns" for name in names} if _is_across(call) else names


def _rank(call: Call) -> tuple[object, ...]:
    """Order layers such that of several ways the plain one comes first."""
    negative = sum(part[0] == "-" for part in call.parts)
    return call.number, negative, len(call.way), call.way, _is_across(call), call.base, call.parts


def _candidates(own: Call, rivals: list[Call]) -> Iterable[str]:
    same = [call for call in rivals if call.producers == own.producers]
    others = [call for call in rivals if call.producers != own.producers]
    stems = _stems(own)
    if others:
        theirs = [_stems(call) for call in others]
        stems = [
            stem
            for level, stem in enumerate(stems)
            if level and stem not in {t[level] for t in theirs}
        ] or stems[-1:]
    if not same or _rank(own) < min(map(_rank, same)):
        yield from stems
    across = _is_across(own) and any(not _is_across(c) and c.way == own.way for c in same)
    yield from (f"{stem}{_way(own)}{'-columns' * across}" for stem in stems)
    number = 2
    while True:
        yield f"{stems[-1]}-{number}"
        number += 1


def _stems(call: Call) -> list[str]:
    """Return names that say more and more of what makes the units: nothing, one producer, all."""
    if not call.producers:
        return [call.base] * 4
    short = [_below(call.base, name) for name in call.producers]
    alone = [part.lstrip("-^")[0] != "+" for part in call.parts]
    weights = [n for n, one in zip(short, alone, strict=False) if one] or short
    listed = "-".join(short[-_MOST_LISTED:])
    if len(short) > _MOST_LISTED:
        listed += f"-{zlib.crc32(','.join(short).encode()):08x}"
    levels = (_nearest(weights), _nearest(short), listed)
    return [call.base, *(f"{call.base}.{name}" for name in levels)]


def _nearest(names: list[str]) -> str:
    """Return what the activation's own block makes, the last of it in the model's order."""
    return min(reversed(names), key=lambda name: name.count("."))


def _below(base: str, name: str) -> str:
    """Return a producer's name without what it has in common with the activation's."""
    own, theirs = base.split(".")[:-1], name.split(".")
    while own and len(theirs) > 1 and own[0] == theirs[0]:
        own, theirs = own[1:], theirs[1:]
    return ".".join(theirs)


def _is_across(call: Call) -> bool:
    """Tell whether its units are the columns of the weights, not their rows."""
    return any("^" in part.partition("[")[0] for part in call.parts)


def _way(call: Call) -> str:
    """Return what tells the way, to be put behind a name."""
    parts = [re.sub(r"[^A-Za-z0-9_.]", "", part.partition("[")[2]) for part in call.parts]
    told = [
        *("neg" for _ in range(any(part[0] == "-" for part in call.parts))),
        *dict.fromkeys(f"part{part}" for part in parts if part),
        *(call.way.split(".") if call.way else ()),
    ]
    number = f"-{call.number}" if call.number > 1 else ""
    return "".join(f"-{word}" for word in told) + number
