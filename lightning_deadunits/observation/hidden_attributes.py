"""Attributes that Dynamo shows to no function mode: ``h.T`` and ``h.mT`` in a compiled model.

What they return is met as a tensor of which nothing is known, in the call that is given it. The
graph, whose last node that call is then, tells where it comes from.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import fx

from lightning_deadunits.observation.identity import WEIGHT, Descent, Producer
from lightning_deadunits.observation.regions import translator

_TRANSPOSES = ("T", "mT", "H", "mH")
_LOST = ("", 0, False)


def seen_through(place: int) -> Descent | None:
    """Return what the last call was given at a place, seen through attributes.

    Returns:
        The descent of weights that were transposed so, one of nothing for anything else that was,
        None for what was not, and for what a model is given.
    """
    name, order, turned = _source(place)
    if name is None:
        return None
    producers = (Producer(False, order, name),) if name else ()
    return Descent(None, producers, weight=bool(name), turned=turned)


# Plain Python at the time of tracing. None of what it reads is public, and what it raises would end
# the user's compilation: without it such a tensor is one of which nothing is known.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _source(place: int) -> tuple[str | None, int, bool]:
    with suppress(Exception):
        given: Any = next(reversed(translator().output.graph.nodes)).args[place]
        swaps = 0
        while _is_transpose(given):
            given, swaps = given.args[0], swaps + 1
        if swaps and given.op != "placeholder":
            return _LOST
        if swaps:
            named = getattr(given.meta["grapharg"].example, WEIGHT, None)
            return (None, 0, False) if named is None else (named[2], named[1], swaps % 2 == 1)
    return None, 0, False


def _is_transpose(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is getattr and node.args[1] in _TRANSPOSES
