"""callback.history: the figures of every validation, as a data frame and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import matplotlib
import pytest
import torch

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.reporting import course
from lightning_deadunits.reporting.history import History
from tests.modules import Lit, loader
from tests.mortal import Mortal, data, trained
from tests.reporting.made_up import layer, report, reports_of

matplotlib.use("agg")
MakeTrainer = Callable[..., pl.Trainer]


def test_a_validation_has_a_row_per_layer_and_one_for_all() -> None:
    history = History()
    history.record(reports_of(layer("a", 1, 2), layer("b", units=60)), 10)
    history.record(reports_of(layer("a", 1), layer("b", 7, units=60)), 20)
    frame = history.to_dataframe()
    assert frame.step.tolist() == [10] * 3 + [20] * 3
    assert frame.layer.tolist() == ["a", "b", "total"] * 2
    assert frame.num_dead.tolist() == [2, 0, 2, 1, 1, 2]
    assert frame.num_units.tolist() == [20, 60, 80] * 2
    assert frame.dead_fraction.tolist() == [2 / 20, 0, 2 / 80, 1 / 20, 1 / 60, 2 / 80]
    assert frame.zero_rate[2] == pytest.approx((2 * 1 + 78 * 0.25) / 80)
    assert len(history) == 2
    assert repr(history) == "<History of 2 validations>"


def test_windows_of_training_batches_are_called_that() -> None:
    history = History(of="window")
    for step in range(1, 6):
        found = history.record(report(*range(4 * step)), 10 * step)
    assert repr(history) == "<History of 5 windows>"
    assert "dead units died at 4 windows from step 20 to 50" in found.diagnosis
    history = History(of="window")
    assert "fired at no window" in history.record(report(*range(12)), 10).diagnosis


def test_a_layer_that_saw_nothing_has_no_row() -> None:
    history = History()
    history.record(report(1), 10)
    history.record(report(seen=0), 20)
    assert history.to_dataframe().step.tolist() == [10, 10]


def test_an_empty_history_is_an_empty_frame_and_picture() -> None:
    assert History()
    assert History().to_dataframe().empty
    assert not History().plot().axes[0].lines


def test_the_frame_holds_what_was_logged(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    callback, logger = DeadUnitCallback(), CSVLogger(tmp_path)
    make_trainer(callbacks=[callback], logger=logger, max_epochs=4).fit(
        Lit(kill={6: [7], 9: [8]}), loader(), loader()
    )
    import pandas

    logged = pandas.read_csv(Path(logger.log_dir) / "metrics.csv").dropna(axis=1, how="all")
    frame = callback.history.to_dataframe()
    for name, rows in frame.groupby("layer"):
        assert rows.dead_fraction.tolist() == pytest.approx(
            logged[f"dead_fraction/{name}"].tolist()
        )
        assert rows.step.tolist() == logged.step.tolist()
        if name != "total":
            assert rows.zero_rate.tolist() == pytest.approx(logged[f"zero_rate/{name}"].tolist())


def test_a_resumed_training_has_the_history_of_a_whole_one(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    kill = {2: [7], 6: [8]}
    whole, resumed = DeadUnitCallback(), DeadUnitCallback()
    make_trainer(callbacks=[whole], max_epochs=4).fit(Lit(kill), loader(), loader())
    first = make_trainer(callbacks=[DeadUnitCallback()], max_epochs=2)
    first.fit(Lit(kill), loader(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    make_trainer(callbacks=[resumed], max_epochs=4).fit(
        Lit(kill), loader(), loader(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert whole.history.to_dataframe().equals(resumed.history.to_dataframe())
    assert len(resumed.history) == 4


def test_reinitialisations_of_a_training_are_in_the_frame() -> None:
    callback = DeadUnitCallback(reinit=ReinitConfig(patience=1, grace_period=0))
    trained(Mortal(), callback, max_epochs=4, loaders=(data(), data()))
    frame = callback.history.to_dataframe()
    told = frame[frame.layer == "total"].set_index("step").reinitialised
    assert callback.reviver is not None
    events = {event.step: event.num_reinitialised for event in callback.reviver.events}
    assert sum(told) == sum(events.values()) > 0
    assert told.iloc[0] == 0


def test_a_very_long_training_is_thinned_out_and_keeps_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(course, "MOST_VALIDATIONS", 8)
    history = History()
    for step in range(1, 101):
        history.note_reinitialised("act", [step % 20])
        history.record(report(1), step)
        assert len(history) <= 8
    frame = history.to_dataframe()
    assert frame.step.max() == 100
    assert frame[frame.layer == "act"].reinitialised.sum() == 100
    assert len(history) > 3


def test_a_picture_has_one_curve_per_layer_and_one_for_all() -> None:
    history = History()
    for index in range(5):
        history.record(reports_of(layer("a", *range(index)), layer("b", units=60)), 10 * index)
    axis = history.plot(figsize=(6, 3)).axes[0]
    curves = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert curves["a"] == [index / 20 for index in range(5)]
    assert curves["b"] == [0] * 5
    assert curves["all layers"] == [index / 80 for index in range(5)]
    assert not math.isnan(axis.get_ylim()[1])


def test_of_many_layers_those_with_most_dead_are_drawn() -> None:
    history = History()
    history.record(reports_of(*(layer(f"act{n}", *range(n)) for n in range(12))), 10)
    drawn = [line.get_label() for line in history.plot().axes[0].lines]
    assert drawn == [f"act{n}" for n in range(4, 12)] + ["all layers"]


def test_the_state_of_a_history_loads_as_weights_only(tmp_path: Path) -> None:
    history = History()
    history.record(report(3), 10)
    history.note_reinitialised("act", [3])
    history.record(report(3), 20)
    torch.save(history.state_dict(), tmp_path / "state.pt")
    resumed = History()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.to_dataframe().equals(history.to_dataframe())
    assert resumed.complete(report(3))["act"].states[3] == "died again after re-initialisation"
