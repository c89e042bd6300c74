"""The tab in a real headless Chromium, on a real TensorBoard, with logs of a real training."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.reporting import figures, wording
from lightning_deadunits.tensorboard_plugin.writing import write_zero_rates

from .browsing import browse
from .serving import ROUTE, get, heat_map, tensorboard, wait_until
from .synthetic import rates, write_run
from .test_robustness import sabotaged

DEAD = [234, 88, 12, 255]
BOTH = "dead_units&p.dead_units.run=plain%2Creinit"
PLAIN = "dead_units&p.dead_units.run=plain"


@pytest.fixture(scope="module")
def served(chromium, real_logs):
    with tensorboard(real_logs, "--reload_interval=1") as url:
        wait_until(lambda: sum(it["num_layers"] for it in runs_of(url)) == 6)
        yield url


@pytest.fixture
def tab(chromium, served):
    with browse(chromium, served) as tab:
        yield tab


def runs_of(url: str) -> list[dict]:
    return json.loads(get(f"{url}{ROUTE}/runs"))["runs"]


def overview(url: str, run: str) -> list[dict]:
    return json.loads(get(f"{url}{ROUTE}/overview?run={run}"))["layers"]


def test_of_several_runs_the_overview_has_a_row_per_layer_and_a_column_per_run(tab, served):
    rows = tab.open(BOTH).rows()
    layers = {run: {it["layer"]: it for it in overview(served, run)} for run in ("plain", "reinit")}
    # In the order in which they ran, not by name: the hidden layer is the last.
    assert [row[0] for row in rows] == ["conv1.relu", "conv2.relu", "hidden.relu"]
    for name, place, shown, _, units, *runs in rows:
        assert shown == name
        assert int(units) == layers["plain"][name]["num_units"]
        assert rows[int(place) - 1][0] == name
        assert [dead_in(cell) for cell in runs] == [layers[run][name]["dead"] for run in layers]
        assert [since_in(cell) for cell in runs] == [since(layers[run][name], 0) for run in layers]
    heads = tab.frame.locator("thead th.of-run").all_inner_texts()
    assert [it.strip() for it in heads] == ["plain", "reinit"]
    dead = [it["dead"] for run in layers.values() for it in run.values()]
    assert sum(dead) > 0, "The training killed no unit: a poor test."


def dead_in(cell: str) -> int:
    return int(re.match(r"\d+", cell)[0])


def since_in(cell: str) -> str:
    return " ".join(cell.split("\n")[1:]).strip()


def since(layer: dict, shown: int) -> str:
    steps, numbers = layer["died_at"]
    dates = [step for step, number in zip(steps, numbers, strict=True) for _ in range(number)]
    return wording.dead_since(layer["born_dead"], layer["died_again"], dates, shown)


def test_of_one_run_the_overview_tells_all_that_is_known(tab, served):
    rows = {row[0]: row for row in tab.open(PLAIN).rows()}
    for layer in overview(served, "plain"):
        _, _, _, made_by, units, dead, rate, dates, recovered, reinitialised = rows[layer["layer"]]
        assert made_by == "\N{EN DASH}"
        assert int(units) == layer["num_units"]
        assert dead == share(layer["dead"], layer["num_units"])
        assert rate == figures.rate(layer["zero_rate"])
        assert dates == since(layer, wording.STEPS_SHOWN)
        assert (int(recovered), int(reinitialised)) == (layer["recovered"], 0)
    assert tab.frame.locator("svg.sparkline").count() == 3


def share(dead: int, units: int) -> str:
    return f"{dead} ({figures.percent(dead / units)})" if dead else "0"


def test_the_overview_is_sorted_by_a_click_on_a_column(tab):
    tab.open(PLAIN)
    header = tab.frame.get_by_role("button", name="Units", exact=True)
    header.click()
    assert [int(row[4]) for row in tab.rows()] == [64, 32, 16]
    header.press("Enter")  # the new header kept the focus
    assert [int(row[4]) for row in tab.rows()] == [16, 32, 64]
    assert "Units" in tab.frame.locator("th[aria-sort='ascending']").inner_text()
    tab.page.reload()
    tab.settle()
    assert int(tab.rows()[0][4]) == 16
    tab.frame.get_by_role("button", name="Network order").click()
    assert [row[1] for row in tab.rows()] == ["1", "2", "3"]


def test_the_overview_is_sorted_by_the_dead_of_a_run(tab, served):
    tab.open(BOTH).frame.get_by_role("button", name="Run reinit").click()
    dead = {it["layer"]: it["dead_fraction"] for it in overview(served, "reinit")}
    assert [row[0] for row in tab.rows()] == sorted(dead, key=lambda it: -dead[it])


def test_the_overview_is_filtered_by_name(tab):
    tab.open()
    tab.frame.get_by_label("Filter layers by name").fill("CONV")
    assert {row[0] for row in tab.rows()} == {"conv1.relu", "conv2.relu"}
    tab.frame.get_by_label("Filter layers by name").fill("nothing")
    assert tab.rows() == []
    assert "0 of 3 layers" in tab.frame.locator(".table-caption").inner_text()


def test_a_click_on_a_layer_shows_its_heat_map_with_the_dead_unmistakable(tab, served):
    tab.open().frame.get_by_role("button", name="conv2.relu").first.click()
    tab.settle()
    header, arrays = heat_map(served, "plain", "conv2.relu", "death")
    assert np.any(arrays["rates"] == 1)
    shown = np.array(tab.pixels(tab.canvas("plain"), *arrays["rates"].shape))
    dead = arrays["rates"] >= header["dead_threshold"]
    np.testing.assert_array_equal((shown == DEAD).all(axis=2), dead)


def test_units_can_be_ordered_by_index(tab, served):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu")
    tab.frame.get_by_label("Units by").select_option("index")
    tab.settle()
    _, arrays = heat_map(served, "plain", "conv2.relu", "index")
    shown = np.array(tab.pixels(tab.canvas("plain"), *arrays["rates"].shape))
    np.testing.assert_array_equal((shown == DEAD).all(axis=2), arrays["rates"] >= 1)


def test_hovering_tells_unit_step_rate_and_since_when_dead(tab, served):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu")
    header, arrays = heat_map(served, "plain", "conv2.relu", "death")
    canvas = tab.canvas("plain")
    tooltip = tab.frame.locator(".tooltip").first
    died = int(np.flatnonzero(arrays["dead_since"][arrays["units"]] > header["steps"][0])[0])
    for row in (0, died, 31):
        unit, rate = int(arrays["units"][row]), arrays["rates"][row, 5]
        for _ in range(20):  # a page that is still being laid out moves away under the pointer
            canvas.hover(position=tab.point(canvas, row, 5, *arrays["rates"].shape))
            text = tooltip.inner_text()
            if (said := f"unit {unit} · step {header['steps'][5]} · zero rate") in text:
                break
            time.sleep(0.1)
        assert said in text
        since = arrays["dead_since"][unit]
        if header["states"][arrays["state"][unit]] == "born dead":
            assert text.endswith("born dead")
        elif not np.isnan(since):
            assert text.endswith(f"dead since step {since:.0f}")
        else:
            assert text.endswith("dead" if rate >= 1 else "alive")
    canvas.hover(position={"x": 5, "y": 5})
    assert not tooltip.is_visible()


def test_the_keyboard_walks_over_the_heat_map(tab, served):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu")
    header, arrays = heat_map(served, "plain", "conv2.relu", "death")
    units, steps = arrays["units"], header["steps"]
    canvas, readout = tab.canvas("plain"), tab.frame.locator(".readout").first
    tab.frame.get_by_role("button", name="Zoom in").focus()
    while not canvas.evaluate("(it) => it === document.activeElement"):
        tab.page.keyboard.press("Tab")  # it can be reached without a mouse
    assert f"unit {units[0]} · step {steps[-1]}" in readout.inner_text()
    for keys, row, column in [
        ("ArrowDown", 1, -1),
        ("ArrowLeft", 1, -2),
        ("Home", 1, 0),
        ("ArrowLeft", 1, 0),
        ("PageDown", 11, 0),
        ("Control+End", -1, 0),
        ("ArrowDown", -1, 0),
        ("ArrowUp", -2, 0),
        ("End", -2, -1),
        ("Control+Home", 0, -1),
        ("ArrowRight", 0, -1),
    ]:
        canvas.press(keys)
        assert f"unit {units[row]} · step {steps[column]} ·" in readout.inner_text(), keys
    assert readout.get_attribute("aria-live") == "polite"
    canvas.press("Enter")
    tab.settle()
    assert tab.frame.locator(".unit-panel h3").inner_text() == f"Unit {units[0]}"


def test_zooming_shows_fewer_rows_around_the_focus(tab):
    tab.open(BOTH + "&p.dead_units.layer=hidden.relu")
    canvas = tab.canvas("plain")
    assert canvas.get_attribute("data-rows") == "0-63"
    assert not tab.frame.locator(".rows-shown").first.is_visible()
    canvas.focus()
    canvas.press("Control+End")
    canvas.press("+")
    assert canvas.get_attribute("data-rows") == "32-63"
    shown = tab.frame.locator(".rows-shown").first.inner_text()
    assert shown == "Zoomed in: units 33 to 64 of 64, from the top"
    canvas.press("Control+Home")
    assert canvas.get_attribute("data-rows") == "0-31"
    tab.frame.get_by_role("button", name="Zoom out").click()
    assert canvas.get_attribute("data-rows") == "0-63"


def test_a_click_on_a_unit_shows_its_curve_in_every_run(tab, served):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu")
    _, arrays = heat_map(served, "plain", "conv2.relu", "death")
    canvas = tab.canvas("plain")
    canvas.click(position=tab.point(canvas, 0, 3, *arrays["rates"].shape))
    panel = tab.frame.locator(".unit-panel")
    panel.locator("svg.curve").wait_for()
    assert panel.locator("h3").inner_text() == f"Unit {arrays['units'][0]}"
    assert panel.locator("path.rate").count() == 2
    assert panel.locator("circle title").first.text_content().startswith("plain: step 15")
    assert "plain born dead" in panel.inner_text()
    panel.get_by_role("button", name="Close the unit").click()
    panel.locator("svg.curve").wait_for(state="detached")


def test_runs_are_compared_side_by_side_with_marks_where_units_were_reinitialised(tab, served):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu").told()
    left, right = (tab.canvas(run).bounding_box() for run in ("plain", "reinit"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    header, arrays = heat_map(served, "reinit", "conv2.relu", "death")
    assert arrays["reinit_units"].size > 0
    unit = int(arrays["reinit_units"][0])
    tab.frame.get_by_label("Unit number").fill(str(unit))
    tab.frame.get_by_label("Unit number").press("Enter")
    tab.frame.locator(".stories").wait_for()
    steps = arrays["reinit_steps"][arrays["reinit_units"] == unit]
    said = ", ".join(f"{step:.0f}" for step in steps)
    assert f"re-initialised at step {said}" in tab.frame.locator(".stories").inner_text()
    assert tab.frame.locator("g.reinit").count() == sum(steps >= header["steps"][0])


def test_runs_are_chosen_in_the_list_of_runs(tab):
    tab.open()
    tab.frame.get_by_role("checkbox", name="reinit").uncheck()
    tab.settle()
    wait_until(lambda: tab.frame.locator("thead th.of-run").count() == 0)
    tab.frame.get_by_role("checkbox", name="plain").uncheck()
    tab.frame.get_by_text("No run is chosen").wait_for()
    tab.frame.get_by_role("checkbox", name="other").check()
    tab.frame.get_by_text("has no data of dead units").last.wait_for()
    assert "DeadUnitCallback" in tab.frame.locator("main").inner_text()


def test_a_link_brings_back_run_layer_order_and_unit(tab, chromium, served):
    tab.open().frame.get_by_role("checkbox", name="plain").uncheck()
    tab.settle()
    tab.frame.get_by_role("button", name="hidden.relu").click()
    tab.frame.get_by_label("Units by").select_option("rate")
    tab.settle()
    tab.frame.get_by_label("Unit number").fill("17")
    tab.frame.get_by_label("Unit number").press("Enter")
    tab.frame.locator("svg.curve").wait_for()
    link = tab.page.url
    with browse(chromium, served) as other:
        other.open(link.split("#")[1])
        assert other.frame.locator(".layer-title").inner_text() == "hidden.relu"
        assert other.frame.locator("article.pane h3").all_inner_texts() == ["reinit"]
        assert other.frame.get_by_label("Units by").input_value() == "rate"
        assert other.frame.locator(".unit-panel h3").inner_text() == "Unit 17"
        assert other.frame.get_by_role("checkbox", name="plain").is_checked() is False


def test_back_and_forward_move_between_overview_and_layer(tab):
    tab.open().frame.get_by_role("button", name="conv1.relu").first.click()
    tab.frame.locator("canvas").first.wait_for()
    tab.page.go_back()
    tab.frame.locator(".overview").wait_for()
    tab.page.go_forward()
    tab.frame.locator("canvas").first.wait_for()
    tab.frame.get_by_role("button", name="All layers").click()
    tab.frame.locator(".overview").wait_for()


@pytest.mark.parametrize("other", ["Scalars", "Time Series"])
def test_another_tab_and_back_keeps_what_was_shown(tab, other):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu&p.dead_units.unit=3")
    tab.page.get_by_role("tab", name=other).click()
    tab.page.wait_for_function("() => !location.hash.startsWith('#dead_units')")
    tab.page.get_by_role("tab", name="Dead Units").click()
    tab.page.wait_for_function("() => location.hash.startsWith('#dead_units')")
    tab.page.wait_for_function("() => location.hash.includes('p.dead_units.unit=3')")
    assert tab.frame.locator(".unit-panel h3").inner_text() == "Unit 3"


@pytest.mark.parametrize(
    "fragment",
    [
        "dead_units&p.dead_units.run=nobody",
        "dead_units&p.dead_units.layer=nothing",
        BOTH + "&p.dead_units.layer=conv1.relu&p.dead_units.unit=99999",
        BOTH + "&p.dead_units.layer=conv1.relu&p.dead_units.unit=-1&p.dead_units.order=x",
        "dead_units&p.dead_units.run=%25&p.dead_units.sort=nothing",
    ],
)
def test_a_link_to_what_is_not_there_is_answered_with_words(chromium, served, fragment):
    with browse(chromium, served) as tab:
        tab.open(fragment)
        assert len(tab.frame.locator("main").inner_text()) > 10
        # The browser itself reports a 404 on the console; that is not a fault of the page.
        tab.complaints[:] = [it for it in tab.complaints if "404" not in it]


def test_dark_mode_follows_tensorboard_at_once(tab):
    tab.open(BOTH + "&p.dead_units.layer=conv2.relu")
    background = "() => getComputedStyle(document.body).backgroundColor"
    light, canvas = tab.evaluate(background), tab.canvas("plain")
    alive = tab.pixels(canvas, 32, 12)[31][0]
    tab.choose_theme("dark")
    wait_until(lambda: tab.evaluate(background) != light)
    assert "dark-mode" in tab.page.locator("body").get_attribute("class")
    assert max(int(it) for it in re.findall(r"\d+", tab.evaluate(background))) < 60
    assert max(tab.pixels(canvas, 32, 12)[31][0][:3]) < max(alive[:3])
    tab.choose_theme("light")
    wait_until(lambda: tab.evaluate(background) == light)


def test_the_reload_button_shows_what_was_written_meanwhile(chromium, tmp_path, real_logs):
    shutil.copytree(real_logs / "plain", tmp_path / "plain")
    writer = SummaryWriter(str(tmp_path / "plain"), filename_suffix=".later")
    with tensorboard(tmp_path, "--reload_interval=1") as url, browse(chromium, url) as tab:
        wait_until(lambda: overview(url, "plain") if runs_of(url) else [])
        tab.open("dead_units&p.dead_units.layer=conv1.relu&p.dead_units.unit=2")
        canvas = tab.canvas()
        canvas.focus()
        canvas.press("Control+Home")
        canvas.press("+")
        assert canvas.get_attribute("data-steps") == "12"
        write_zero_rates(writer, "conv1.relu", np.ones(16), 500, dead_threshold=1.0)
        write_run(tmp_path / "second", {"conv1.relu": rates(3, 16)})
        writer.close()
        wait_until(lambda: len(runs_of(url)) == 2 and overview(url, "plain")[0]["step"] == 500)
        tab.reload_data()
        wait_until(lambda: tab.canvas("plain").get_attribute("data-steps") == "13")
        assert "16 (100%) of 16 units dead" in tab.frame.locator(".facts").first.inner_text()
        tab.frame.get_by_role("checkbox", name="second").wait_for()


def test_a_reload_keeps_zoom_and_focus(chromium, tmp_path, real_logs):
    shutil.copytree(real_logs / "plain", tmp_path / "plain")
    writer = SummaryWriter(str(tmp_path / "plain"), filename_suffix=".later")
    with tensorboard(tmp_path, "--reload_interval=1") as url, browse(chromium, url) as tab:
        wait_until(lambda: overview(url, "plain") if runs_of(url) else [])
        tab.open("dead_units&p.dead_units.layer=conv1.relu")
        canvas = tab.canvas()
        canvas.focus()
        canvas.press("+")
        rows = canvas.get_attribute("data-rows")
        write_zero_rates(writer, "conv1.relu", np.ones(16), 500, dead_threshold=1.0)
        writer.close()
        wait_until(lambda: overview(url, "plain")[0]["step"] == 500)
        tab.reload_data()
        wait_until(lambda: canvas.get_attribute("data-steps") == "13")
        assert canvas.get_attribute("data-rows") == rows != "0-15"
        assert canvas.evaluate("(it) => it === document.activeElement")


def test_the_export_is_the_matrix_that_was_written(tab, served):
    tab.open("dead_units&p.dead_units.run=plain&p.dead_units.layer=conv2.relu")
    with tab.page.expect_download() as download:
        tab.frame.get_by_role("link", name="Export CSV of plain").click()
    assert download.value.suggested_filename == "dead_units-plain-conv2.relu.csv"
    with open(download.value.path(), newline="") as file:
        lines = list(csv.reader(file))
    header, arrays = heat_map(served, "plain", "conv2.relu", "index")
    assert lines[0] == ["unit", *map(str, header["steps"])]
    table = np.array([line[1:] for line in lines[1:]], np.float32)
    np.testing.assert_array_equal(table, arrays["rates"])


def test_it_works_under_a_path_prefix(chromium, real_logs):
    with tensorboard(real_logs, "--path_prefix=/some/where") as url, browse(chromium, url) as tab:
        assert url.endswith("/some/where")
        wait_until(lambda: sum(it["num_layers"] for it in runs_of(url)) == 6)
        tab.open().frame.get_by_role("button", name="conv1.relu").first.click()
        tab.canvas("plain").wait_for()
        with tab.page.expect_download() as download:
            tab.frame.get_by_role("link", name="Export CSV of plain").click()
        assert download.value.failure() is None
        # TensorBoard's own page asks for its fonts without the prefix.
        tab.complaints[:] = [it for it in tab.complaints if "/font-roboto/" not in it]


def test_every_control_has_an_accessible_name(tab):
    for fragment in ("dead_units", BOTH + "&p.dead_units.layer=conv2.relu&p.dead_units.unit=1"):
        tab.open(fragment)
        session = tab.page.context.new_cdp_session(tab.page)
        tree = session.send("Page.getFrameTree")["frameTree"]
        (inner,) = [it["frame"]["id"] for it in tree["childFrames"]]
        nodes = session.send("Accessibility.getFullAXTree", {"frameId": inner})["nodes"]
        controls = [node for node in nodes if focusable(node)]
        nameless = [node["role"] for node in controls if not node["name"]["value"].strip()]
        assert len(controls) > 8
        assert nameless == []
        images = tab.frame.locator("svg[role='img']:not([aria-label])")
        assert images.count() == 0


def focusable(node: dict) -> bool:
    if node.get("ignored") or node["role"]["value"] == "RootWebArea":
        return False
    return any(it["name"] == "focusable" and it["value"]["value"] for it in node["properties"])


def test_names_are_text_never_markup(chromium, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    write_run(tmp_path / name, {name: rates(4, 5)})
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: runs_of(url))
        tab.open()
        assert tab.rows()[0][0] == name
        tab.frame.get_by_role("button", name=name).click()
        tab.canvas().wait_for()
        assert tab.frame.locator("img").count() == 0


def test_without_any_data_the_tab_says_what_to_add_to_the_trainer(chromium, tmp_path):
    writer = SummaryWriter(str(tmp_path / "run"))
    writer.add_scalar("loss", 1.0)
    writer.close()
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: runs_of(url))
        tab.open()
        text = tab.frame.locator("main").inner_text()
        assert "callbacks=[DeadUnitCallback()]" in text
        assert "none was written with the callback" in text


def test_an_empty_log_directory_is_said_to_be_empty(chromium, tmp_path):
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        tab.open()
        assert "has found no run" in tab.frame.locator("main").inner_text()


def test_a_layer_that_saw_nothing_is_named(chromium, tmp_path):
    values = np.vstack([rates(4, 5), np.full((1, 5), np.nan, np.float32)])
    write_run(tmp_path, {"seen": rates(5, 5), "silent": values})
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: runs_of(url) and len(overview(url, ".")) == 2)
        rows = {row[0]: row for row in tab.open().rows()}
        assert "saw nothing at step 40" in rows["silent"][2]
        assert rows["silent"][5] == "not seen"
        tab.frame.get_by_role("button", name="silent").click()
        tab.frame.get_by_text("saw nothing in the latest validation").wait_for()
        unseen = tab.pixels(tab.canvas(), 5, 5)[0][4]
        assert unseen != DEAD


def test_an_unreadable_layer_says_why_in_its_row(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_deadunits.tensorboard_plugin.metadata.SCHEMA_VERSION", 9)
    write_run(tmp_path, {"new": rates(4, 5)})
    monkeypatch.undo()
    write_run(tmp_path, {"good": rates(4, 5)})
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: runs_of(url) and len(overview(url, ".")) == 2)
        text = tab.open().frame.locator("tr.problem").inner_text()
        assert "schema version 9" in text


def test_a_tab_that_cannot_load_says_why_in_the_browser(chromium, tmp_path):
    write_run(tmp_path / "logs", {"a": rates(4, 5)})
    env = sabotaged(tmp_path, "lightning_deadunits.tensorboard_plugin.routes")
    with tensorboard(tmp_path / "logs", env=env) as url, browse(chromium, url) as tab:
        tab.page.goto(f"{url}/#dead_units")
        reason = tab.frame.locator("pre")
        reason.wait_for()
        assert "undefined symbol <b>_ZN</b>" in reason.inner_text()
        assert "other tabs are not affected" in tab.frame.locator("body").inner_text()


@pytest.mark.parametrize(("width", "height"), [(480, 800), (900, 700), (1900, 1000)])
def test_the_page_fits_into_any_window(chromium, served, width, height):
    with browse(chromium, served, width, height) as tab:
        for fragment in (BOTH, BOTH + "&p.dead_units.layer=conv2.relu&p.dead_units.unit=1"):
            tab.open(fragment)
            overflow = tab.evaluate(
                "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert overflow <= 0


def test_a_layer_of_one_unit_reads_well(chromium, tmp_path):
    write_run(tmp_path, {"single": np.float32([[0.5], [1.0]])})
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: runs_of(url))
        tab.open("dead_units&p.dead_units.layer=single")
        assert tab.canvas().bounding_box()["height"] > 60
        assert [it == DEAD for it in tab.pixels(tab.canvas(), 1, 2)[0]] == [False, True]
        assert "1 (100%) of 1 unit dead" in tab.frame.locator(".facts").inner_text()
