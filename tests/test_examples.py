"""Every example runs as it is shown, and ends in the table or the picture that it promises."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
Main = Callable[[list[str]], Any]


@pytest.fixture
def main_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Main]:
    """Return a function that imports an example as its own folder sees it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("MPLBACKEND", "agg")

    def load(name: str) -> Main:
        sys.modules.pop(name, None)
        return importlib.import_module(name).main

    return load


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000


def test_digits_prints_its_table_and_leaves_logs(
    main_of: Callable[[str], Main], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = main_of("digits")(["--epochs", "1", "--reinit", "--logs", str(tmp_path)])
    assert list(callback.report.layers) == ["conv1.relu", "conv2.relu", "hidden.1"]
    assert str(callback.report) in caplog.text
    assert callback.report.num_dead > 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_metric_alone_tells_sparse_from_dead(
    main_of: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "rates.png"
    rates = main_of("metric_alone")(["--batches", "20", "--picture", str(picture)])
    assert torch.equal(torch.nonzero(rates["first"] == 1).flatten(), torch.arange(8))
    assert rates["second"].mean() > 0.9
    assert (rates["second"] < 1).all()
    assert "first        8" in capsys.readouterr().out
    assert is_picture(picture)


def test_the_transformers_model_shows_the_units_that_were_silenced(
    main_of: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "report.png"
    report = main_of("transformers_model")(["--batches", "10", "--picture", str(picture)])
    dead = [layer.dead.tolist() for layer in report.layers.values()]
    assert dead == [list(range(64 >> index)) for index in range(4)]
    assert str(report) in capsys.readouterr().out
    assert is_picture(picture)


def test_in_the_plain_loop_units_die_and_are_revived(
    main_of: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "dead.png"
    alone, revived = main_of("plain_loop")(["--epochs", "10", "--picture", str(picture)])
    assert all(epoch.revived == 0 for epoch in alone)
    assert revived[0].revived > 0
    assert revived[-1].dead < alone[-1].dead
    assert len(capsys.readouterr().out.splitlines()) == 2 + 10 + 2
    assert is_picture(picture)


def test_the_continual_learner_errs_less_with_new_lives(
    main_of: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "continual.png"
    alone, revived = main_of("continual")(
        ["--steps", "2000", "--runs", "2", "--picture", str(picture)]
    ).values()
    assert revived < alone
    assert f"{revived:.3f}" in capsys.readouterr().out
    assert is_picture(picture)


def test_two_processes_print_one_table(tmp_path: Path) -> None:
    """In a process of its own: ``ddp`` starts the script once more for the second rank."""
    done = subprocess.run(
        [sys.executable, "ddp.py", "--epochs", "1", "--picture", str(tmp_path / "report.png")],
        check=True, cwd=EXAMPLES, timeout=240, capture_output=True, text=True,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(EXAMPLES.parent)},
    )  # fmt: skip
    assert done.stdout.count("zero rate") == 1
    assert "conv2.relu" in done.stdout
    assert "MEMBER: 2/2" in done.stderr
    assert is_picture(tmp_path / "report.png")


def test_dead_latents_of_sparse_autoencoders_are_revived_or_refused_without_nan(
    main_of: Callable[[str], Main], tmp_path: Path
) -> None:
    reports = main_of("sparse_autoencoder")([str(tmp_path)])
    born = set(range(16))
    for name in ("ReLU", "JumpReLU"):
        assert not born & set(reports[name].layers["activation"].dead.tolist())
    assert born <= set(reports["TopK"].layers["activation"].dead.tolist())
    assert is_picture(tmp_path / "firing_rates.png")


def test_transformers_trainer_is_counted_at_every_evaluation(
    main_of: Callable[[str], Main],
) -> None:
    reports = main_of("transformers_trainer")()  # type: ignore[call-arg]
    assert len(reports) == 2
    for report in reports:
        (first, *_) = report.layers.values()
        assert first.observations == 64 * 16
        assert set(range(5)) <= set(first.dead.tolist())
