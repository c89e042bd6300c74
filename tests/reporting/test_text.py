"""The table in the terminal: no wider than it, and its words are right."""

from __future__ import annotations

import os

import pytest
import torch

from lightning_deadunits import DeadUnitsReport, LayerReport
from lightning_deadunits.reporting.history import History
from lightning_deadunits.reporting.text import render
from tests.reporting.made_up import layer, report, reports_of

NAMES = ("encoder.layers.11.attention.self.mlp.activation", "conv2.relu", "hidden.1")


@pytest.fixture
def lived() -> DeadUnitsReport:
    """Three layers in which units died at eight steps, one of them with a long name."""
    history = History()
    for index in range(9):
        many = range(11 * index)
        found = history.record(
            reports_of(*(layer(name, *many, units=1000) for name in NAMES)), 100 * (index + 1)
        )
    return found


@pytest.mark.parametrize("width", [200, 120, 100, 90, 80, 72, 64, 56, 48, 42])
def test_no_line_of_the_table_is_wider_than_the_terminal(
    lived: DeadUnitsReport, width: int
) -> None:
    table = render(lived, width).split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= width
    for figure in ("88 (8.8%)", "264 (8.8%)", "1,000", "3,000", "0.316"):
        assert figure in table


def test_names_are_shortened_in_the_middle_and_only_if_they_must_be(
    lived: DeadUnitsReport,
) -> None:
    assert NAMES[0] in render(lived, 120)
    narrow = render(lived, 80)
    assert NAMES[0] not in narrow
    first = narrow.splitlines()[2].split()[0]
    front, back = first.split("...")
    assert NAMES[0].startswith(front)
    assert NAMES[0].endswith(back)
    assert "conv2.relu" in narrow


def test_shortened_names_stay_different() -> None:
    names = [f"model.decoder.layers.{n}.activation_fn" for n in range(12)]
    for width in (60, 50, 44):
        table = render(reports_of(*(layer(name, 1) for name in names)), width).splitlines()
        shown = [line.split()[0] for line in table[2:14]]
        assert len(set(shown)) == 12
        assert max(map(len, table)) <= width
    assert render(reports_of(layer(names[3])), 44).splitlines()[2].startswith("model...")


def test_where_there_is_room_more_steps_are_named(lived: DeadUnitsReport) -> None:
    told = [render(lived, width).splitlines()[4].split("0.316")[1].strip() for width in (140, 85)]
    assert told == [
        "11 at step 200, 11 at step 300, 11 at step 400, 55 later",
        "88 from step 200 on",
    ]


def test_dates_that_have_no_room_beside_the_table_stand_below(lived: DeadUnitsReport) -> None:
    beneath = render(lived, 48).split("\n\n")[1]
    assert " ".join(beneath.split()).startswith(f"dead since {NAMES[0]}: 11 at step 200, 11 at")
    assert max(map(len, beneath.splitlines())) <= 48


def test_the_width_is_that_of_the_terminal(
    lived: DeadUnitsReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert str(lived) == render(lived, 80)
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((90, 24)))
    assert str(lived) == render(lived, 90)


def test_a_unit_that_fired_once_is_never_written_as_one() -> None:
    zeros = torch.tensor([10**9 - 1, 10**9 - 1])
    table = render(reports_of(LayerReport("act", 2, 1, 10**9, zeros)), 100)
    assert ">0.999" in table
    assert "1.000" not in table


def test_one_dead_of_many_is_not_nothing() -> None:
    assert "1 (<0.1%)" in render(report(3, units=5000), 100)


def test_what_made_the_units_is_told_where_there_is_room() -> None:
    known = reports_of(
        layer("act", made_by=("fc",)), layer("join", made_by=("a", "b", "c", "d"), units=3)
    )
    lines = render(known, 100).splitlines()
    assert lines[0].split() == ["layer", "units", "dead", "zero", "rate", "made", "by"]
    assert lines[2].endswith("fc")
    assert lines[3].endswith("a, b, 2 more")
    assert "made by" not in render(known, 42)


def test_a_layer_that_saw_nothing_is_not_healthy() -> None:
    row = render(report(seen=0), 100).splitlines()[2]
    assert row.split() == ["act", "20", "-", "-", "not", "seen"]


def test_values_that_are_not_finite_are_told_below_the_table() -> None:
    own = LayerReport("act", 2, 1, 10, zeros=torch.zeros(2, dtype=torch.int64), nonfinite=1234)
    assert "NaN or infinite: 1,234 values of 'act'" in render(reports_of(own), 100)


def test_a_wholly_dead_layer_is_said_to_cut_the_network() -> None:
    text = render(report(*range(20)), 100)
    assert "20 (100%)" in text
    assert "Wholly dead: nothing gets through 'act', the network is cut there." in text
