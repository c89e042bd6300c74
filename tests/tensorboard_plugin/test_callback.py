"""From a real Trainer with the real callback to what a user sees in the browser."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .browsing import browse
from .serving import ROUTE, get, heat_map, tensorboard, wait_until

EPOCHS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train with and without re-initialisation; return the log directory and the reports."""
    logdir = tmp_path_factory.mktemp("trainer")
    return logdir, {name: fit(logdir, name) for name in ("plain", "reinit")}


def fit(logdir, name):
    import lightning.pytorch as pl
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
            return F.cross_entropy(self(batch[0]), batch[1])

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
        callbacks=[callback],
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
            for run, cell in zip(runs, row[4:], strict=True)
        }
        assert shown == {
            (run, name): len(layer.dead)
            for run, report in trained[1].items()
            for name, layer in report.layers.items()
        }
        tab.frame.locator("button.layer-name").first.click()
        tab.canvas("plain").wait_for()
        assert tab.canvas("reinit").get_attribute("data-steps") == str(EPOCHS)
