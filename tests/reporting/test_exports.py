"""A report outside of the process: as a mapping, primitives, a data frame, a notebook's table."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

from lightning_deadunits import DeadUnitsReport, find_dead_units
from lightning_deadunits.reporting.history import History
from tests.reporting.made_up import layer, report, reports_of


@pytest.fixture
def lived() -> DeadUnitsReport:
    """Units of ``act``: 0 born dead, 1 died, 2 recovered, 3 died again, 4 lives again."""
    history = History()
    history.record(report(0, 2, 3, 4), 10)
    history.note_reinitialised("act", [3, 4])
    history.record(report(0, 3), 20)
    return history.record(report(0, 1, 3), 30)


def test_a_layer_is_got_by_its_name(lived: DeadUnitsReport) -> None:
    assert lived["act"] is lived.layers["act"]
    assert list(lived) == list(lived.keys()) == ["act"]
    assert dict(lived) == dict(lived.items()) == {"act": lived["act"]}
    assert "act" in lived
    assert len(lived) == 1
    assert list(lived.values()) == [lived["act"]]


def test_a_report_without_a_layer_is_still_a_report() -> None:
    assert DeadUnitsReport({})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer1", "no layer 'layer1'. Did you mean `layer1.0.relu` or `layer1.1.relu`"),
        ("layer1.0.rleu", "Did you mean `layer1.0.relu`"),
        ("zzz", "Layers there are: layer1.0.relu, layer1.1.relu, head.act"),
        (0, "Expected the name of a layer, but got 0. Layers there are: layer1.0.relu"),
        ("lost", "'lost' could not be judged: it did not run"),
    ],
)
def test_a_wrong_name_is_told_the_near_ones(name: Any, message: str) -> None:
    known = reports_of(layer("layer1.0.relu"), layer("layer1.1.relu"), layer("head.act"))
    known = replace(known, unjudged={"lost": "it did not run"})
    with pytest.raises(KeyError, match=message):
        known[name]


def test_every_unit_has_a_row_with_its_state(lived: DeadUnitsReport) -> None:
    frame = lived.to_dataframe().set_index("unit")
    assert len(frame) == 20
    assert frame.state[:6].tolist() == [
        "born dead", "dead", "recovered", "died again after re-initialisation",
        "alive again after re-initialisation", "alive",
    ]  # fmt: skip
    assert frame.dead_since.isna().tolist()[:6] == [False, False, True, False, True, True]
    assert frame.dead_since[[0, 1, 3]].tolist() == [10, 30, 20]
    assert frame.zero_rate[:6].tolist() == [1, 1, 0.25, 1, 0.25, 0.25]
    assert frame.layer.unique().tolist() == ["act"]


def test_a_data_frame_holds_the_counts_of_a_real_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())
    found = find_dead_units(model, [torch.randn(7, 4), torch.randn(3, 4)])
    frame = found.to_dataframe()
    for name, rows in frame.groupby("layer"):
        assert rows.zeros.tolist() == found[name].zeros.tolist()
        assert rows.observations.unique().tolist() == [10]
        assert rows.dead.tolist() == found[name].dead_mask.tolist()


def test_primitives_survive_json_and_hold_every_figure(lived: DeadUnitsReport) -> None:
    read = json.loads(json.dumps(lived.to_dict(), allow_nan=False))
    assert read == lived.to_dict()
    own = read["layers"]["act"]
    assert (read["step"], read["num_units"], read["num_dead"]) == (30, 20, 3)
    assert own["zero_rate"] == pytest.approx((3 * 1 + 17 * 0.25) / 20)
    assert [own[it] for it in ("born_dead", "died_again", "recovered", "reinitialised")] == [
        1, 1, 1, 2,
    ]  # fmt: skip
    assert own["dead_since"] == "1 born dead, 1 at step 30, 1 died again"
    assert own["units"]["dead"] == lived["act"].dead_mask.tolist()
    assert own["units"]["dead_since"][:4] == [10, 30, None, 20]
    assert "units" not in lived.to_dict(per_unit=False)["layers"]["act"]


def test_what_was_not_seen_is_null_and_not_a_number() -> None:
    own = report(seen=0).to_dict()
    json.dumps(own, allow_nan=False)
    assert own["dead_fraction"] is None
    assert own["layers"]["act"]["zero_rate"] is None
    assert own["layers"]["act"]["units"]["state"] == ["not seen"] * 20


def test_a_repr_is_one_short_line(lived: DeadUnitsReport) -> None:
    assert repr(lived) == ("<DeadUnitsReport: 3 of 20 units are dead (15.0%), in 1 layer, step 30>")
    assert repr(lived["act"]) == "<LayerReport act: 3 of 20 units dead, zero rate 0.363>"
    assert repr(report(seen=0)["act"]) == "<LayerReport act: not seen>"


class Cells(HTMLParser):
    """Reads the text of every cell of a table, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def test_a_notebook_shows_the_figures_of_the_terminal(lived: DeadUnitsReport) -> None:
    cells = Cells(lived._repr_html_()).cells
    assert cells == [
        "layer", "units", "dead", "zero rate", "dead since",
        "act", "20", "3 (15.0%)", "0.363", "1 born dead, 1 at step 30, 1 died again",
        "total", "20", "3 (15.0%)", "", "",
    ]  # fmt: skip
    assert all(cell in str(lived) for cell in cells)


def test_a_notebook_runs_no_code_from_a_name() -> None:
    html = reports_of(layer("<script>alert(1)</script>"))._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_without_pandas_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"report.to_dataframe\(\) needs pandas: pip"):
        report().to_dataframe()
    with pytest.raises(ModuleNotFoundError, match=r"history.to_dataframe\(\) needs pandas: pip"):
        History().to_dataframe()
