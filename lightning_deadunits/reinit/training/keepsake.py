"""A few samples of recent batches, kept for the next event."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

MOST_SAMPLES = 8


class Keepsake:
    """Keeps the first samples of a batch, or those of several that are smaller.

    One sample alone shows nothing of what is constant: what was kept before stays beside it.

    Args:
        most: How many samples.

    Attributes:
        batch: What is kept, None if there is nothing.
        stale: Whether the next batch takes its place, rather than adding to it.
    """

    def __init__(self, most: int = MOST_SAMPLES) -> None:
        self.batch: Any = None
        self.stale = False
        self._most = most

    def offer(self, batch: Any) -> None:
        """Keep something of a batch, unless there is enough already or it cannot be copied."""
        anew, self.stale = self.stale, False
        with suppress(Exception):  # containers of the user's own, whatever they do
            if self.batch is None:
                self.batch = first_samples(batch, self._most)
            elif anew or 0 < samples(self.batch) < self._most:
                self._add(first_samples(batch, self._most), anew)

    def _add(self, new: Any, anew: bool) -> None:
        if anew and samples(new) != 1:
            self.batch = new
            return
        first, second = (new, self.batch) if anew else (self.batch, new)
        joined = _joined(first, second)
        if joined is not None:
            self.batch = first_samples(joined, self._most)
        elif samples(self.batch) == 1:
            self.batch = new  # another length of sequence, say


def samples(batch: Any) -> int:
    """Return the number of samples, 0 if that cannot be told."""
    sizes = [tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim]
    return max(sizes, key=sizes.count) if sizes else 0


def first_samples(batch: Any, most: int = MOST_SAMPLES) -> Any:
    """Return copies of the first samples of a batch; what is no tensor is kept as it is."""
    size = samples(batch)

    def cut(tensor: Tensor) -> Tensor:
        whole = tensor.ndim == 0 or tensor.shape[0] != size
        # A slice would keep the whole batch in memory.
        return (tensor if whole else tensor[:most]).detach().clone()

    try:
        return mapped_tensors(batch, cut)
    except (RuntimeError, NotImplementedError):  # sparse ones cannot be cut: all or nothing
        return mapped_tensors(batch, lambda tensor: tensor.detach().clone())


def _joined(one: Any, other: Any) -> Any:
    """Return two batches as one along the first axis, None if they do not fit."""
    ours, theirs = list(_tensors(one)), list(_tensors(other))
    if len(ours) != len(theirs):
        return None
    pairs = iter(zip(ours, theirs, strict=True))
    size = samples(one)

    def join(tensor: Tensor) -> Tensor:
        mine, more = next(pairs)
        return torch.cat([mine, more]) if mine.ndim and mine.shape[0] == size else mine

    try:
        return mapped_tensors(one, join)
    except RuntimeError:
        return None


def mapped_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested containers with every tensor changed; unknown objects stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: mapped_tensors(item, change) for key, item in value.items()}
        try:
            return type(value)(items)  # type: ignore[call-arg]  # as dict takes them
        except TypeError:
            return items
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped_tensors(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped_tensors(item, change) for item in value)
    return value


def portable(batch: Any) -> Any:
    """Return a batch as another process can take it, of its own type if that can be pickled."""
    moved = mapped_tensors(batch, lambda tensor: tensor.detach().cpu())
    try:
        pickle.dumps(moved)
    except Exception:  # whatever a container of the user's own raises
        return plain(batch)
    return moved


def plain(value: Any) -> Any:
    """Return a batch as tensors, primitives and built-in containers only, None if it cannot be."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            [plain(item) for item in value]
            if isinstance(value, list)
            else tuple(plain(item) for item in value)
        )
    return None


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped_tensors(value, note)
    return found
