"""What stands in the logs: read back from real event files and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_deadunits import DeadUnitCallback
from tests.modules import DEAD, Lit, loader

MakeTrainer = Callable[..., pl.Trainer]


@pytest.fixture
def run(make_trainer: MakeTrainer, tmp_path: Path) -> tuple[DeadUnitCallback, EventAccumulator]:
    board, table = TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")
    callback = DeadUnitCallback(custom_scalars=True)
    trainer = make_trainer(callbacks=[callback], logger=[board, table], max_epochs=3)
    trainer.fit(Lit(), loader(), loader())
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0, "scalars": 0})
    return callback, events.Reload()


def test_scalars_are_one_curve_per_layer_and_none_per_unit(
    run: tuple[DeadUnitCallback, EventAccumulator],
) -> None:
    _, events = run
    ours = {tag for tag in events.Tags()["scalars"] if "dead" in tag or "zero" in tag}
    assert ours == {
        "dead_fraction/total", "dead_layers", "dead_fraction/net.act", "dead_fraction/net.relu",
        "zero_rate/net.act", "zero_rate/net.relu",
    }  # fmt: skip
    values = events.Scalars("dead_fraction/net.act")
    assert [event.step for event in values] == [3, 7, 11]
    assert [event.value for event in values] == [len(DEAD) / 16] * 3


def test_csv_gets_the_same_scalars(
    run: tuple[DeadUnitCallback, EventAccumulator], tmp_path: Path
) -> None:
    path = next(tmp_path.glob("csv/*/metrics.csv"))
    rows = list(csv.DictReader(path.open()))
    assert [float(row["dead_fraction/net.act"]) for row in rows] == [len(DEAD) / 16] * 3


def test_the_histogram_has_a_bin_for_the_dead_alone(
    run: tuple[DeadUnitCallback, EventAccumulator],
) -> None:
    callback, events = run
    event = events.Histograms("zero_rate_per_unit/net.act")[-1]
    histogram = event.histogram_value
    assert event.step == 11
    assert histogram.bucket[-1] == len(DEAD)
    assert sum(histogram.bucket) == histogram.num == 16
    rates = callback.report.layers["net.act"].zero_rate.numpy()
    lower = np.asarray(histogram.bucket_limit[:-2])
    for limit, count in zip(lower[1:], np.cumsum(histogram.bucket)[1:-1], strict=False):
        assert count == ((rates < limit) & (rates < 1)).sum() or limit >= 1


def test_units_are_written_at_the_steps_of_the_scalars(
    run: tuple[DeadUnitCallback, EventAccumulator],
) -> None:
    from tensorboard.util.tensor_util import make_ndarray

    callback, events = run
    series = events.Tensors("dead_units/net.act")
    assert [event.step for event in series] == [3, 7, 11]
    written = make_ndarray(series[-1].tensor_proto)
    rates = callback.report.layers["net.act"].zero_rate.numpy()
    assert written.dtype == np.float32
    assert np.array_equal(written, rates.astype(np.float32))


def test_the_custom_layout_has_all_layers_on_one_chart(
    run: tuple[DeadUnitCallback, EventAccumulator],
) -> None:
    _, events = run
    layout = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert b"dead_fraction/net.act" in layout
    assert b"zero_rate/net.relu" in layout


def test_without_per_unit_no_vector_is_written(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(callbacks=[DeadUnitCallback(per_unit=False)], logger=logger)
    trainer.fit(Lit(), loader(), loader())
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert not [tag for tag in tags["tensors"] if tag.startswith("dead_units")]
    assert tags["histograms"]


def test_standalone_validation_writes_no_vector(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(callbacks=[DeadUnitCallback()], logger=logger)
    trainer.validate(Lit(), loader(), verbose=False)
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert not [tag for tag in tags["tensors"] if tag.startswith("dead_units")]
    assert "dead_fraction/total" in tags["scalars"]
