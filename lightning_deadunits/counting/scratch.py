"""Memory of each thread in which pieces of activations are counted."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

WORD = 8
"""Bytes that are added at once, as one int64."""
_VIEWS = 256
"""Most shapes of pieces that are remembered."""


class Scratch(threading.local):
    """Memory of each thread that pieces are counted in; getting it anew would cost more."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.bool, device="cpu")
        self._ones = torch.empty(0, dtype=torch.float32, device="cpu")
        self._values: dict[torch.dtype, Tensor] = {}
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def flags(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return a bool per value, and the same memory with eight of them in an int64."""
        views = self._views.get((height, width))
        if views is None:
            views = self._views[height, width] = self._make(height, width)
        return views

    def like(self, piece: Tensor) -> Tensor:
        """Return memory for a piece."""
        values = self._values.get(piece.dtype)
        if values is None or values.numel() < piece.numel():
            with torch.inference_mode(False):
                values = torch.empty(piece.numel(), dtype=piece.dtype, device="cpu")
            self._values[piece.dtype] = values
        return values[: piece.numel()].view(piece.shape)

    def ones(self, length: int) -> Tensor:
        """Return a vector of ones."""
        if len(self._ones) < length:
            with torch.inference_mode(False):
                self._ones = torch.ones(length, dtype=torch.float32, device="cpu")
        return self._ones[:length]

    def _make(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        padded = -(-width // WORD) * WORD
        # An inference tensor could not be written to by a later pass in another mode.
        with torch.inference_mode(False):
            if self._bytes.numel() < height * padded or len(self._views) >= _VIEWS:
                self._views.clear()
                size = max(self._bytes.numel(), height * padded)
                # Zeros: the bytes between rows are summed, too, and thrown away.
                self._bytes = torch.zeros(size, dtype=torch.bool, device="cpu")
            flags = self._bytes[: height * padded].view(height, padded)
            return flags[:, :width], flags.view(torch.int64)


SCRATCH = Scratch()
