"""An event is one line in the log, and so is the whole training at its end."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_deadunits import DeadUnitCallback, ReinitConfig, ReinitReport
from lightning_deadunits.reinit.report import Summary, headline
from tests.mortal import AT_VALIDATION, Mortal, events, trained


def test_a_large_event_is_one_line_that_counts_units_and_layers() -> None:
    event = ReinitReport(
        reinitialised={f"layer{number}": list(range(40)) for number in range(12)},
        refused={"a": {0: "it fires", 1: "it fires"}, "b": {3: "its weights\nare frozen"}},
        step=7,
    )
    line = headline(event)
    assert line == (
        "Re-initialised 480 units (40 in layer0, 40 in layer1, 40 in layer2, the others in 9 more "
        "layers) at step 7; 3 refused: 2 of them because it fires."
    )


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (ReinitReport(reinitialised={"a": [1]}), "Re-initialised 1 unit (1 in a)."),
        (
            ReinitReport(refused={"a": {0: "its weights\nare frozen"}}, step=3),
            "Re-initialised no unit at step 3; 1 refused: its weights are frozen.",
        ),
        (
            ReinitReport(planned={"a": [1, 2]}, step=3),
            "Dry run at step 3: would re-initialise 2 units (2 in a).",
        ),
    ],
)
def test_an_event_is_said_in_one_line(event: ReinitReport, line: str) -> None:
    assert headline(event) == line


def test_a_unit_that_is_refused_again_and_again_counts_once_and_not_once_it_is_revived() -> None:
    summary = Summary()
    for _ in range(3):
        summary.add(ReinitReport(refused={"a": {0: "it fires", 1: "it is frozen"}}))
    summary.add(ReinitReport(reinitialised={"a": [0, 2]}))
    assert summary.told() == (
        "Re-initialisation in this training: 2 revived, 0 of them dead again at the next look; "
        "1 refused: it is frozen."
    )


def test_the_end_of_fit_says_how_many_were_revived_and_died_again(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class DiesAgain(Mortal):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                self.b.bias[0] = -50.0

    def last_line(callback: DeadUnitCallback, *more: Any, **options: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            trained(DiesAgain(mortal=False), callback, *more, max_epochs=4, **options)
        (line,) = [text for text in caplog.messages if "in this training" in text]
        return line

    first = DeadUnitCallback(reinit=AT_VALIDATION)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = last_line(first, keep)
    assert first.reviver is not None
    revived = sum(event.num_reinitialised for event in first.reviver.events)
    again = [event.died_again["relu.b"] for event in first.reviver.events]
    assert again == [[0], [0], [0]]
    assert whole == (
        f"Re-initialisation in this training: {revived} revived, 3 of them dead again at the next "
        f"look; 0 refused; 1 due when it ended."
    )
    second = DeadUnitCallback(reinit=AT_VALIDATION)
    assert last_line(second, resume=tmp_path / "epoch=2.ckpt") == whole


def test_a_training_without_an_event_ends_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trained(Mortal(), DeadUnitCallback(reinit=True), max_epochs=1)
    assert not [text for text in caplog.messages if "in this training" in text]


@pytest.mark.parametrize(
    ("patterns", "revived"),
    [
        ({"layers": "relu"}, {"relu.bn", "relu.b"}),  # as for the callback: the activation's name
        ({"exclude": "relu.b"}, {"relu.bn"}),
        ({"layers": "relu.b"}, {"relu.b"}),
    ],
)
def test_patterns_of_what_may_be_revived_mean_what_those_of_what_is_tracked_do(
    patterns: dict[str, str], revived: set[str]
) -> None:
    callback = DeadUnitCallback(reinit=ReinitConfig(patience=1, grace_period=0, **patterns))
    trained(Mortal(), callback, max_epochs=3)
    assert set().union(*events(callback)) == revived


def test_the_end_of_a_dry_run_says_that_it_was_one(caplog: pytest.LogCaptureFixture) -> None:
    callback = DeadUnitCallback(reinit=ReinitConfig(patience=1, dry_run=True))
    trained(Mortal(mortal=False), callback, max_epochs=3)
    assert callback.reviver is not None
    assert callback.reviver.told().startswith("Re-initialisation in this training, a dry run: 0")
