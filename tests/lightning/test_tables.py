"""W&B and MLflow get the table of every validation: read back from what they wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from lightning_deadunits import DeadUnitCallback
from lightning_deadunits.lightning.tables import COLUMNS, rows
from tests.modules import DEAD, Lit, loader

MakeTrainer = Callable[..., pl.Trainer]


def test_wandb_gets_a_table_per_validation(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="tests")
    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback], logger=logger, max_epochs=2).fit(Lit(), loader(), loader())
    logger.experiment.finish()
    tables = sorted(tmp_path.rglob("media/table/dead_units*.table.json"), key=lambda it: it.name)
    assert len(tables) == 2
    read = json.loads(tables[-1].read_text())
    assert read["columns"] == list(COLUMNS)
    assert [row[0] for row in read["data"]] == ["net.act", "net.relu"]
    assert read["data"][0][3] == len(DEAD)
    assert rows(callback.report) in [json.loads(table.read_text())["data"] for table in tables]


def test_mlflow_gets_every_verdict_and_the_table(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for a database
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback], logger=logger, max_epochs=2).fit(Lit(), loader(), loader())
    verdicts = sorted(tmp_path.rglob("dead_units/step-*.json"))
    assert [path.name for path in verdicts] == ["step-000000003.json", "step-000000007.json"]
    assert json.loads(verdicts[-1].read_text()) == callback.report.to_dict(per_unit=False)
    (table,) = tmp_path.rglob("dead_units/latest.txt")
    assert "net.act      16  3 (18.8%)" in table.read_text()
