"""What a compiled model needs: its wrapper known, and room for one counting graph per layer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from packaging.version import Version
from torch import nn

_GRAPHS = 1 << 16
_LIMITS = ("recompile_limit", "accumulated_recompile_limit")
COUNTS_IN_GRAPHS = Version(Version(torch.__version__).base_version) >= Version("2.13")
"""Whether Dynamo can compile the counting together with the model: 2.11 fails at an assertion of
its own when it traces the named tuples that say where units come from. What lies between 2.8 and
2.12 was not tried one by one."""


def is_opaque(module: nn.Module) -> bool:
    """Tell whether a module only stands for another one, or cannot be hooked."""
    # By name: importing torch._dynamo takes a second, and is needless where nothing is compiled.
    names = {cls.__name__ for cls in type(module).__mro__}
    return bool(names & {"OptimizedModule", "ScriptModule"})


def keep_eager(*functions: Callable[..., Any]) -> None:
    """Have Dynamo never compile our own functions by themselves, but inline them where it traces.

    After a graph break it would take them for the user's code, at a cost, and once with a wrong
    result: a compiled ``Tensor.dtype`` came back as an int.
    """
    # Not public, and absent from older versions of torch, which then do as they do.
    with suppress(ImportError, AttributeError):
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        for function in functions:
            eval_frame.set_code_exec_strategy(
                function.__code__, eval_frame._FrameExecStrategy(skip, skip)
            )


@contextmanager
def room_for_graphs() -> Iterator[None]:
    """Lift Dynamo's limit on recompilations for a while.

    A block that is compiled once and used by many layers gets a counting graph for each of them,
    because each has its own name. Past the limit Dynamo would run it eagerly, and raise under
    ``fullgraph=True``.

    Before torch 2.13 Dynamo cannot trace all of the counting, and takes the graph of one instance
    of a class for that of another: there, what is compiled runs eagerly for as long as it is
    counted.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    if not COUNTS_IN_GRAPHS:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    config = dynamo.config
    before = {name: getattr(config, name) for name in _LIMITS}
    # Not `config.patch`: since torch 2.13 every patch leaves a ContextVar in the context for good,
    # which is 200 bytes per observed batch.
    try:
        for name in _LIMITS:
            setattr(config, name, _GRAPHS)
        yield
    finally:
        for name, limit in before.items():
            setattr(config, name, limit)
