"""Keeps what was read last, so that a second look at it costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from threading import Lock

from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError
from lightning_deadunits.tensorboard_plugin.reading import LayerRecord, read_records
from lightning_deadunits.tensorboard_plugin.source import Layer, Source

MEMORY_BUDGET = 512 * 2**20
# Beside its float32 rates, a record keeps verdicts that were asked for: two bools per cell.
_BYTES_PER_CELL = 6

_Key = tuple[str, str, str]


class Memory:
    """The records read last, up to a number of bytes.

    A record is kept with its layer, of which the latest step and time are a part: whatever is
    written later makes it another one.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, tuple[Layer, LayerRecord]] = OrderedDict()
        self._lock = Lock()  # TensorBoard answers requests in threads

    def read(
        self, source: Source, run: str, layers: Collection[Layer]
    ) -> dict[str, LayerRecord | UnreadableTagError]:
        """Read several layers of a run, from memory where they have not changed."""
        keys = {layer: (source.experiment_id, run, layer.name) for layer in layers}
        known = {layer.name: it for layer, key in keys.items() if (it := self._recall(key, layer))}
        read = read_records(source, run, [it for it in layers if it.name not in known])
        for layer, key in keys.items():
            record = known.get(layer.name) or read[layer.name]
            if isinstance(record, LayerRecord):
                self._keep(key, layer, record)
        return {**read, **known}

    def _recall(self, key: _Key, layer: Layer) -> LayerRecord | None:
        with self._lock:
            kept, record = self._kept.get(key, (None, None))
        return record if kept == layer else None

    def _keep(self, key: _Key, layer: Layer, record: LayerRecord) -> None:
        with self._lock:
            self._kept[key] = (layer, record)
            self._kept.move_to_end(key)
            while self._num_bytes() > MEMORY_BUDGET:
                self._kept.popitem(last=False)

    def _num_bytes(self) -> int:
        cells = sum(record.history.rates.values.size for _, record in self._kept.values())
        return cells * _BYTES_PER_CELL
