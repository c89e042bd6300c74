"""Long names, shortened so that different ones stay different; ``names.js`` does it in the tab."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

_PARTS = re.compile(r"(?<=\.)")
_GAP = ".."
"""What stands for parts that were left out: behind a dot, so that one reads ``...``."""


def short_names(names: Iterable[str], length: int) -> dict[str, str]:
    """Shorten names to a length.

    The parts that most names share go first, of these the ones nearest to the middle: what tells
    ``blocks.10`` from ``blocks.11`` stays.

    Example:
        >>> list(short_names(["net.decoder.layers.0.act", "net.decoder.layers.1.act"], 16).values())
        ['net...0.act', 'net...1.act']
    """
    names = list(dict.fromkeys(names))
    shares = Counter(part for name in names for part in set(_PARTS.split(name)))
    short = {}
    for least, cut in ((1, _without_middle), (2, _without_end)):
        for name in names:
            form = _without_shared(name, length, shares, least)
            short[name] = form if len(form) <= length else cut(form, length)
        if len(set(short.values())) == len(names):
            break
    return short


def _without_shared(name: str, length: int, shares: Mapping[str, int], least: int) -> str:
    """Leave out parts that so many names share at least, until it is short enough."""
    parts = _PARTS.split(name)
    middle = (len(parts) - 1) / 2
    order = sorted(
        (at for at in range(1, len(parts) - 1) if shares[parts[at]] >= least),
        key=lambda at: (-shares[parts[at]], abs(at - middle)),
    )
    kept, form = set(range(len(parts))), name
    while len(form) > length and order:
        kept.remove(order.pop(0))
        form = "".join(
            part if at in kept else _GAP if at - 1 in kept else "" for at, part in enumerate(parts)
        )
    return form


def _without_middle(name: str, length: int) -> str:
    """Leave out the middle of a name.

    Example:
        >>> _without_middle("encoder_layers_11_mlp_act", 16)
        'encoder...lp_act'
    """
    front = (length - 3 + 1) // 2
    return f"{name[:front]}...{name[len(name) - (length - 3 - front) :]}"


def _without_end(name: str, length: int) -> str:
    return f"{name[: length - 3]}..."
