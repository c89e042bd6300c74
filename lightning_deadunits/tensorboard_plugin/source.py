"""What TensorBoard's data provider knows: runs, layers, and the events of a tag."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tensorboard.data.provider import RunTagFilter
from tensorboard.errors import NotFoundError

from lightning_deadunits.tensorboard_plugin.metadata import (
    PLUGIN_NAME,
    TAG_PREFIXES,
    WINDOW_PREFIX,
    TagMetadata,
    UnreadableTagError,
    decode,
)
from lightning_deadunits.tensorboard_plugin.verdict import VERDICT_TAG

_SCALARS = "scalars"  # the plugin under which both loaders file every scalar
_SCALAR_POINTS = 1_000  # more than a strip has pixels
_RATES, _MARKS = TAG_PREFIXES["zero_rate"], TAG_PREFIXES["reinit"]


@dataclass(frozen=True)
class Layer:
    """What a run logged for one layer.

    Attributes:
        name: Name of the layer.
        dead_threshold: A unit with ``zero_rate >= dead_threshold`` is dead.
        problem: Why its rates cannot be read, or None.
        has_marks: Whether re-initialisations were logged and can be read.
        marks_problem: Why its re-initialisations cannot be read, or None.
        made_by: Qualified names of the modules or parameters that make its units, if known.
        latest: Latest step and time of each of its tags: another one means new data.
    """

    name: str
    dead_threshold: float
    problem: str | None
    has_marks: bool
    marks_problem: str | None
    made_by: tuple[str, ...]
    latest: tuple[tuple[int, float], ...]

    @property
    def beside(self) -> bool:
        """Whether these are windows of training batches beside a validation of the same units."""
        return self.name.startswith(WINDOW_PREFIX)


@dataclass(frozen=True)
class Source:
    """Where one request reads from, behind either of TensorBoard's loaders.

    Attributes:
        provider: TensorBoard's ``DataProvider``.
        ctx: TensorBoard's ``RequestContext``.
        experiment_id: TensorBoard's experiment, usually ``""``.
        max_steps: How many steps of a tag TensorBoard was told to keep.
    """

    provider: Any
    ctx: Any
    experiment_id: str
    max_steps: int

    def runs(self) -> list[Any]:
        """List every run TensorBoard knows, with or without data of this plugin."""
        runs = self.provider.list_runs(self.ctx, experiment_id=self.experiment_id)
        return sorted(runs, key=lambda run: str(run.run_name))

    def layer_counts(self) -> dict[str, int]:
        """Count the layers of every run that has any."""
        return {
            run: sum(tag.startswith(_RATES) for tag in tags)
            for run, tags in self._tags(RunTagFilter()).items()
        }

    def layers(self, run: str) -> dict[str, Layer]:
        """List the layers of a run, those that cannot be read included.

        Raises:
            NotFoundError: If there is no such run.
        """
        tags = self._tags_of(run)
        names = sorted(tag.removeprefix(_RATES) for tag in tags if tag.startswith(_RATES))
        return {name: _layer(name, tags) for name in names}

    def layer(self, run: str, name: str) -> Layer:
        """Find one layer of a run.

        Raises:
            NotFoundError: If there is no such run, or no such layer in it.
        """
        layers = self.layers(run)
        if name not in layers:
            raise NotFoundError(f"layer {name!r} in run {run!r}")
        return layers[name]

    def verdict(self, run: str) -> list[Any]:
        """Read the latest verdict that the callback left beside the rates, if there is one."""
        try:
            return self.events(run, [VERDICT_TAG], 1).get(VERDICT_TAG, [])
        except Exception:  # whatever a malformed tensor makes of TensorBoard's decoding
            return []

    def scalar_tags(self, run: str) -> dict[str, Any]:
        """List the scalars of a run, whoever logged them."""
        tags: dict[str, dict[str, Any]] = self.provider.list_scalars(
            self.ctx,
            experiment_id=self.experiment_id,
            plugin_name=_SCALARS,
            run_tag_filter=RunTagFilter(runs=[run]),
        )
        return tags.get(run, {})

    def scalars(self, run: str, tags: Collection[str]) -> dict[str, list[Any]]:
        """Read some scalars of a run."""
        if not tags:
            return {}
        answer: dict[str, dict[str, list[Any]]] = self.provider.read_scalars(
            self.ctx,
            experiment_id=self.experiment_id,
            plugin_name=_SCALARS,
            downsample=_SCALAR_POINTS,
            run_tag_filter=RunTagFilter(runs=[run], tags=list(tags)),
        )
        return answer.get(run, {})

    def events(self, run: str, tags: Collection[str], max_steps: int) -> dict[str, list[Any]]:
        """Read at most ``max_steps`` steps of each tag, the latest always among them."""
        answer: dict[str, dict[str, list[Any]]] = self.provider.read_tensors(
            self.ctx,
            experiment_id=self.experiment_id,
            plugin_name=PLUGIN_NAME,
            downsample=max_steps,
            run_tag_filter=RunTagFilter(runs=[run], tags=list(tags)),
        )
        return answer.get(run, {})

    def _tags_of(self, run: str) -> Mapping[str, Any]:
        tags = self._tags(RunTagFilter(runs=[run])).get(run, {})
        if not tags and run not in {known.run_name for known in self.runs()}:
            raise NotFoundError(f"run {run!r}")
        return tags

    def _tags(self, run_tag_filter: Any) -> dict[str, Mapping[str, Any]]:
        tags: dict[str, Mapping[str, Any]] = self.provider.list_tensors(
            self.ctx,
            experiment_id=self.experiment_id,
            plugin_name=PLUGIN_NAME,
            run_tag_filter=run_tag_filter,
        )
        return tags


def _layer(name: str, tags: Mapping[str, Any]) -> Layer:
    rates, marks = tags[_RATES + name], tags.get(_MARKS + name)
    metadata, problem = _decoded(rates.plugin_content)
    marks_problem = None if marks is None else _decoded(marks.plugin_content)[1]
    return Layer(
        name=name,
        dead_threshold=metadata.dead_threshold,
        problem=problem,
        has_marks=marks is not None and marks_problem is None,
        marks_problem=marks_problem,
        made_by=metadata.made_by,
        latest=tuple((it.max_step, it.max_wall_time) for it in (rates, marks) if it is not None),
    )


def _decoded(content: bytes) -> tuple[TagMetadata, str | None]:
    try:
        return decode(content), None
    except UnreadableTagError as error:
        return TagMetadata("zero_rate", float("nan")), str(error)
