"""When, beside what and what now: the strip of scalars, runs as columns, long names, the keyboard.

In a real headless Chromium on a real TensorBoard.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.reporting import figures
from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates

from .browsing import browse
from .serving import ROUTE, get, heat_map, tensorboard, wait_until
from .synthetic import rates

LONG = "network.backbone.encoder.stages.blocks.{}.feed_forward.intermediate_activation.gelu"
SWEEP = [f"sweep/learning_rate=0.0{at},weight_decay=0.0001,seed={at}/version_0" for at in range(6)]
LAYERS = {"stem.relu": 16, "blocks.1.act": 8, "hidden.relu": 64}
MADE_BY = {"stem.relu": ("stem.conv", "stem.skip")}
EVERY = 40


def write(folder: Path, layers: dict[str, int], seed: int, steps: int, scalars: bool) -> None:
    """Write a run in which ``blocks.1.act`` is cut in the end, and every step has an event."""
    writer = SummaryWriter(str(folder), max_queue=100_000)
    values = {
        name: rates(steps, units, seed + at) for at, (name, units) in enumerate(layers.items())
    }
    if "blocks.1.act" in values:
        values["blocks.1.act"][-3:] = 1
        values["hidden.relu"][:, -4:] = 1
    for at in range(steps):
        step = EVERY * (at + 1)
        for name, rows in values.items():
            makers = MADE_BY.get(name, ())
            write_zero_rates(writer, name, rows[at], step, dead_threshold=1.0, made_by=makers)
        if scalars:
            write_reinit(writer, next(iter(layers)), [at % 3], layers[next(iter(layers))], step)
    for step in range(0, EVERY * steps + 1, 10) if scalars else ():
        writer.add_scalar("train_loss", 3 - step / 1000, step)
        writer.add_scalar("val_loss", 4.0, step)
        writer.add_scalar("lr-SGD", 0.1 if step < 200 else 0.01, step)
    writer.close()


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("context")
    write(logdir / "b", LAYERS, 0, 20, True)
    write(logdir / "a", LAYERS, 9, 20, True)
    write(logdir / "bare", LAYERS, 0, 5, False)
    for at, run in enumerate(SWEEP):
        write(logdir / run, {LONG.format(block): 16 for block in range(80)}, 7 * at, 6, False)
    with tensorboard(logdir, "--reload_interval=1") as url:
        wait_until(lambda: counts(url) == [3, 3, 3] + [80] * 6, 60)
        yield url


def counts(url: str) -> list[int]:
    return sorted(it["num_layers"] for it in json.loads(get(f"{url}{ROUTE}/runs"))["runs"])


def overview(url: str, run: str) -> list[dict]:
    return json.loads(get(f"{url}{ROUTE}/overview?run={quote(run)}"))["layers"]


def timeline(url: str, run: str) -> dict:
    return json.loads(get(f"{url}{ROUTE}/timeline?run={quote(run)}"))


def link(*runs: str, **choices: str) -> str:
    chosen = quote(",".join(quote(run, safe="") for run in runs), safe="")
    more = "".join(f"&p.dead_units.{key}={quote(value)}" for key, value in choices.items())
    return f"dead_units&p.dead_units.run={chosen}{more}"


@pytest.fixture
def tab(chromium, served):
    with browse(chromium, served) as tab:
        yield tab


# --- the strip of scalars -------------------------------------------------------------------------


def vertices(path: str) -> list[list[float]]:
    return [
        [float(it) for it in piece.split(",")] for piece in path[1:].replace("M", "L").split("L")
    ]


def test_above_a_heat_map_a_step_stands_where_the_map_has_it(tab, served):
    tab.open(link("b", layer="hidden.relu")).told()
    left, _, width, _ = map(float, tab.canvas().get_attribute("data-plot").split(","))
    edges = [left + width * (at + 1) / 20 for at in range(20)]
    dead = tab.frame.locator("path.scalar[data-lane='dead']").get_attribute("d")
    assert [x for x, _ in vertices(dead)] == pytest.approx(edges, abs=0.06)
    loss = vertices(tab.frame.locator("path.scalar[data-lane='loss']").get_attribute("d"))
    # Every tenth step, four to a column, from the left edge, step 0, to the right one, step 800.
    assert [x for x, _ in loss] == pytest.approx(np.linspace(left, left + width, 81), abs=0.06)
    boxes = [tab.frame.locator(it).bounding_box() for it in (".pane .strip", ".pane .map")]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]


def values(tab, lane: str) -> list[str]:
    return tab.frame.locator(f"text.values[data-lane='{lane}']").all_text_contents()


def test_hovering_a_step_tells_it_on_every_map_and_strip(tab, served):
    tab.open(link("b", "a", layer="hidden.relu")).told()
    canvas = tab.canvas("b")
    canvas.hover(position=tab.point(canvas, 3, 10.5 - 0.01, 64, 20))
    for chart in (".strip .cursor", ".map .cursor"):
        assert [tab.frame.locator(chart).nth(at).is_visible() for at in (0, 1)] == [True, True]
    totals = [timeline(served, run)["total"] for run in ("a", "b")]
    said = [
        f"{figures.percent(it['dead'][10] / it['units'][10])} ({it['dead'][10]})" for it in totals
    ]
    assert values(tab, "dead") == said
    assert values(tab, "loss") == ["2.56", "2.56"]  # at step 440
    assert values(tab, "learning_rate") == ["0.01", "0.01"]
    tab.frame.locator(".pane .strip").nth(1).hover(position={"x": 70, "y": 60})
    assert values(tab, "learning_rate") == ["0.1", "0.1"]
    assert tab.frame.locator(".map .cursor").first.is_visible()
    tab.frame.locator(".layer-title").hover()
    assert not tab.frame.locator(".map .cursor").first.is_visible()
    assert values(tab, "loss") == ["2.2", "2.2"]  # the latest


def test_the_overview_shows_the_scalars_of_all_chosen_runs(tab, served):
    tab.open(link("a", "b"))
    for lane in ("loss", "learning_rate", "dead"):
        runs = tab.frame.locator(f"path.scalar[data-lane='{lane}']")
        assert [runs.nth(at).get_attribute("data-run") for at in (0, 1)] == ["a", "b"]
    assert tab.frame.locator("g.events").count() == 2
    assert "training step" in tab.frame.locator(".lanes").text_content()


def test_the_scalars_are_changeable_and_the_choice_is_remembered(tab):
    tab.open(link("a"))
    choice = tab.frame.get_by_label("Loss", exact=True)
    assert choice.locator("option").first.inner_text() == "by name: train_loss"
    choice.select_option("val_loss")
    wait_until(lambda: values(tab, "loss") == ["4"])
    assert "val_loss" in tab.page.url
    tab.open(link("b"))  # no link says so any more
    assert tab.frame.get_by_label("Loss", exact=True).input_value() == "val_loss"
    tab.frame.get_by_label("Loss", exact=True).select_option("")
    wait_until(lambda: "val_loss" not in tab.page.url)
    tab.open(link("b"))
    assert tab.frame.get_by_label("Loss", exact=True).input_value() == ""


def test_without_loss_and_learning_rate_the_strip_says_how_to_log_them(tab):
    tab.open(link("bare"))
    said = tab.frame.locator(".lanes").text_content()
    assert 'loss: none logged: self.log("train_loss", loss)' in said
    assert "learning rate: none logged: add LearningRateMonitor()" in said
    assert values(tab, "dead")[0].endswith(")")


def test_flags_of_events_do_not_overlap_and_add_up(tab, served):
    for fragment in (link("a"), link("a", "b", layer="hidden.relu")):
        tab.open(fragment).told()
        flags = tab.frame.locator("g.events").first.locator("g.flag")
        boxes = [flags.nth(at).bounding_box() for at in range(flags.count())]
        assert all(one["x"] + one["width"] <= other["x"] for one, other in pairwise(boxes))
        numbers = [int(it) for it in flags.locator("text").all_text_contents()]
        assert sum(numbers) == sum(it["units"] for it in timeline(served, "a")["reinitialisations"])
    assert len(numbers) < 20, "All fit without being put together: a poor test."
    assert "events from step" in flags.first.locator("title").text_content()


def test_the_strip_is_walked_with_the_keyboard(tab):
    tab.open(link("a"))
    slider = tab.frame.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext").startswith(
        "step 40: loss 2.96, learning rate 0.1"
    )
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuenow") == "80"
    assert values(tab, "loss") == ["2.92"]
    slider.press("End")
    assert slider.get_attribute("aria-valuenow") == "800"


# --- runs -----------------------------------------------------------------------------------------


def test_runs_have_tensorboards_own_colours(tab):
    tab.open(link("a", "b"))
    wanted = tab.page.evaluate(
        "() => ['a', 'b'].map((it) => document.createElement('tf-color-scale').runsColorScale(it))"
    )
    assert len(set(wanted)) == 2
    rgb = [f"rgb({int(it[1:3], 16)}, {int(it[3:5], 16)}, {int(it[5:], 16)})" for it in wanted]
    dots = "() => [...document.querySelectorAll('%s')].map((it) => it.style.background)"
    assert tab.evaluate(dots % ".card .dot") == rgb
    assert tab.evaluate(dots % "thead .dot") == rgb
    lines = tab.frame.locator("path.scalar[data-lane='loss']")
    assert [lines.nth(at).get_attribute("stroke") for at in (0, 1)] == wanted


def test_maps_side_by_side_show_the_same_unit_in_the_same_row(tab, served):
    tab.open(link("a", "b", layer="hidden.relu"))
    own = {run: heat_map(served, run, "hidden.relu", "death")[1]["units"] for run in ("a", "b")}
    assert own["a"].tolist() != own["b"].tolist()
    for reference in ("a", "b"):
        tab.frame.get_by_label("as in").select_option(reference)
        tab.settle()
        for run in ("a", "b"):
            canvas = tab.canvas(run)
            canvas.click(position=tab.point(canvas, 5, 3, 64, 20))
            tab.settle()
            unit = tab.frame.get_by_label("Unit number").input_value()
            assert int(unit) == own[reference][5]


def test_a_wholly_dead_layer_has_a_badge_everywhere(tab):
    tab.open(link("a"))
    badge = tab.frame.locator("tr[data-layer='blocks.1.act'] .badge")
    assert badge.inner_text() == "wholly dead"
    assert "nothing gets through 'blocks.1.act'" in badge.get_attribute("title")
    assert "1 layer wholly dead" in tab.frame.locator(".card").inner_text()
    tab.frame.get_by_role("button", name="blocks.1.act").click()
    assert tab.frame.locator(".facts .badge").inner_text() == "wholly dead"
    tab.open(link("a", "b"))
    assert tab.frame.locator("tr[data-layer='blocks.1.act'] .badge").count() == 2
    assert tab.frame.locator("tr[data-layer='hidden.relu'] .badge").count() == 0


def test_what_makes_the_units_is_told(tab):
    row = tab.open(link("a")).rows()[0]
    assert row[3] == "stem.conv, stem.skip"
    tab.frame.get_by_role("button", name="stem.relu").click()
    assert "made by stem.conv, stem.skip" in tab.frame.locator(".facts").inner_text()


def test_a_units_windows_beside_its_validation_are_not_counted_again(chromium, tmp_path):
    writer = SummaryWriter(str(tmp_path))
    for name in ("a", "train/a"):
        write_zero_rates(writer, name, np.array([1, 0.5]), 1, dead_threshold=1.0)
    writer.close()
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: counts(url) == [2])
        rows = tab.open("dead_units").rows()
        assert {row[0] for row in rows} == {"a", "train/a"}
        assert "1 of 2 units are dead, in 1 layer," in tab.frame.locator(".card").inner_text()
        assert values(tab, "dead") == ["50.0% (1)"]


# --- names, sizes ---------------------------------------------------------------------------------


def test_long_names_are_shortened_in_the_middle_and_stay_different(tab):
    tab.open(link(*SWEEP))
    buttons = tab.frame.locator("button.layer-name")
    shown = buttons.all_inner_texts()
    assert len(set(shown)) == 80
    assert max(map(len, shown)) < 60
    assert shown[37].startswith("network.")
    assert "37." in shown[37]
    assert shown[37].endswith(".gelu")
    assert buttons.nth(37).get_attribute("title") == LONG.format(37)
    cards = tab.frame.locator(".card h3").all_inner_texts()
    assert len(set(cards)) == 6
    assert all("…" in it for it in cards)
    assert tab.frame.locator(".card h3").first.get_attribute("title") == SWEEP[0]


# The browser writes it in its own time.
IN_CLIPBOARD = "async (text) => await navigator.clipboard.readText() === text"


def test_a_whole_name_can_be_copied(tab):
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.open(link(SWEEP[0]))
    tab.frame.get_by_role("button", name=f"Copy the name {LONG.format(3)}").click()
    tab.page.wait_for_function(IN_CLIPBOARD, arg=LONG.format(3))
    tab.frame.get_by_role("button", name=LONG.format(4), exact=True).click()
    assert tab.frame.locator(".layer-title").inner_text() == LONG.format(4)
    tab.frame.get_by_role("button", name=f"Copy the name {LONG.format(4)}").click()
    tab.page.wait_for_function(IN_CLIPBOARD, arg=LONG.format(4))


def test_eighty_rows_scroll_below_their_headers(tab):
    tab.open(link(SWEEP[0]))
    frame, head = tab.frame.locator(".table-frame"), tab.frame.locator("thead th").nth(1)
    assert frame.evaluate("(it) => it.scrollHeight > 2 * it.clientHeight")
    before = head.bounding_box()["y"]
    frame.evaluate("(it) => { it.scrollTop = 1000; }")
    assert head.bounding_box()["y"] == before
    assert frame.get_attribute("tabindex") == "0"


CUT_OFF = """() => {
  const shown = (it) => it.getClientRects().length && it.clientWidth > 1;
  const texts = [...document.querySelectorAll('td, th, button, h2, h3, p, label, .value, .badge')];
  const cut = texts.filter(shown).filter((it) => it.scrollWidth > it.clientWidth + 1
    || it.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  const drawn = [...document.querySelectorAll('svg text')].filter((it) => {
    const [own, around] = [it, it.ownerSVGElement].map((one) => one.getBoundingClientRect());
    return own.width && (own.left < around.left - 1 || own.right > around.right + 1);
  });
  return [...cut, ...drawn].map((it) => `${it.getAttribute('class')}: ${it.textContent}`);
}"""


@pytest.mark.parametrize("width", [900, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_off(chromium, served, width, dark):
    fragments = [
        link("a"),
        link("a", "b"),
        link(SWEEP[0]),
        link(*SWEEP),
        link("a", layer="hidden.relu", unit="3"),
        link(*SWEEP, layer=LONG.format(37), unit="2"),
    ]
    with browse(chromium, served, width) as tab:
        for fragment in fragments:
            tab.open(fragment).told()
            if dark:
                tab.choose_theme("dark")
            assert tab.evaluate(CUT_OFF) == [], fragment
            frame = "(it) => it.scrollWidth - it.clientWidth"
            for table in tab.frame.locator(".table-frame").all():
                assert table.evaluate(frame) <= 0, fragment


def test_headers_stand_over_their_numbers(tab):
    tab.open(link("a"))
    right = """(column) => [...document.querySelectorAll('.overview tr')].map((row) => {
      const range = document.createRange();
      range.selectNodeContents(row.children[column]);
      return Math.round(range.getBoundingClientRect().right);
    })"""
    for column in (3, 4, 5, 7, 8):
        assert len(set(tab.evaluate(right, column))) == 1, column


# --- zoom and the curve ---------------------------------------------------------------------------


def test_zooming_in_keeps_the_dead_in_sight_and_says_which_rows_are_shown(tab, served):
    tab.open(link("a", layer="hidden.relu", order="index"))
    _, arrays = heat_map(served, "a", "hidden.relu", "index")
    dead = set(np.flatnonzero(~np.isnan(arrays["dead_since"])).tolist())
    assert dead & set(range(60, 64)) == set(range(60, 64))
    for _ in range(4):
        tab.frame.get_by_role("button", name="Zoom in").click()
        first, last = map(int, tab.canvas().get_attribute("data-rows").split("-"))
        assert dead & set(range(first, last + 1))
        shown = tab.frame.locator(".rows-shown").inner_text()
        assert shown == f"Zoomed in: units {first + 1} to {last + 1} of 64, from the top"
    assert last - first == 3


def test_the_curve_tells_rates_near_one_apart(chromium, tmp_path):
    values = [0.5, 0.9, 0.99, 0.999, 0.9999, 1.0]
    writer = SummaryWriter(str(tmp_path))
    for step, value in enumerate(values):
        write_zero_rates(writer, "a", np.array([value]), step, dead_threshold=1.0)
    writer.close()
    with tensorboard(tmp_path) as url, browse(chromium, url) as tab:
        wait_until(lambda: counts(url))
        tab.open(link(".", layer="a", unit="0"))
        dots = tab.frame.locator("svg.curve circle:has(title)")
        heights = [float(dots.nth(at).get_attribute("cy")) for at in range(len(values))]
        assert all(above - below > 9 for above, below in pairwise(heights))
        said = dots.nth(4).locator("title").text_content()
        assert said.endswith("zero rate >0.999")
        labels = tab.frame.locator("svg.curve text").all_text_contents()
        assert {"0", "0.9", "0.99", "0.999", "1", "zero rate", "training step"} <= set(labels)


# --- the keyboard ---------------------------------------------------------------------------------


def focused(tab) -> str:
    return tab.evaluate("() => document.activeElement.className || document.activeElement.tagName")


def test_the_keyboard_alone_suffices(tab):
    tab.open(link("a"))
    layer = tab.frame.get_by_role("button", name="hidden.relu")
    tab.frame.get_by_label("Filter layers by name").focus()
    while not layer.evaluate("(it) => it === document.activeElement"):
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    tab.settle()
    assert focused(tab) == "layer-title"
    while focused(tab) != "heatmap":
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    tab.frame.locator("svg.curve").wait_for()
    assert focused(tab) == "heatmap"
    while focused(tab) != "close":
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Escape")
    tab.frame.locator("svg.curve").wait_for(state="detached")
    assert focused(tab) == "heatmap"
    tab.page.keyboard.press("Escape")
    tab.frame.locator(".overview").wait_for()
    tab.settle()
    assert layer.evaluate("(it) => it === document.activeElement")


def test_closing_a_unit_by_its_button_returns_the_focus_to_the_map(tab):
    tab.open(link("a", layer="hidden.relu", unit="3"))
    tab.frame.get_by_role("button", name="Close the unit").press("Enter")
    tab.frame.locator("svg.curve").wait_for(state="detached")
    assert focused(tab) == "heatmap"


def test_the_map_tells_the_scalars_of_the_step_in_focus(tab):
    tab.open(link("a", layer="hidden.relu")).told()
    canvas = tab.canvas()
    canvas.focus()
    canvas.press("Home")
    assert "loss 2.96, learning rate 0.1, dead units of all layers" in (
        tab.frame.locator(".readout").inner_text()
    )


# --- numbers and names as pure functions ----------------------------------------------------------


def call(tab, module: str, function: str, *arguments: object) -> object:
    """Call a function of one of the page's modules."""
    script = """async ([module, name, given]) => {
      const found = (await import(new URL(`static/${module}.js`, document.baseURI)))[name];
      return found(...given);
    }"""
    return tab.evaluate(script, [module, function, list(arguments)])


def test_numbers_read_as_in_the_terminal(tab):
    tab.open(link("a"))
    known = json.loads((Path(__file__).parents[1] / "figures.json").read_text())
    for case in known:
        given = case["value"] if "value" in case else case["part"] / case["whole"]
        assert call(tab, "text", case["kind"], given) == case["text"], case
        assert getattr(figures, case["kind"])(given) == case["text"], case
    script = """async (values) => {
      const { rate, percent } = await import(new URL('static/text.js', document.baseURI));
      return values.map((value) => [rate(value), percent(value)]);
    }"""
    drawn = np.random.default_rng(0).random(2000)
    near = [1 - it for it in (drawn[:500] / 1000).tolist()]
    ties = [at / 2000 for at in range(2001)]
    numbers = [*drawn.tolist(), *near, *ties]
    assert tab.evaluate(script, numbers) == [
        [figures.rate(it), figures.percent(it)] for it in numbers
    ]


def test_magnitudes_read_as_in_the_terminal(tab):
    tab.open(link("a"))
    for value in (0.08, 2.30259, 1e-05, 12345.6, 0.1, 100, 999.4, 1000, 0.00012345, -0.5, 0):
        assert call(tab, "text", "magnitude", value) == figures.magnitude(value), value


def test_names_are_shortened_by_what_they_share(tab):
    tab.open(link("a"))
    script = """async ([names, limit]) => {
      const { shortNames } = await import(new URL('static/names.js', document.baseURI));
      return names.map((name) => shortNames(names, limit).get(name));
    }"""

    def short(names: list[str], limit: int) -> list[str]:
        return tab.evaluate(script, [names, limit])

    assert short(["conv1.relu"], 20) == ["conv1.relu"]
    names = [f"model.encoder.layers.{at}.output.activation" for at in (10, 11)]
    assert short(names, 26) == ["model.…10.…activation", "model.…11.…activation"]
    # Nothing but the middle tells them apart: whole rather than alike.
    alike = ["a" * 30 + "1" + "a" * 30, "a" * 30 + "2" + "a" * 30]
    assert short(alike, 20) == alike
    assert len(short(["x" * 100], 20)[0]) == 20


def test_steps_stand_at_the_right_edges_of_their_columns(tab):
    tab.open(link("a"))
    script = """async ([steps, asked]) => {
      const { columnAxis } = await import(new URL('static/steps.js', document.baseURI));
      const axis = columnAxis(steps);
      return asked.map((step) => [axis.place(step), axis.step(axis.place(step) ?? 0)]);
    }"""

    def places(steps: list[int], asked: list[int]) -> list[list[float | None]]:
        return tab.evaluate(script, [steps, asked])

    assert places([10, 20, 60, 70], [0, 10, 20, 40, 70, 71]) == [
        [0, 0], [0.25, 10], [0.5, 20], [0.625, 40], [1, 70], [None, 0],
    ]  # fmt: skip
    assert places([0, 5], [0, 5]) == [[0.5, 0], [1, 5]]
    assert places([7], [0, 7]) == [[0, 0], [1, 7]]
    # A run resumed at step 1000: what was before is not stretched into one column.
    assert places([1000, 1010], [500, 1000]) == [[None, 990], [0.5, 1000]]
