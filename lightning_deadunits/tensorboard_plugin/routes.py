"""The HTTP interface: thin routes over functions that know nothing of HTTP. See HTTP.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorboard import plugin_util
from tensorboard.errors import InvalidArgumentError, NotFoundError
from werkzeug import Request, Response

from lightning_deadunits.tensorboard_plugin import query
from lightning_deadunits.tensorboard_plugin.answers import (
    TooLargeError,
    WsgiApp,
    application,
    binary_answer,
    csv_answer,
    json_answer,
)
from lightning_deadunits.tensorboard_plugin.export import MAX_FILE_BYTES, csv_lines, units_per_file
from lightning_deadunits.tensorboard_plugin.layer_view import layer_bundle, unit_curve
from lightning_deadunits.tensorboard_plugin.memory import Memory
from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError
from lightning_deadunits.tensorboard_plugin.ordering import ORDERS, Order
from lightning_deadunits.tensorboard_plugin.overview import overview_rows
from lightning_deadunits.tensorboard_plugin.reading import LayerRecord
from lightning_deadunits.tensorboard_plugin.scalars import KINDS, Kind, curves
from lightning_deadunits.tensorboard_plugin.source import Source
from lightning_deadunits.tensorboard_plugin.spoken import of_layer, read_verdict
from lightning_deadunits.tensorboard_plugin.timeline import reinitialisations, total_dead


def runs_impl(source: Source) -> dict[str, Any]:
    """List all runs, those without data of this plugin included."""
    counts = source.layer_counts()
    runs = [
        {
            "run": run.run_name,
            "start_time": run.start_time,
            "num_layers": counts.get(run.run_name, 0),
        }
        for run in source.runs()
    ]
    return {"runs": runs}


def overview_impl(source: Source, memory: Memory, run: str) -> dict[str, Any]:
    """Summarise every layer of a run."""
    layers = source.layers(run)
    records = memory.read(source, run, layers.values())
    verdict = read_verdict(source, run)
    return {"run": run, "layers": overview_rows(layers, records, verdict)}


def timeline_impl(
    source: Source, memory: Memory, run: str, wanted: dict[Kind, str | None]
) -> dict[str, Any]:
    """Tell a run over its steps: its scalars, its dead, its events, and what to make of them."""
    layers = source.layers(run)
    read = memory.read(source, run, layers.values())
    # Every unit once: of the windows beside a validation the maps tell, not the sums.
    records = [read[name] for name, layer in layers.items() if not layer.beside]
    verdict = read_verdict(source, run)
    return {
        "run": run,
        **curves(source, run, wanted),
        "total": total_dead(records),
        "reinitialisations": reinitialisations(records),
        "diagnosis": verdict.get("diagnosis"),
        "diagnosed_at": verdict.get("step"),
    }


def layer_impl(
    source: Source, memory: Memory, run: str, layer: str, order: Order, like: str | None = None
) -> bytes:
    """Pack the heat map of a layer, its units in the order of another run if that has them."""
    other = None
    if like is not None and like != run and layer in source.layers(like):
        found = memory.read(source, like, [source.layer(like, layer)])[layer]
        other = found if isinstance(found, LayerRecord) else None
    record = _record(source, memory, run, layer)
    said = of_layer(read_verdict(source, run), layer, int(record.history.rates.steps[-1]))
    made_by = said.get("made_by") or source.layer(run, layer).made_by
    return layer_bundle(record, order, other, made_by)


def unit_impl(source: Source, memory: Memory, run: str, layer: str, unit: int) -> dict[str, Any]:
    """Tell one unit's story."""
    record = _record(source, memory, run, layer)
    _require_unit(record, unit)
    return {"run": run, "layer": layer, **unit_curve(record, unit)}


def csv_impl(source: Source, memory: Memory, run: str, layer: str, units: range | None) -> bytes:
    """Write the rates of a layer, or of some of its units, as CSV."""
    record = _record(source, memory, run, layer)
    rates = record.history.rates
    units = range(rates.values.shape[1]) if units is None else units
    if units:
        _require_unit(record, units[-1])
    text = bytearray()
    for line in csv_lines(rates, units):
        text += line.encode()
        if len(text) > MAX_FILE_BYTES:
            fitting = units_per_file(rates, MAX_FILE_BYTES)
            raise TooLargeError(f"ask for at most {fitting} units, as in units=0-{fitting - 1}")
    return bytes(text)


def data_routes(source_of: Callable[[Request], Source]) -> dict[str, WsgiApp]:
    """Map the paths of the data to WSGI applications."""
    memory = Memory()

    def runs(request: Request) -> Response:
        return json_answer(request, runs_impl(source_of(request)))

    def overview(request: Request) -> Response:
        run = query.one(request, "run")
        return json_answer(request, overview_impl(source_of(request), memory, run))

    def timeline(request: Request) -> Response:
        run = query.one(request, "run")
        wanted = {kind: query.optional(request, kind) for kind in KINDS}
        return json_answer(request, timeline_impl(source_of(request), memory, run, wanted))

    def layer(request: Request) -> Response:
        run, name = query.one(request, "run"), query.one(request, "layer")
        order = query.choice(request, "order", ORDERS)
        like = query.optional(request, "like")
        content = layer_impl(source_of(request), memory, run, name, order, like)
        return binary_answer(request, content)

    def unit(request: Request) -> Response:
        run, name = query.one(request, "run"), query.one(request, "layer")
        index = query.unit(request)
        return json_answer(request, unit_impl(source_of(request), memory, run, name, index))

    def csv(request: Request) -> Response:
        run, name = query.one(request, "run"), query.one(request, "layer")
        content = csv_impl(source_of(request), memory, run, name, query.unit_range(request))
        return csv_answer(request, content, f"dead_units-{run}-{name}")

    answers = {
        "/runs": runs,
        "/overview": overview,
        "/timeline": timeline,
        "/layer": layer,
        "/unit": unit,
        "/csv": csv,
    }
    return {path: application(answer) for path, answer in answers.items()}


def source_for(provider: Any, max_steps: int) -> Callable[[Request], Source]:
    """Say where a request reads from: TensorBoard puts its context into the WSGI environment."""

    def source_of(request: Request) -> Source:
        environ = request.environ
        ctx, experiment_id = plugin_util.context(environ), plugin_util.experiment_id(environ)
        return Source(provider, ctx, experiment_id, max_steps)

    return source_of


def _record(source: Source, memory: Memory, run: str, layer: str) -> LayerRecord:
    found = source.layer(run, layer)
    record = memory.read(source, run, [found])[layer]
    if isinstance(record, UnreadableTagError):
        raise InvalidArgumentError(f"layer {layer!r} cannot be shown. {record}")
    return record


def _require_unit(record: LayerRecord, unit: int) -> None:
    num_units = record.history.rates.values.shape[1]
    if unit >= num_units:
        raise NotFoundError(f"unit {unit}; there are {num_units}")
