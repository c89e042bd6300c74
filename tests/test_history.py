"""Since when units are dead, and what may be concluded from it."""

from __future__ import annotations

import pytest
import torch

from lightning_deadunits import DeadUnitsReport, LayerReport
from lightning_deadunits.reporting.history import History

MANY = range(12)


def report(*dead: int, units: int = 20, seen: int = 4) -> DeadUnitsReport:
    """Return a report of one layer with these dead units."""
    zeros = torch.zeros(units, dtype=torch.int64)
    zeros[list(dead)] = seen
    return DeadUnitsReport({"act": LayerReport("act", units, 1, seen, zeros)})


def lived(*validations: DeadUnitsReport) -> DeadUnitsReport:
    """Record validations at steps 10, 20, ... and return the last report, completed."""
    history = History()
    for index, validation in enumerate(validations):
        completed = history.record(validation, 10 * (index + 1))
    return completed


def test_the_date_is_that_of_the_last_death() -> None:
    layer = lived(report(1), report(1, 2), report(2), report(1, 2)).layers["act"]
    assert layer.dead_since[[0, 1, 2]].tolist() == [-1, 40, 20]
    assert layer.born_dead.tolist() == [False] * 20


def test_born_dead_is_alive_at_no_validation() -> None:
    layer = lived(report(3, 4), report(3)).layers["act"]
    assert layer.born_dead.nonzero().flatten().tolist() == [3]
    assert layer.dead_since[3] == 10


def reinitialised(*units: int) -> History:
    """Return a history in which these units were born dead and re-initialised after step 10."""
    history = History()
    history.record(report(*units), 10)
    history.note_reinitialised("act", units)
    return history


def test_a_unit_that_was_reinitialised_is_never_called_born_dead() -> None:
    history = reinitialised(3, 4)
    layer = history.record(report(3), 20).layers["act"]
    assert not layer.born_dead.any()
    assert layer.died_again.nonzero().flatten().tolist() == [3]
    assert layer.dead_since[3] == 20
    assert layer.since() == "1 died again"
    assert "died again" in str(history.complete(report(3)))


def test_one_that_was_reinitialised_before_the_first_validation_is_not_born_dead() -> None:
    history = History()
    history.note_reinitialised("act", [3])
    assert history.record(report(3, 4), 10).layers["act"].since() == "1 born dead, 1 died again"


def test_recovered_by_itself_is_not_reinitialised() -> None:
    history = reinitialised(3)
    for step, dead in ((20, []), (30, [3, 5]), (40, [])):
        layer = history.record(report(*dead), step).layers["act"]
        if step == 20:
            assert layer.states[3] == "alive again after re-initialisation"
    assert layer.states[3] == layer.states[5] == "recovered"
    assert layer.states[4] == "alive"


def test_a_layer_that_saw_nothing_keeps_its_past() -> None:
    layer = lived(report(3), report(seen=0), report(3)).layers["act"]
    assert layer.dead_since[3] == 10


def test_another_number_of_units_starts_anew() -> None:
    layer = lived(report(3), report(3, units=30)).layers["act"]
    assert layer.dead_since[3] == 20


def test_the_state_holds_tensors_and_primitives_only(tmp_path: object) -> None:
    history = History()
    history.record(report(3), 10)
    torch.save(history.state_dict(), f"{tmp_path}/state.pt")
    resumed = History()
    resumed.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))
    assert resumed.record(report(3, 5), 20).layers["act"].dead_since[[3, 5]].tolist() == [10, 20]


@pytest.mark.parametrize(
    ("validations", "words"),
    [
        ((report(*MANY), report(*MANY)), "Dead from the start: 12 of the 12 dead units"),
        (
            (report(), report(), report(*MANY), report(*MANY)),
            "Died together: 12 of the 12 dead units died between steps 20 and 30.",
        ),
        (
            tuple(report(*range(3 * index)) for index in range(5)),
            "Died steadily: 12 of the 12 dead units died at 4 validations from step 20 to 50, at",
        ),
    ],
)
def test_a_diagnosis_has_its_figures(validations: tuple[DeadUnitsReport, ...], words: str) -> None:
    completed = lived(*validations)
    assert completed.diagnosis is not None
    assert completed.diagnosis.startswith(words)
    assert completed.diagnosis in str(completed)


@pytest.mark.parametrize(
    "validations", [(report(0),), (report(), report(0)), (report(*MANY), report())]
)
def test_too_little_is_no_diagnosis(validations: tuple[DeadUnitsReport, ...]) -> None:
    assert lived(*validations).diagnosis is None


def test_a_history_goes_on_from_its_state() -> None:
    whole, first, second = History(), History(), History()
    validations = [report(), report(1, 2), report(1, 2, 3, 4, 5), report(*range(9))]
    for index, validation in enumerate(validations):
        if index == 2:
            second.load_state_dict(first.state_dict())
        known = whole.record(validation, index)
        mine = (first if index < 2 else second).record(validation, index)
        assert mine.diagnosis == known.diagnosis
        assert mine.layers["act"].states == known.layers["act"].states
