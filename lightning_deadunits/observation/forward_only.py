"""Observes forward passes where backward runs, too: what it computes anew is not counted again."""

from __future__ import annotations

from typing import Any

import torch

from lightning_deadunits.observation.compiled import keep_eager
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.private_api import is_running_backward


def in_backward() -> bool:
    """Tell whether backward is running, as it is where activation checkpointing recomputes."""
    # -1 is outside of it. Dynamo cannot ask, nor need it: what a compiled region computes anew is
    # in its graph.
    return not torch.compiler.is_compiling() and is_running_backward()


class ForwardObserver(Observer):
    """Observes forward passes, and not what activation checkpointing computes anew."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if in_backward():
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


keep_eager(ForwardObserver.__torch_function__)
