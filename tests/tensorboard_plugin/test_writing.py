from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin.metadata import (
    TagMetadata,
    UnreadableTagError,
    decode,
    encode,
)
from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates


def events(folder: Path) -> list:
    (path,) = folder.glob("events.out.tfevents.*")
    return [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]


@pytest.fixture
def writer(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    yield writer
    writer.close()


def test_rates_are_a_float32_tensor_that_the_loaders_can_see(writer, tmp_path):
    rates = np.array([0.25, 1.0, np.nan, 0.1])
    write_zero_rates(writer, "fc.relu", rates, 7, dead_threshold=0.9, wall_time=123.0)
    writer.flush()
    (event,) = events(tmp_path)
    (value,) = event.summary.value
    assert (value.tag, event.step, event.wall_time) == ("dead_units/fc.relu", 7, 123.0)
    assert value.metadata.plugin_data.plugin_name == "dead_units"
    assert value.metadata.data_class == DATA_CLASS_TENSOR
    written = tensor_util.make_ndarray(value.tensor)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, rates.astype(np.float32))


def test_metadata_tell_version_kind_and_threshold(writer, tmp_path):
    write_zero_rates(writer, "a", np.zeros(2), 0, dead_threshold=0.95)
    writer.flush()
    content = events(tmp_path)[0].summary.value[0].metadata.plugin_data.content
    assert json.loads(content) == {"version": 1, "kind": "zero_rate", "dead_threshold": 0.95}


def test_reinit_marks_the_units_and_no_other(writer, tmp_path):
    write_reinit(writer, "a", [3, 1], 5, 40)
    writer.flush()
    (value,) = events(tmp_path)[0].summary.value
    assert value.tag == "dead_units_reinit/a"
    assert tensor_util.make_ndarray(value.tensor).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("units", [[5], [-1]])
def test_reinit_refuses_a_unit_that_the_layer_has_not(writer, units):
    with pytest.raises(ValueError, match=r"Expected `units` to be in \[0, 5\)"):
        write_reinit(writer, "a", units, 5, 40)


def test_rates_of_more_than_one_dimension_are_refused(writer):
    with pytest.raises(ValueError, match=r"Expected `zero_rate` to have shape \(U,\)"):
        write_zero_rates(writer, "a", np.zeros((2, 2)), 0, dead_threshold=1.0)


def test_rounding_to_float32_never_kills_a_unit(writer, tmp_path):
    """A unit that fired once among 2**26 values is alive, though its rate rounds to 1.0."""
    rates = np.array([1.0 - 2.0**-26, 1.0])
    assert rates.astype(np.float32).tolist() == [1.0, 1.0]
    write_zero_rates(writer, "a", rates, 0, dead_threshold=1.0)
    writer.flush()
    written = tensor_util.make_ndarray(events(tmp_path)[0].summary.value[0].tensor)
    assert (written >= np.float32(1.0)).tolist() == [False, True]


def test_float32_rates_are_written_bit_for_bit(writer, tmp_path):
    """0.9 in float32 is below 0.9 in float64, and yet dead at that threshold."""
    rates = np.array([0.9, 0.5, np.nextafter(np.float32(0.9), np.float32(0))], dtype=np.float32)
    write_zero_rates(writer, "a", rates, 0, dead_threshold=0.9)
    writer.flush()
    written = tensor_util.make_ndarray(events(tmp_path)[0].summary.value[0].tensor)
    assert written.tobytes() == rates.tobytes()


def test_a_writer_that_writes_nothing_is_no_error():
    class Dummy:  # as Lightning's loggers hand out on other ranks than 0
        def _get_file_writer(self) -> None:
            return None

    write_zero_rates(Dummy(), "a", np.zeros(2), 0, dead_threshold=1.0)


def test_metadata_survive_a_round_trip():
    assert decode(encode(TagMetadata("zero_rate", 0.97))) == TagMetadata("zero_rate", 0.97)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"version": 2}', "schema version 2, but this tab reads version 1: upgrade"),
        (b"{}", "schema version None"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"version": 1, "kind": "other", "dead_threshold": 1}', "Expected kind"),
        (b'{"version": 1, "kind": "reinit", "dead_threshold": NaN}', "Expected dead_threshold"),
        (b'{"version": 1, "kind": "reinit", "dead_threshold": "1"}', "Expected dead_threshold"),
    ],
)
def test_metadata_that_cannot_be_read_say_why(content, reason):
    with pytest.raises(UnreadableTagError, match=reason):
        decode(content)


def test_what_makes_the_units_is_written_and_read_back(writer, tmp_path):
    makers = ["net.up", "net.gate"]
    write_zero_rates(writer, "a", np.zeros(2), 0, dead_threshold=1.0, made_by=makers)
    writer.flush()
    content = events(tmp_path)[0].summary.value[0].metadata.plugin_data.content
    assert decode(content) == TagMetadata("zero_rate", 1.0, ("net.up", "net.gate"))


def test_metadata_of_before_made_by_are_read():
    content = b'{"version": 1, "kind": "zero_rate", "dead_threshold": 1.0}'
    assert decode(content) == TagMetadata("zero_rate", 1.0, ())
    assert encode(TagMetadata("zero_rate", 1.0)) == content


@pytest.mark.parametrize("made_by", [b'"fc"', b"[1]", b"{}"])
def test_what_makes_the_units_must_be_names(made_by):
    content = b'{"version": 1, "kind": "zero_rate", "dead_threshold": 1, "made_by": ' + made_by
    with pytest.raises(UnreadableTagError, match="Expected made_by to be a list of names"):
        decode(content + b"}")
