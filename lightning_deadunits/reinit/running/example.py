"""Runs a model on one example, as often as wanted, and leaves it as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.undisturbed import undisturbed

Change = Callable[[Tensor], Tensor]
Forward = Callable[[Any], Any]

_OWN = {"_parameters", "_buffers", "_modules", "training"}


_MOST_CELLS = 31
"""So that a code of 62 bits spans two passes at least."""


class Example:
    """One batch, and how the model is run on it.

    Args:
        model: The model.
        batch: What it is run on.
        forward: Runs the model on a batch; what it returns is compared before and after.

    Attributes:
        passes: How many forward passes were run.
    """

    def __init__(self, model: nn.Module, batch: Any, forward: Forward) -> None:
        self.model = model
        self.batch = batch
        self.passes = 0
        self._forward = forward

    def run(self, *, training: bool = False, change: Change | None = None) -> list[Tensor]:
        """Run one pass without gradients; modes, buffers, random and Python state are as before.

        Args:
            training: Whether in training mode.
            change: Applied to every floating point tensor of the batch.

        Returns:
            The floating point tensors of the output.
        """
        self.passes += 1
        batch = self.batch if change is None else mapped(self.batch, change)
        with undisturbed(self.model), same_attributes(self.model), torch.no_grad(), eagerly():
            self.model.train(training)
            output = self._forward(batch)
            return [tensor.detach().clone() for tensor in floats_in(output)]

    @property
    def size(self) -> int:
        """Number of samples: the most common first axis of the batch's tensors, 1 if none."""
        sizes = [tensor.shape[0] for tensor in _all_tensors(self.batch) if tensor.ndim]
        return max(sizes, key=sizes.count) if sizes else 1

    @property
    def cells(self) -> int:
        """Number of equal blocks of samples that are told apart, few enough for a code's bits."""
        fitting = range(min(self.size, _MOST_CELLS), 0, -1)
        return next((cells for cells in fitting if self.size % cells == 0), 1)

    def differs(self) -> bool:
        """Tell whether it holds at least two different samples."""
        rows = [t for t in _all_tensors(self.batch) if t.ndim and t.shape[0] == self.size]
        return self.size > 1 and any(bool((row[1:] != row[:1]).any()) for row in rows)


def mapped(value: Any, change: Change) -> Any:
    """Return nested containers with every floating point tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, change) for item in value)
    return value


def floats_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors of a model's output."""
    return (tensor for tensor in _all_tensors(value) if tensor.is_floating_point())


def _all_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _all_tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _all_tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from _all_tensors(vars(value))


@contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Restore what modules keep in plain attributes: counters, lists of outputs, metrics' states.

    Containers are restored one level deep, which covers ``self.outputs.append(loss)``.
    """
    before = [(module, _attributes(module)) for module in model.modules()]
    copies = [{name: _copied(value) for name, value in kept.items()} for _, kept in before]
    try:
        yield
    finally:
        for (module, kept), copied in zip(before, copies, strict=True):
            for name in _attributes(module).keys() - kept.keys():
                del module.__dict__[name]
            for name, value in kept.items():
                module.__dict__[name] = _refilled(value, copied[name])


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _OWN and not name.endswith("_hooks") and "_hooks_" not in name
    }


def _copied(value: Any) -> Any:
    # A plain tensor is some state that is no buffer, as in torchmetrics; updates may be in place.
    if type(value) is Tensor and not value.requires_grad:
        return value.clone()
    return type(value)(value) if type(value) in (list, dict, set) else value


def _refilled(value: Any, content: Any) -> Any:
    if type(value) is list:
        value[:] = content
    elif type(value) in (dict, set):
        value.clear()
        value.update(content)
    elif type(value) is Tensor and not torch.equal(value, content):
        return content
    return value


def eagerly() -> Any:
    """Run compiled modules eagerly, so that every call is seen; their graphs stay valid."""
    if "torch._dynamo" not in sys.modules:  # importing it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
