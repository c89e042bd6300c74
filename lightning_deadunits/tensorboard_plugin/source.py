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
    UnreadableTagError,
    decode,
)

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
    """

    name: str
    dead_threshold: float
    problem: str | None
    has_marks: bool
    marks_problem: str | None


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
        contents = {tag: it.plugin_content for tag, it in self._tags_of(run).items()}
        names = sorted(tag.removeprefix(_RATES) for tag in contents if tag.startswith(_RATES))
        return {name: _layer(name, contents) for name in names}

    def layer(self, run: str, name: str) -> Layer:
        """Find one layer of a run.

        Raises:
            NotFoundError: If there is no such run, or no such layer in it.
        """
        layers = self.layers(run)
        if name not in layers:
            raise NotFoundError(f"layer {name!r} in run {run!r}")
        return layers[name]

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


def _layer(name: str, contents: Mapping[str, bytes]) -> Layer:
    threshold, problem = _threshold(contents[_RATES + name])
    logged = _MARKS + name in contents
    marks_problem = _threshold(contents[_MARKS + name])[1] if logged else None
    return Layer(name, threshold, problem, logged and not marks_problem, marks_problem)


def _threshold(content: bytes) -> tuple[float, str | None]:
    try:
        return decode(content).dead_threshold, None
    except UnreadableTagError as error:
        return float("nan"), str(error)
