"""The verdict of a validation as a TensorBoard event: what the terminal says, for the tab to say.

One string per validation, JSON as ``DeadUnitsReport.to_dict(per_unit=False)`` returns it: the
figures of every layer in double precision and in network order, what made its units, since when
they are dead in the words of the table, and the diagnosis. So that tab and terminal cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING

from lightning_deadunits.tensorboard_plugin.metadata import PLUGIN_NAME

VERDICT_TAG = "dead_units_verdict"
_CONTENT = b'{"version": 1, "kind": "verdict", "dead_threshold": 1.0}'


def write_verdict(
    writer: Any, verdict: Mapping[str, Any], step: int, *, wall_time: float | None = None
) -> None:
    """Write the verdict of one validation.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        verdict: What ``DeadUnitsReport.to_dict(per_unit=False)`` returns.
        step: Training step of the validation.
        wall_time: Seconds since the epoch; now, if None.

    Raises:
        ValueError: If it holds a number that JSON has not, such as NaN.
        TypeError: If it holds anything else than primitives.
    """
    text = json.dumps(verdict, allow_nan=False, ensure_ascii=False).encode()
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=_CONTENT)
    value = Summary.Value(
        tag=VERDICT_TAG,
        tensor=TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[text]),
        # Without a data class the tag is invisible to both of TensorBoard's loaders.
        metadata=SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR),
    )
    file_writer = writer._get_file_writer()
    if file_writer is not None:  # Lightning's dummy experiment answers None to everything
        file_writer.add_summary(Summary(value=[value]), step, wall_time)
