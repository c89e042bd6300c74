"""One tag over training: the steps that count, stacked into a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError


@dataclass(frozen=True)
class Series:
    """The vectors of one tag, oldest step first.

    Attributes:
        steps: Strictly increasing training steps, int64 ``(S,)``.
        wall_times: Seconds since the epoch, float64 ``(S,)``.
        values: float32 ``(S, U)``; NaN where a step had fewer units than the widest.
        widths: How many units each step had, int64 ``(S,)``.
    """

    steps: NDArray[np.int64]
    wall_times: NDArray[np.float64]
    values: NDArray[np.float32]
    widths: NDArray[np.int64]

    @property
    def num_units(self) -> int:
        """Units at the latest step."""
        return int(self.widths[-1]) if self.widths.size else 0


def from_events(events: Iterable[Any]) -> Series:
    """Stack what a data provider returned for one tag.

    Args:
        events: ``TensorDatum`` values in the order in which they were written.

    Raises:
        UnreadableTagError: If an event holds anything else than a vector of numbers.
    """
    kept = drop_orphans(list(events))
    vectors = [_vector(event) for event in kept]
    return Series(
        steps=np.array([event.step for event in kept], dtype=np.int64),
        wall_times=np.array([event.wall_time for event in kept], dtype=np.float64),
        values=_stack(vectors),
        widths=np.array([vector.size for vector in vectors], dtype=np.int64),
    )


def drop_orphans(events: Sequence[Any]) -> list[Any]:
    """Keep of a resumed run what TensorBoard's data server keeps.

    A step that goes back, or repeats, is a run resumed from an earlier checkpoint: whatever was
    written before at that step or later never led to the present weights. The data server drops it
    while loading; the Python loader hands on everything in the order of the files, so the same
    rule is applied here, and both loaders show the same. On the data server's output it is a no-op.
    """
    kept: list[Any] = []
    for event in events:
        while kept and kept[-1].step >= event.step:
            kept.pop()
        kept.append(event)
    return kept


def _vector(event: Any) -> NDArray[np.float32]:
    array = np.asarray(event.numpy)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise UnreadableTagError(
            f"Expected a vector of numbers, but step {event.step} holds {array.dtype} of shape "
            f"{array.shape}."
        )
    return array.astype(np.float32, copy=False)


def _stack(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    widest = max((vector.size for vector in vectors), default=0)
    values = np.full((len(vectors), widest), np.nan, dtype=np.float32)
    for row, vector in zip(values, vectors, strict=True):
        row[: vector.size] = vector
    return values
