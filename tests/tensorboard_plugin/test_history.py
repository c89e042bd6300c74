from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lightning_deadunits.tensorboard_plugin.history import STATES, History, current_marks
from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError
from lightning_deadunits.tensorboard_plugin.series import drop_orphans, from_events

from .reference import surviving_steps, unit_life

NAN = float("nan")


def event(step: int, values: object, wall_time: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(step=step, wall_time=wall_time, numpy=np.asarray(values))


def history(*rows: list[float], threshold: float = 1.0) -> History:
    series = from_events(event(10 * at, np.float32(row)) for at, row in enumerate(rows))
    return History(series, threshold)


@pytest.mark.parametrize("threshold", [1.0, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_lives_match_a_walk_through_each_unit(seed, threshold):
    rng = np.random.default_rng(seed)
    rates = rng.choice([0.0, 0.5, 0.8, 1.0, np.nan], p=[0.1, 0.2, 0.2, 0.4, 0.1], size=(5, 200))
    marked = rng.random((4, 200)) < 0.1
    marks_at = [5, 20, 25, 40]  # between validations, at one, and after the latest
    marks = from_events(
        event(at, row) for at, row in zip(marks_at, np.float32(marked), strict=True)
    )
    plain = history(*rates.astype(np.float32), threshold=threshold)
    ours = History(plain.rates, threshold, marks)
    steps = ours.rates.steps.tolist()
    seen = set()
    for unit in range(200):
        column = ours.rates.values[:, unit].tolist()
        own = [at for at, row in zip(marks_at, marked, strict=True) if row[unit]]
        expected = unit_life(steps, column, float(np.float32(threshold)), own)
        since = ours.dead_since[unit]
        assert (since >= 0) == expected.dead
        assert expected.dead_since == (steps[since] if since >= 0 else None)
        assert STATES[ours.states[unit]] == expected.state
        seen.add(expected.state)
    assert len(seen) >= len(STATES) - 1, "The lives are too much alike: a poor test."


def test_every_unit_is_in_one_state():
    ours = history([1, 0, 1, 1], [1, 1, 0, 0.5], [1, 1, 1, 0])
    assert [STATES[it] for it in ours.states] == ["born dead", "dead", "dead", "recovered"]
    assert ours.dead_since.tolist() == [0, 1, 2, -1]


def test_a_unit_that_was_reinitialised_is_never_born_dead_and_is_dated_anew():
    rates = history([1, 1, 1], [1, 0.5, 1], [1, 0.5, 1]).rates
    marks = from_events([event(0, [0, 1, 0], 0.5), event(10, [1, 0, 0], 1.5)])
    ours = History(rates, 1.0, marks)
    assert [STATES[it] for it in ours.states] == [
        "died again after re-initialisation",
        "alive again after re-initialisation",
        "born dead",
    ]
    assert ours.dead_since.tolist() == [2, -1, 0]


def test_a_reinitialisation_that_no_validation_followed_changes_no_verdict():
    rates = history([1], [1]).rates
    ours = History(rates, 1.0, from_events([event(10, [1]), event(15, [1])]))
    assert STATES[ours.states[0]] == "born dead"
    assert ours.dead_since.tolist() == [0]


def test_a_step_at_which_a_unit_was_not_seen_interrupts_nothing():
    ours = history([0.5, 1], [1, NAN], [NAN, 1], [1, 1])
    assert ours.dead_since.tolist() == [1, 0]
    assert ours.born_dead.tolist() == [False, True]


def test_a_layer_that_saw_nothing_has_no_dead_fraction_and_no_verdict():
    ours = history([1, 0.5], [NAN, NAN])
    assert not ours.dead_now.any()
    assert {STATES[it] for it in ours.states} == {"not seen"}
    np.testing.assert_array_equal(ours.dead_fraction, [0.5, NAN])


def test_the_threshold_is_compared_in_float32():
    assert history([0.9], threshold=0.9).dead_now.tolist() == [True]


def test_a_layer_that_grew_and_shrank_is_counted_by_its_latest_width():
    ours = history([1, 1], [1, 1, 1, 0], [1])
    assert ours.rates.num_units == 1
    assert ours.dead_fraction.tolist() == [1.0, 0.75, 1.0]
    assert ours.dead_now.tolist() == [True, False, False, False]


@pytest.mark.parametrize("seed", range(8))
def test_a_step_that_goes_back_drops_what_it_overtakes(seed):
    rng = np.random.default_rng(seed)
    written = rng.integers(0, 12, size=20).tolist()
    events = [event(step, [at]) for at, step in enumerate(written)]
    kept = [int(it.numpy[0]) for it in drop_orphans(events)]
    assert kept == surviving_steps(written)


def test_of_a_repeated_step_the_last_written_wins():
    series = from_events([event(1, [0.1]), event(2, [0.2]), event(2, [0.9])])
    assert series.steps.tolist() == [1, 2]
    assert series.values[-1].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    "values",
    [[[0.5]], 0.5, ["a"], [b"a"], [True]],
    ids=["matrix", "number", "str", "bytes", "bool"],
)
def test_anything_but_a_vector_of_numbers_is_refused(values):
    with pytest.raises(UnreadableTagError, match="Expected a vector of numbers, but step 3"):
        from_events([event(3, values)])


def test_marks_of_a_future_that_a_resumed_run_left_behind_are_dropped():
    """Trained to step 40, re-initialised at 30, resumed from 20: only the mark at 10 happened."""
    rates = from_events([event(10, [1], 1.0), event(20, [1], 2.0), event(30, [1], 8.0)])
    marks = from_events([event(10, [1], 1.1), event(30, [1], 3.1)])
    assert current_marks(marks, rates).steps.tolist() == [10]


def test_marks_after_the_latest_validation_are_kept():
    rates = from_events([event(10, [1], 1.0)])
    marks = from_events([event(10, [1], 1.1), event(15, [1], 1.5)])
    assert current_marks(marks, rates).steps.tolist() == [10, 15]
