"""Both of TensorBoard's loaders, in real processes, must show what was written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates

from .serving import ROUTE, get, heat_map, tensorboard, wait_until
from .synthetic import rates, write_run

LOADERS = {"data server": "--load_fast=true", "python": "--load_fast=false"}
LONG = 1_150


def write_changing_units(folder: Path) -> None:
    writer = SummaryWriter(str(folder))
    for step, width in enumerate([4, 6, 3, 5]):
        write_zero_rates(writer, "a", np.full(width, step / 10), step, dead_threshold=1.0)
    writer.close()


def write_resumed(folder: Path) -> None:
    """Train to step 50, resume from step 20 with another validation interval."""
    first = SummaryWriter(str(folder))
    for step in (10, 20, 30, 40, 50):
        write_zero_rates(first, "a", np.array([1.0, 0.1]), step, dead_threshold=1.0)
    write_reinit(first, "a", [1], 2, 20)
    write_reinit(first, "a", [0], 2, 40)
    first.close()
    time.sleep(1.1)  # event files are ordered by the second in their names
    second = SummaryWriter(str(folder))
    for step in (25, 30):
        write_zero_rates(second, "a", np.array([0.5, 0.2]), step, dead_threshold=1.0)
    second.close()


@pytest.fixture(scope="module")
def logdir(tmp_path_factory, real_logs):
    logdir = tmp_path_factory.mktemp("loaders")
    write_changing_units(logdir / "changing")
    write_resumed(logdir / "resumed")
    write_run(logdir / "long", {"a": rates(LONG, 8), "b": rates(250, 8)}, every=1)
    (logdir / "real").symlink_to(real_logs / "reinit")
    return logdir


@pytest.fixture(scope="module", params=LOADERS, ids=lambda it: it.replace(" ", "_"))
def served(logdir, request):
    with tensorboard(logdir, LOADERS[request.param], "--reload_interval=1") as url:
        wait_until(lambda: overview(url, "long") == {"a": 1_000, "b": 250}, 30)
        yield url


def overview(url: str, run: str) -> dict[str, int]:
    runs = json.loads(get(f"{url}{ROUTE}/runs"))["runs"]
    if run not in {it["run"] for it in runs}:
        return {}
    layers = json.loads(get(f"{url}{ROUTE}/overview?run={run}"))["layers"]
    return {it["layer"]: it.get("num_steps", 0) for it in layers}


def test_rates_equal_the_float32_that_was_written(served):
    header, arrays = heat_map(served, "long", "b", "index")
    assert header["steps"] == list(range(250))
    assert arrays["rates"].T.tobytes() == rates(250, 8).tobytes()


def test_a_thousand_steps_are_kept_with_the_last_among_them(served):
    header, arrays = heat_map(served, "long", "a", "index")
    assert len(header["steps"]) == 1_000
    assert header["steps"][-1] == LONG - 1
    np.testing.assert_array_equal(arrays["rates"], rates(LONG, 8).T[:, header["steps"]])


def test_unit_counts_may_change(served):
    header, arrays = heat_map(served, "changing", "a", "index")
    assert header["num_units"] == 5
    widths = (~np.isnan(arrays["rates"])).sum(axis=0)
    assert widths.tolist() == [4, 6, 3, 5]


def test_a_resumed_run_shows_what_led_to_its_weights(served):
    header, arrays = heat_map(served, "resumed", "a", "index")
    assert header["steps"] == [10, 20, 25, 30]
    np.testing.assert_array_equal(arrays["rates"][0], np.float32([1, 1, 0.5, 0.5]))
    # The mark at 40 belongs to the future that was given up.
    assert arrays["reinit_steps"].tolist() == [20]


def test_both_loaders_answer_the_same(logdir):
    answers = []
    for loader in LOADERS.values():
        with tensorboard(logdir, loader, "--reload_interval=1") as url:
            wait_until(lambda url=url: overview(url, "real").get("hidden.relu") == 12, 30)
            wait_until(lambda url=url: overview(url, "resumed") == {"a": 4}, 30)
            paths = [f"overview?run={run}" for run in ("real", "resumed", "changing")]
            paths += [f"layer?run=real&layer={layer}.relu" for layer in ("conv1", "conv2")]
            paths += ["unit?run=resumed&layer=a&unit=1", "csv?run=real&layer=hidden.relu"]
            answers.append([get(f"{url}{ROUTE}/{path}") for path in paths])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("loader", LOADERS.values())
def test_the_users_samples_per_plugin_wins(logdir, loader):
    options = [loader, "--samples_per_plugin=scalars=7,dead_units=20", "--reload_interval=1"]
    with tensorboard(logdir, *options) as url:
        wait_until(lambda: overview(url, "long") == {"a": 20, "b": 20}, 30)
        header, _ = heat_map(url, "long", "a", "index")
        assert header["steps"][-1] == LONG - 1


@pytest.mark.parametrize("loader", LOADERS.values())
def test_zero_samples_keep_every_step(logdir, loader):
    with tensorboard(logdir, loader, "--samples_per_plugin=dead_units=0") as url:
        wait_until(lambda: overview(url, "long").get("a") == LONG, 30)
