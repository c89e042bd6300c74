"""One rule of rounding and one set of words, against exact arithmetic and for both languages."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_deadunits.reporting.figures import count, percent, rate
from lightning_deadunits.reporting.wording import dead_since, state_of

CASES = json.loads((Path(__file__).parent / "figures.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['text']}")
def test_numbers_read_as_the_tab_writes_them(case: dict[str, Any]) -> None:
    if case["kind"] == "rate":
        assert rate(case["value"]) == case["text"]
    elif case["kind"] == "percent":
        assert percent(case["part"] / case["whole"]) == case["text"]
    else:
        assert count(case["value"]) == case["text"]


@given(
    st.integers(1, 10**6).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole)))
)
def test_a_share_is_rounded_half_up_by_exact_arithmetic(share: tuple[int, int]) -> None:
    part, whole = share
    thousandths = math.floor(Fraction(1000 * part, whole) + Fraction(1, 2))
    text = percent(part / whole)
    if part in (0, whole):
        assert text == ("100%" if part else "0%")
    elif thousandths in (0, 1000):
        assert text == (">99.9%" if thousandths else "<0.1%")
    else:
        assert Fraction(text.removesuffix("%")) == Fraction(thousandths, 10)
    assert rate(part / whole).lstrip("<>") == {
        "0%": "0", "100%": "1", "<0.1%": "0.001", ">99.9%": "0.999"
    }.get(text, f"0.{thousandths:03d}")  # fmt: skip


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_only_all_reads_as_all_and_only_nothing_as_nothing(value: float) -> None:
    assert rate(value) not in ("0", "1", "0.000", "1.000")
    assert percent(value) not in ("0%", "100%", "0.0%", "100.0%")


def test_what_is_not_known_has_no_digits() -> None:
    assert (rate(math.nan), percent(math.nan)) == ("-", "-")


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (dict(dead=True, was_alive=False, was_dead=True, reinitialised=False), "born dead"),
        (dict(dead=True, was_alive=False, was_dead=False, reinitialised=False), "born dead"),
        (dict(dead=True, was_alive=True, was_dead=False, reinitialised=False), "dead"),
        (
            dict(dead=True, was_alive=False, was_dead=True, reinitialised=True),
            "died again after re-initialisation",
        ),
        (
            dict(dead=True, was_alive=True, was_dead=True, reinitialised=True),
            "died again after re-initialisation",
        ),
        (dict(dead=False, was_alive=True, was_dead=True, reinitialised=False), "recovered"),
        (dict(dead=False, was_alive=True, was_dead=True, reinitialised=True), "recovered"),
        (
            dict(dead=False, was_alive=False, was_dead=False, reinitialised=True),
            "alive again after re-initialisation",
        ),
        (dict(dead=False, was_alive=True, was_dead=False, reinitialised=False), "alive"),
        (
            dict(seen=False, dead=False, was_alive=True, was_dead=False, reinitialised=False),
            "not seen",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_past_has_one_name(past: dict[str, bool], words: str) -> None:
    assert state_of(**past) == words


def test_dates_are_told_the_earliest_first_and_the_rest_is_summed() -> None:
    assert dead_since(0, 0, []) == ""
    assert dead_since(0, 0, [30, 10, 20, 10]) == "2 at step 10, 1 at step 20, 1 at step 30"
    assert dead_since(1234, 2, [5, 4, 3, 2, 1]) == (
        "1,234 born dead, 1 at step 1, 1 at step 2, 1 at step 3, 2 later, 2 died again"
    )
