"""Reads the histories of a run's layers in pieces that the data server can send."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lightning_deadunits.tensorboard_plugin.history import History, current_marks
from lightning_deadunits.tensorboard_plugin.metadata import TAG_PREFIXES, UnreadableTagError
from lightning_deadunits.tensorboard_plugin.series import Series, from_events
from lightning_deadunits.tensorboard_plugin.source import Layer, Source

# The data server's answers are limited to 256 MiB; half of that leaves room for what a peek at the
# latest step cannot know: that a layer was wider before.
READ_BUDGET = 128 * 2**20

Readable = Series | UnreadableTagError


@dataclass(frozen=True)
class LayerRecord:
    """All there is about a layer of a run.

    Attributes:
        history: Its units' lives.
        marks: Its re-initialisations, 1 where a unit was re-initialised; None if there were none.
    """

    history: History
    marks: Series | None


def read_records(
    source: Source, run: str, layers: Collection[Layer]
) -> dict[str, LayerRecord | UnreadableTagError]:
    """Read several layers of a run, each a record or why there is none."""
    readable = [layer.name for layer in layers if layer.problem is None]
    rates = _read(source, run, TAG_PREFIXES["zero_rate"], readable)
    marks = _read(source, run, TAG_PREFIXES["reinit"], [it.name for it in layers if it.has_marks])
    return {it.name: _record(it, rates.get(it.name), marks.get(it.name)) for it in layers}


def _record(
    layer: Layer, rates: Readable | None, marks: Readable | None
) -> LayerRecord | UnreadableTagError:
    if layer.problem is not None:
        return UnreadableTagError(layer.problem)
    if isinstance(rates, UnreadableTagError):
        return rates
    if rates is None or not rates.steps.size:
        return UnreadableTagError("TensorBoard lists it, but has no step of it yet.")
    kept = current_marks(marks, rates) if isinstance(marks, Series) else None
    return LayerRecord(History(rates, layer.dead_threshold, kept), kept)


def _read(source: Source, run: str, prefix: str, layers: Collection[str]) -> dict[str, Readable]:
    results: dict[str, Readable] = {}
    steps_of = _affordable_steps(source, run, [prefix + layer for layer in layers])
    for steps, tags in _batches(steps_of):
        for tag, events in _events(source, run, tags, steps).items():
            results[tag.removeprefix(prefix)] = _series(events)
    return results


@dataclass(frozen=True)
class _Affordable:
    """How many steps of a tag one read may ask for, and what they weigh at most, in bytes."""

    steps: int
    num_bytes: int


def _affordable_steps(source: Source, run: str, tags: Collection[str]) -> dict[str, _Affordable]:
    """Peek at the latest step of each tag: TensorBoard does not list sizes."""
    affordable = {}
    for tag, events in _events(source, run, tags, 1).items():
        size = 1 if isinstance(events, UnreadableTagError) else max(1, events[-1].numpy.nbytes)
        steps = max(1, min(source.max_steps, READ_BUDGET // size))
        affordable[tag] = _Affordable(steps, steps * size)
    return affordable


def _batches(tags: Mapping[str, _Affordable]) -> Iterator[tuple[int, list[str]]]:
    """Group tags into reads within the budget; one read has one number of steps."""
    by_steps = sorted(tags, key=lambda tag: tags[tag].steps)
    for steps, group in groupby(by_steps, key=lambda tag: tags[tag].steps):
        batch: list[str] = []
        spent = 0
        for tag in group:
            if batch and spent + tags[tag].num_bytes > READ_BUDGET:
                yield steps, batch
                batch, spent = [], 0
            batch.append(tag)
            spent += tags[tag].num_bytes
        yield steps, batch


def _events(
    source: Source, run: str, tags: Collection[str], steps: int
) -> dict[str, list[Any] | UnreadableTagError]:
    """Read several tags at once; if that fails, one by one, so that only the culprit is lost."""
    if not tags:
        return {}
    try:
        return {tag: events for tag, events in source.events(run, tags, steps).items() if events}
    except Exception as error:  # whatever a malformed tensor makes of TensorBoard's decoding
        if len(tags) == 1:
            return {tag: UnreadableTagError(f"It cannot be read: {error}") for tag in tags}
    answers: dict[str, list[Any] | UnreadableTagError] = {}
    for tag in tags:
        answers |= _events(source, run, [tag], steps)
    return answers


def _series(events: list[Any] | UnreadableTagError) -> Readable:
    if isinstance(events, UnreadableTagError):
        return events
    try:
        return from_events(events)
    except UnreadableTagError as error:
        return error
