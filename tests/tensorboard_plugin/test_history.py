from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lightning_deadunits.tensorboard_plugin.history import History, current_marks
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
    rates = rng.choice([0.0, 0.5, 0.8, 1.0, np.nan], p=[0.1, 0.2, 0.2, 0.4, 0.1], size=(9, 200))
    ours = history(*rates.astype(np.float32), threshold=threshold)
    steps = ours.rates.steps.tolist()
    for unit in range(200):
        column = ours.rates.values[:, unit].tolist()
        expected = unit_life(steps, column, float(np.float32(threshold)))
        since = ours.dead_since[unit]
        assert (since >= 0) == expected.dead
        assert expected.dead_since == (steps[since] if since >= 0 else None)
        assert ours.born_dead[unit] == expected.born_dead
        assert ours.died[unit] == expected.died
        assert ours.revived[unit] == expected.revived


def test_the_dead_are_the_born_dead_and_those_that_died():
    ours = history([1, 0, 1, 1], [1, 1, 0, 0.5], [1, 1, 1, 0])
    assert ours.dead_now.tolist() == [True, True, True, False]
    assert ours.born_dead.tolist() == [True, False, False, False]
    assert ours.died.tolist() == [False, True, True, False]
    assert ours.revived.tolist() == [False, False, False, True]
    assert ours.dead_since.tolist() == [0, 1, 2, -1]


def test_a_step_at_which_a_unit_was_not_seen_interrupts_nothing():
    ours = history([0.5, 1], [1, NAN], [NAN, 1], [1, 1])
    assert ours.dead_since.tolist() == [1, 0]
    assert ours.born_dead.tolist() == [False, True]


def test_a_layer_that_saw_nothing_has_no_dead_fraction_and_no_verdict():
    ours = history([1, 0.5], [NAN, NAN])
    assert not ours.dead_now.any()
    assert not ours.revived.any()
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
