"""What a compiled model needs: its wrapper known, and room for one counting graph per layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_GRAPHS = 1 << 16


def is_opaque(module: nn.Module) -> bool:
    """Tell whether a module only stands for another one, or cannot be hooked."""
    # By name: importing torch._dynamo takes a second, and is needless where nothing is compiled.
    names = {cls.__name__ for cls in type(module).__mro__}
    return bool(names & {"OptimizedModule", "ScriptModule"})


@contextmanager
def room_for_graphs() -> Iterator[None]:
    """Lift Dynamo's limit on recompilations for a while.

    A block that is compiled once and used by many layers gets a counting graph for each of them,
    because each has its own name. Past the limit Dynamo would run it eagerly, and raise under
    ``fullgraph=True``.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    config = dynamo.config
    with config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS):
        yield
