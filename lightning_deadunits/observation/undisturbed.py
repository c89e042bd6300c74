"""Runs a model and leaves no trace: modes, buffers and random states are as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore every module's mode, every buffer and all random states, also after an exception.

    Args:
        model: The model that is run inside.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices(model)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes:
            module.training = training
        _restore(buffers)


def _devices(model: nn.Module) -> list[int]:
    """Return the CUDA devices that the model is on: only their generators can be drawn from."""
    tensors = (*model.parameters(), *model.buffers())
    return sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})


def _restore(
    buffers: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]],
) -> None:
    with torch.no_grad():
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if buffer is not None and value is not None and not _same(buffer, value):
                _refill_(buffer, value)


def _same(buffer: torch.Tensor, value: torch.Tensor) -> bool:
    # Sparse ones cannot be compared, and one that was resized in place has no equal.
    dense = buffer.layout == torch.strided
    return dense and buffer.shape == value.shape and torch.equal(buffer, value)


def _refill_(buffer: torch.Tensor, value: torch.Tensor) -> None:
    if buffer.layout == torch.strided and buffer.shape != value.shape:
        buffer.resize_(value.shape)
    buffer.copy_(value)
