"""Per-unit vectors as TensorBoard events: what the tab reads.

Needs only NumPy and TensorBoard, so that logging never drags in more than training already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT

from lightning_deadunits.tensorboard_plugin.metadata import (
    PLUGIN_NAME,
    TAG_PREFIXES,
    TagMetadata,
    encode,
)


def write_zero_rates(
    writer: Any,
    layer: str,
    zero_rate: NDArray[np.floating[Any]],
    step: int,
    *,
    dead_threshold: float,
    made_by: Sequence[str] = (),
    wall_time: float | None = None,
) -> None:
    """Write one layer's zero-activation rates of one validation.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        layer: Name of the layer; the tag is ``dead_units/<layer>``.
        zero_rate: Rates in [0, 1], shape ``(U,)``; NaN for a unit that was never seen.
        step: Training step of the validation.
        dead_threshold: A unit with ``zero_rate >= dead_threshold`` is dead. TensorBoard keeps the
            value of the tag's first event.
        made_by: Qualified names of the modules or parameters that make the units, the same at
            every validation; TensorBoard keeps those of the tag's first event.
        wall_time: Seconds since the epoch; now, if None.

    Raises:
        ValueError: If ``zero_rate`` is not one-dimensional.
    """
    rates = _as_float32(np.asarray(zero_rate), dead_threshold)
    metadata = TagMetadata("zero_rate", dead_threshold, tuple(made_by))
    _write(writer, layer, rates, step, metadata, wall_time)


def write_reinit(
    writer: Any,
    layer: str,
    units: Sequence[int],
    num_units: int,
    step: int,
    *,
    wall_time: float | None = None,
) -> None:
    """Write which units of a layer were re-initialised at a step.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        layer: Name of the layer; the tag is ``dead_units_reinit/<layer>``.
        units: Indices of the units, in ``[0, num_units)``.
        num_units: Units of the layer.
        step: Training step of the re-initialisation.
        wall_time: Seconds since the epoch; now, if None.

    Raises:
        ValueError: If a unit is not one of the layer's.
    """
    indices = np.asarray(units, dtype=np.int64).reshape(-1)
    if indices.size and not (indices.min() >= 0 and indices.max() < num_units):
        raise ValueError(
            f"Expected `units` to be in [0, {num_units}) for {layer!r}, but got {list(units)}."
        )
    marks = np.zeros(num_units, dtype=np.float32)
    marks[indices] = 1.0
    _write(writer, layer, marks, step, TagMetadata("reinit"), wall_time)


def _as_float32(rates: NDArray[Any], dead_threshold: float) -> NDArray[np.float32]:
    """Round to float32 without moving a unit across the threshold.

    One firing among 2**25 values is a rate below 1 that rounds to 1.0: the unit would read as dead.
    """
    if rates.ndim != 1:
        raise ValueError(f"Expected `zero_rate` to have shape (U,), but got {rates.shape}.")
    rounded = rates.astype(np.float32)
    threshold = np.float32(dead_threshold)
    # In the precision of the input: a float32 rate of 0.9 is dead at a threshold of 0.9.
    alive = rates < rates.dtype.type(dead_threshold)
    crossed = alive & (rounded >= threshold)
    rounded[crossed] = np.nextafter(threshold, np.float32(-np.inf))
    return rounded


def _write(
    writer: Any,
    layer: str,
    vector: NDArray[np.float32],
    step: int,
    metadata: TagMetadata,
    wall_time: float | None,
) -> None:
    value = Summary.Value(
        tag=TAG_PREFIXES[metadata.kind] + layer,
        tensor=_tensor(vector),
        # In every event: a resumed run starts a new file, and TensorBoard keeps the first it sees.
        metadata=_summary_metadata(metadata),
    )
    # SummaryWriter has no public way to add a summary with metadata of a plugin's own.
    file_writer = writer._get_file_writer()
    if file_writer is not None:  # Lightning's dummy experiment answers None to everything
        file_writer.add_summary(Summary(value=[value]), step, wall_time)


def _tensor(vector: NDArray[np.float32]) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=vector.size)])
    content = vector.astype("<f4", copy=False).tobytes()
    return TensorProto(dtype=DT_FLOAT, tensor_shape=shape, tensor_content=content)


def _summary_metadata(metadata: TagMetadata) -> SummaryMetadata:
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=encode(metadata))
    # Without a data class the tag is invisible to both of TensorBoard's loaders.
    return SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
