"""Writes that Dynamo does not show to function modes: ``h[h < 0] = 0`` from torch 2.15 on.

It is an activation that is traced into the graph without a word. The comparison before it is seen,
so the graph is kept from there on, and looked at when it is whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, fx

from lightning_deadunits.observation.identity import DROPS
from lightning_deadunits.observation.lineage.gates import COMPARISONS, gate_after
from lightning_deadunits.observation.regions import Regions, translator

HIDES_WRITES = Version(Version(torch.__version__).base_version) >= Version("2.15")
REASON = (
    "it is written as `h[h < 0] = 0`, which this version of torch compiles without showing it; "
    "write it as h.masked_fill(h < 0, 0), or validate the model uncompiled"
)


class HiddenWrites:
    """The activations that are such writes, of all graphs that were traced.

    Args:
        regions: Knows the names of the modules.
    """

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self._graphs: dict[fx.Graph, str] = {}
        self._met: dict[str, None] = {}

    def suspect(self, caller: str) -> None:
        """Look at the graph that is being traced, once it is whole.

        Args:
            caller: Name of the module whose forward compares a layer's output with something.
        """
        self._suspect(caller, self._regions.number)

    # The number is guarded on: a graph that was traced for another object is not used again.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
    def _suspect(self, caller: str, number: str) -> bool:
        with suppress(AttributeError):  # none of it is public
            self._graphs.setdefault(translator().output.graph, caller)
        return True

    def met(self) -> dict[str, None]:
        """Return the names of those in the graphs that have been traced, which are whole by now."""
        for graph, caller in self._graphs.items():
            self._met.update(dict.fromkeys(self._in(graph, caller)))
        self._graphs.clear()
        return self._met

    def _in(self, graph: fx.Graph, caller: str) -> Iterator[str]:
        for node in graph.nodes:
            if node.target is operator.setitem and len(node.args) == 3:
                x, mask, value = node.args
                zero = isinstance(value, (int, float)) and value == 0
                if zero and _gate_of(mask, x) == DROPS:
                    yield self._regions.name(node, "setitem", caller)


def _gate_of(mask: Any, x: Any) -> int:
    """Return which units of x a mask marks, 0 if it was not made by a comparison with x."""
    if not isinstance(mask, fx.Node) or not mask.args:
        return 0
    name = mask.target if isinstance(mask.target, str) else getattr(mask.target, "__name__", "")
    function = getattr(Tensor, name, None) or getattr(Tensor, f"__{name}__", None)
    if function is None:
        return 0
    if function in COMPARISONS:
        return gate_after(function, 0, mask.args[0] is x) if x in mask.args else 0
    return gate_after(function, _gate_of(mask.args[0], x), True)
