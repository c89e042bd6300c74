from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin import answers, export
from lightning_deadunits.tensorboard_plugin.writing import write_zero_rates

from .reference import unit_life
from .serving import ROUTE, client, unpack
from .synthetic import rates, write_marks, write_run

NAN = float("nan")
STORY = np.array([[1.0, 0.2, 1.0, NAN], [1.0, 1.0, 0.5, NAN], [1.0, 1.0, 0.5, 0.25]], np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logs")
    layers = {"story": STORY, "wide": rates(30, 64), "unseen": np.full((2, 3), NAN)}
    write_run(logdir / "a/b", layers)
    write_marks(logdir / "a/b", "story", {10: [1, 2], 20: [0]}, 4)
    SummaryWriter(str(logdir / "empty")).add_scalar("loss", 1.0)
    return client(logdir)


def get(served, path: str, **query: object):
    return served.get(f"{ROUTE}/{path}", query_string=query)


def test_runs_lists_those_without_data_too(served):
    runs = get(served, "runs").json["runs"]
    assert [(it["run"], it["num_layers"]) for it in runs] == [("a/b", 3), ("empty", 0)]
    assert all(it["start_time"] > 0 for it in runs)


def test_overview_counts_match_a_walk_through_each_unit(served):
    layers = {it["layer"]: it for it in get(served, "overview", run="a/b").json["layers"]}
    marks = {1: [10], 2: [10], 0: [20]}
    for name, values in {"story": STORY, "wide": rates(30, 64)}.items():
        steps = [10 * at for at in range(len(values))]
        lives = [
            unit_life(steps, column.tolist(), 1.0, marks.get(unit, []) if name == "story" else [])
            for unit, column in enumerate(values.T)
        ]
        states = Counter(life.state for life in lives)
        since = Counter(life.dead_since for life in lives if life.state == "dead")
        row = layers[name]
        assert row["num_units"] == values.shape[1]
        assert row["step"] == steps[-1]
        assert row["dead"] == sum(life.dead for life in lives)
        assert row["born_dead"] == states["born dead"]
        assert row["recovered"] == states["recovered"]
        assert row["died_again"] == states["died again after re-initialisation"]
        assert row["died_at"] == [sorted(since), [since[step] for step in sorted(since)]]
        assert row["dead_fraction"] == row["dead"] / row["num_units"]
        assert row["zero_rate"] == pytest.approx(values[-1].mean(), rel=1e-6)
    assert layers["story"]["reinitialised"] == 3
    assert layers["story"]["sparkline"] == {
        "steps": [0, 10, 20],
        "dead_fraction": [0.5, 0.5, 0.5],
    }


def test_overview_of_a_layer_that_saw_nothing_is_null_not_zero(served):
    layers = {it["layer"]: it for it in get(served, "overview", run="a/b").json["layers"]}
    assert layers["unseen"]["seen"] is False
    assert layers["unseen"]["dead_fraction"] is None
    assert layers["unseen"]["zero_rate"] is None
    assert layers["story"]["seen"] is True


def test_overview_of_a_run_without_the_callback_is_empty(served):
    assert get(served, "overview", run="empty").json == {"run": "empty", "layers": []}


@pytest.mark.parametrize("order", ["death", "index", "rate"])
def test_layer_holds_the_rates_that_were_written(served, order):
    header, arrays = unpack(get(served, "layer", run="a/b", layer="wide", order=order).data)
    written = rates(30, 64)
    np.testing.assert_array_equal(arrays["rates"], written[:, arrays["units"]])
    assert header["steps"] == list(range(0, 300, 10))
    assert header["order"] == order


def test_layer_tells_since_when_each_unit_is_dead(served):
    header, arrays = unpack(get(served, "layer", run="a/b", layer="story").data)
    # Unit 1 died at step 10 and was re-initialised there: dead again at the next validation.
    np.testing.assert_array_equal(arrays["dead_since"], [0, 20, NAN, NAN])
    assert [header["states"][it] for it in arrays["state"]] == [
        "born dead",
        "died again after re-initialisation",
        "alive again after re-initialisation",
        "alive",
    ]
    assert arrays["units"].tolist() == [0, 1, 2, 3]
    marks = list(zip(arrays["reinit_steps"], arrays["reinit_units"], strict=True))
    assert marks == [(10, 1), (10, 2), (20, 0)]


def test_unit_tells_its_story(served):
    story = get(served, "unit", run="a/b", layer="story", unit=1).json
    assert story["steps"] == [0, 10, 20]
    assert story["zero_rate"] == [pytest.approx(0.2), 1.0, 1.0]
    assert (story["dead"], story["dead_since"]) == (True, 20)
    assert story["state"] == "died again after re-initialisation"
    assert story["reinitialised_at"] == [10]
    assert get(served, "unit", run="a/b", layer="story", unit=3).json["zero_rate"][:2] == [None] * 2


def test_csv_is_the_matrix_that_was_written(served):
    response = get(served, "csv", run="a/b", layer="story")
    assert response.headers["Content-Disposition"] == (
        'attachment; filename="dead_units-a_b-story.csv"'
    )
    lines = response.text.splitlines()
    assert lines[0] == "unit,0,10,20"
    table = np.array([line.split(",")[1:] for line in lines[1:]], np.float32)
    np.testing.assert_array_equal(table.T, STORY)


def test_csv_of_some_units_holds_those(served):
    lines = get(served, "csv", run="a/b", layer="wide", units="5-7").text.splitlines()
    assert [line.split(",")[0] for line in lines] == ["unit", "5", "6", "7"]


def test_a_csv_that_would_be_too_large_is_refused_with_a_way_out(served, monkeypatch):
    monkeypatch.setattr("lightning_deadunits.tensorboard_plugin.routes.MAX_FILE_BYTES", 3_000)
    response = get(served, "csv", run="a/b", layer="wide")
    assert response.status_code == 413
    assert "ask for at most" in response.text


def test_no_answer_is_larger_than_the_limit(served, monkeypatch):
    monkeypatch.setattr(answers, "MAX_BYTES", 1_000)
    assert get(served, "layer", run="a/b", layer="wide").status_code == 413
    assert answers.MAX_BYTES <= export.MAX_FILE_BYTES == 64 * 2**20


LAYER = {"run": "a/b", "layer": "wide"}


@pytest.mark.parametrize(
    ("code", "path", "query"),
    [
        (404, "overview", {"run": "nobody"}),
        (404, "overview", {"run": ""}),
        (404, "layer", {"run": "nobody", "layer": "wide"}),
        (404, "layer", {"run": "a/b", "layer": "nothing"}),
        (404, "layer", {"run": "empty", "layer": "wide"}),
        (404, "layer", {"run": "../a/b", "layer": "wide"}),
        (404, "unit", {**LAYER, "unit": "64"}),
        (404, "unit", {**LAYER, "unit": "9999999999"}),
        (404, "csv", {**LAYER, "units": "0-64"}),
        (404, "nothing", {}),
        (400, "overview", {}),
        (400, "overview", {"run": ["a/b", "a/b"]}),
        (400, "layer", {"run": "a/b"}),
        (400, "layer", {"layer": "wide"}),
        (400, "layer", {**LAYER, "order": "worst"}),
        (400, "layer", {**LAYER, "order": ["death", "death"]}),
        (400, "unit", LAYER),
        (400, "unit", {**LAYER, "unit": ""}),
        (400, "unit", {**LAYER, "unit": "-1"}),
        (400, "unit", {**LAYER, "unit": "1.5"}),
        (400, "unit", {**LAYER, "unit": "٣"}),
        (400, "unit", {**LAYER, "unit": "1" * 400}),
        (400, "csv", {**LAYER, "units": "3"}),
        (400, "csv", {**LAYER, "units": "3-1"}),
        (400, "csv", {**LAYER, "units": "a-b"}),
    ],
)
def test_what_is_unknown_or_malformed_is_refused_with_a_reason(served, code, path, query):
    response = get(served, path, **query)
    assert response.status_code == code, response.text
    assert response.mimetype == "text/plain"
    assert response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize("path", ["runs", "overview?run=a/b", "static/index.js"])
def test_other_methods_than_get_are_refused(served, path):
    response = served.post(f"{ROUTE}/{path}")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert served.head(f"{ROUTE}/{path}").status_code == 200


def test_a_fault_is_answered_without_a_traceback(served, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the secret is 42")

    monkeypatch.setattr("lightning_deadunits.tensorboard_plugin.routes.runs_impl", fail)
    response = get(served, "runs")
    assert response.status_code == 500
    assert response.text == "The Dead Units tab failed: ZeroDivisionError."


@pytest.mark.parametrize(
    "path",
    [
        "static/../tab.py",
        "static/../../callback.py",
        "static/%2e%2e/tab.py",
        "static/..%2ftab.py",
        "static/%2e%2e%2f%2e%2e%2f__init__.py",
        "static//etc/passwd",
        "static/",
        "static",
        "static/nothing.js",
        "static/index.js/..",
        "static/index.js%00",
        "tab.py",
    ],
)
def test_only_the_files_of_the_page_can_be_reached(served, path):
    assert served.get(f"{ROUTE}/{path}").status_code == 404


def test_the_files_of_the_page_have_their_types(served):
    assert served.get(f"{ROUTE}/static/index.js").mimetype == "text/javascript"
    assert served.get(f"{ROUTE}/static/style.css").mimetype == "text/css"


def test_the_tab_is_listed_as_active_only_with_data(served, tmp_path):
    assert served.get("/data/plugins_listing").json["dead_units"]["enabled"] is True
    SummaryWriter(str(tmp_path)).add_scalar("loss", 1.0)
    listing = client(tmp_path).get("/data/plugins_listing").json["dead_units"]
    assert listing["enabled"] is False
    assert listing["tab_name"] == "Dead Units"


def test_names_with_odd_characters_come_back(tmp_path):
    write_run(tmp_path / "ru,n & ü=1", {"a/b.c d%": STORY})
    served = client(tmp_path)
    (run,) = get(served, "runs").json["runs"]
    (layer,) = get(served, "overview", run=run["run"]).json["layers"]
    assert layer["layer"] == "a/b.c d%"
    response = get(served, "csv", run=run["run"], layer=layer["layer"])
    assert response.status_code == 200
    assert response.headers["Content-Disposition"].isascii()


def test_the_users_threshold_decides(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    values = np.array([0.9, 0.89], np.float32)
    write_zero_rates(writer, "a", values, 0, dead_threshold=0.9)
    writer.close()
    (layer,) = get(client(tmp_path), "overview", run=".").json["layers"]
    assert (layer["dead"], layer["dead_threshold"]) == (1, 0.9)
