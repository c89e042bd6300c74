"""From a real Trainer with the real callback to what a user sees in the browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import tensorboard_plugin
from lightning_deadunits.reporting import figures
from lightning_deadunits.reporting.text import render

from .browsing import browse
from .serving import ROUTE, get, heat_map, tensorboard, wait_until

EPOCHS = 4
STATIC = Path(tensorboard_plugin.__file__).parent / "static"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train with and without re-initialisation; return the log directory and the reports."""
    logdir = tmp_path_factory.mktemp("trainer")
    return logdir, {name: fit(logdir, name) for name in ("plain", "reinit")}


def fit(logdir, name):
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import TensorBoardLogger

    from lightning_deadunits import DeadUnitCallback

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 3)
            nn.init.constant_(self.conv.bias, -0.2)
            self.hidden = nn.Sequential(nn.Linear(576, 32), nn.ReLU())
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.hidden(F.relu(self.conv(x)).flatten(1)))

        def training_step(self, batch, _):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, _):
            self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.02)

    pl.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    )
    callback = DeadUnitCallback(reinit=name == "reinit")
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[callback, LearningRateMonitor()],
        log_every_n_steps=5,
        logger=TensorBoardLogger(logdir, name="", version=name),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(data, 96), DataLoader(data, 96))
    return callback.report


@pytest.fixture(scope="module")
def served(trained):
    with tensorboard(trained[0], "--reload_interval=1") as url:
        wait_until(lambda: steps(url) == {"plain": [EPOCHS] * 2, "reinit": [EPOCHS] * 2}, 30)
        yield url


def steps(url: str) -> dict[str, list[int]]:
    runs = json.loads(get(f"{url}{ROUTE}/runs"))["runs"]
    return {it["run"]: [row["num_steps"] for row in overview(url, it["run"])] for it in runs}


def overview(url: str, run: str) -> list[dict]:
    return json.loads(get(f"{url}{ROUTE}/overview?run={run}"))["layers"]


@pytest.mark.parametrize("run", ["plain", "reinit"])
def test_the_tab_shows_the_callbacks_report(trained, served, run):
    report = trained[1][run]
    rows = {row["layer"]: row for row in overview(served, run)}
    assert set(rows) == set(report.layers)
    for name, layer in report.layers.items():
        assert rows[name]["num_units"] == layer.num_units
        assert rows[name]["dead"] == len(layer.dead)
        _, arrays = heat_map(served, run, name, "index")
        assert arrays["rates"][:, -1].tolist() == layer.zero_rate.float().tolist()


def test_the_browser_shows_what_the_trainer_wrote(chromium, trained, served):
    with browse(chromium, served) as tab:
        runs = ("plain", "reinit")
        shown = {
            (run, row[0]): int(cell.split()[0])
            for row in tab.open().rows()
            for run, cell in zip(runs, row[5:], strict=True)
        }
        assert shown == {
            (run, name): len(layer.dead)
            for run, report in trained[1].items()
            for name, layer in report.layers.items()
        }
        tab.frame.locator("button.layer-name").first.click()
        tab.canvas("plain").wait_for()
        assert tab.canvas("reinit").get_attribute("data-steps") == str(EPOCHS)


def plain_text(cell: str) -> str:
    return " ".join(cell.replace("\N{EN DASH}", "").split())


@pytest.mark.parametrize("run", ["plain", "reinit"])
def test_every_number_and_word_of_the_table_is_the_terminals(chromium, trained, served, run):
    report = trained[1][run]
    table = [re.split(r"\s{2,}", line.strip()) for line in render(report, width=400).splitlines()]
    terminal = {cells[0]: cells[1:] for cells in table}
    with browse(chromium, served) as tab:
        rows = tab.open(f"dead_units&p.dead_units.run={run}").rows()
        assert [row[0] for row in rows] == list(report.layers)
        for name, _, _, made_by, units, dead, rate, since, *_ in rows:
            said = [units, dead, rate, made_by, since]
            assert [plain_text(it) for it in said if plain_text(it)] == terminal[name]
        card = tab.frame.locator(".card").inner_text()
        units, share = terminal["total"][:2]
        fraction = share.split("(")[-1].rstrip(")") if "(" in share else "0%"
        assert fraction in card
        assert f"{report.num_dead} of {units} units are dead, in 2 layers" in card
        told = tab.frame.locator(".diagnosis").all_inner_texts()
        assert told == ([report.diagnosis] if report.diagnosis else [])
    assert report.num_dead > 0, "The training killed no unit: a poor test."


@pytest.mark.parametrize("run", ["plain", "reinit"])
def test_the_scalars_are_the_tables_figures(trained, served, run):
    report = trained[1][run]
    wanted = {"dead_fraction/total": report.dead_fraction}
    for name, layer in report.layers.items():
        wanted |= {
            f"dead_fraction/{name}": layer.dead_fraction,
            f"zero_rate/{name}": layer.mean_zero_rate,
        }
    for tag, value in wanted.items():
        answer = get(f"{served}/data/plugin/scalars/scalars?run={run}&tag={quote(tag)}")
        assert json.loads(answer)[-1][2] == float(np.float32(value)), tag


def test_the_strip_finds_the_loss_and_learning_rate_that_a_trainer_logged(served):
    answer = json.loads(get(f"{served}{ROUTE}/timeline?run=plain"))
    assert answer["loss"]["tag"] == "train_loss"
    assert answer["learning_rate"]["tag"] == "lr-Adam"
    assert set(answer["learning_rate"]["values"]) == {float(np.float32(0.02))}
    assert answer["total"]["steps"] == overview(served, "plain")[0]["sparkline"]["steps"]


def test_the_plot_and_the_tab_have_one_set_of_colours():
    drawn = json.loads((STATIC / "colours.json").read_text())
    assert drawn["light"]["dead"] == figures.DEAD_COLOUR
    assert list(figures.RATE_COLOURS) == drawn["light"]["scale"]
    written = [path.name for path in STATIC.glob("*.js") if "#ea580c" in path.read_text()]
    assert written == []
