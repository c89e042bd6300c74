"""Slow and plain: what every count is compared with. NumPy loops, no code of the package."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def zeros_by_loops(activation: Tensor, unit_dim: int, atol: float = 0.0) -> Tensor:
    """Count the zeros of every unit, one value at a time, int64 of shape ``(U,)``."""
    values = np.moveaxis(activation.detach().double().numpy(), unit_dim, 0)
    counts = np.zeros(len(values), dtype=np.int64)
    for unit, of_unit in enumerate(values):
        for value in of_unit.ravel():
            counts[unit] += bool(abs(value) <= atol)  # a NaN compares false
    return torch.from_numpy(counts)


def zeros_by_numpy(activation: Tensor, unit_dim: int, atol: float = 0.0) -> Tensor:
    """Count the same without a loop over values, for larger activations."""
    values = np.moveaxis(activation.detach().double().numpy(), unit_dim, 0)
    flat = np.abs(values.reshape(len(values), -1)) <= atol
    return torch.from_numpy(flat.sum(axis=1).astype(np.int64))
