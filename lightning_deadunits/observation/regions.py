"""Regions that Dynamo traces by themselves: a branch of ``torch.cond``, a compiled checkpoint.

Nothing that runs inside of one may change anything outside: neither the stack of frames nor a
count. So inside nothing is told and nothing is counted; its graph tells which activations it has.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_deadunits.observation.activations import FUNCTION_NAMES, Kind, function_kind

REASON = (
    "it runs inside of a region that torch compiles by itself (a branch of torch.cond, a "
    "checkpoint in a compiled model), out of which no count can be taken; validate the model "
    "uncompiled, or without that operator"
)
_NUMBERS = itertools.count()
OPERATORS = torch._ops.HigherOrderOperator


def in_region() -> bool:
    """Tell whether what is being traced is a region, and must stay one."""
    return torch.compiler.is_compiling() and bool(_is_inside())


# Plain Python at the time of tracing. None of what it reads is public: without it no region is
# known, and tracing one raises as it may.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _is_inside() -> bool:
    with suppress(AttributeError):
        tx = translator()
        tracer = tx.output.current_tracer
        while tracer.parent is not None:
            # Where the graph may break, a checkpoint that tells runs eagerly, and is counted.
            checkpoint = "checkpoint" in str(tracer.source_target)
            if tx.one_graph or tx.error_on_graph_break or not checkpoint:
                return True
            tracer = tracer.parent
    return False


def translator() -> Any:
    """Return what Dynamo traces with at the moment; not public."""
    dynamo: Any = sys.modules.get("torch._dynamo.symbolic_convert")
    return dynamo.InstructionTranslator.current_tx()


class Regions:
    """The activations of all regions that were traced.

    Attributes:
        met: Their names, in the order in which they were met.
        number: Tells these regions from those of another object.
    """

    def __init__(self) -> None:
        self.met: dict[str, None] = {}
        # Dynamo guards on what it has read: a graph that was traced for others is not used again.
        self.number = str(next(_NUMBERS))
        self._modules: dict[str, tuple[str, Kind | None]] = {}

    def know(self, module: nn.Module, name: str, kind: Kind | None) -> None:
        """Take a module's name, and of which kind of activation it is."""
        self._modules[str(id(module))] = name, kind

    def look(self, caller: str) -> None:
        """Note what the graphs have that regions have been given so far.

        Args:
            caller: Name of the module whose forward calls the operator.
        """
        self._look(caller, self.number)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
    def _look(self, caller: str, number: str) -> bool:
        with suppress(AttributeError):  # none of it is public
            output = translator().output
            for graph in _regions_of(output.graph, output.nn_modules):
                self.met.update(dict.fromkeys(self._activations(graph, caller)))
        return True

    def _activations(self, graph: fx.Graph, caller: str) -> Iterator[str]:
        for node in graph.nodes:
            function = getattr(Tensor, node.target) if node.op == "call_method" else node.target
            if node.op not in ("call_function", "call_method") or function not in FUNCTION_NAMES:
                continue
            if function_kind(function, node.args, node.kwargs) in (None, "never"):
                continue
            stack = self._running(node)
            whole = next((name for name, kind in stack if kind is not None), None)
            yield whole or self.name(node, FUNCTION_NAMES[function], caller)

    def name(self, node: fx.Node, function_name: str, caller: str) -> str:
        """Return the name of a call in a graph: of the module that makes it, and the function's.

        Args:
            node: The call.
            function_name: What the function is called.
            caller: Name of the module that calls what the graph is of.
        """
        stack = self._running(node)
        frame = stack[-1][0] if stack else caller
        return f"{frame}.{function_name}" if frame else function_name

    def _running(self, node: fx.Node) -> list[tuple[str, Kind | None]]:
        """Return the modules that were running, the outermost first: names and kinds."""
        # Of a module's second call Dynamo writes ``id@1``.
        keys = [key.partition("@")[0] for key in node.meta.get("nn_module_stack") or ()]
        return [self._modules[key] for key in keys if key in self._modules]


def _regions_of(graph: fx.Graph, modules: Any) -> Iterator[fx.Graph]:
    """Return the graphs that operators are given, theirs too."""
    for node in graph.nodes:
        if isinstance(node.target, OPERATORS):
            for given in node.all_input_nodes:
                inner = modules.get(given.target) if given.op == "get_attr" else None
                if isinstance(inner, fx.GraphModule):
                    yield inner.graph
                    yield from _regions_of(inner.graph, dict(inner.named_modules()))
