"""The callback in a real Trainer for a million steps: what it gains, what it costs, what it leaves.

Slowly-changing regression (Dohare et al. 2024, "Loss of plasticity in deep continual learning",
Nature 632:768), one run of the stream of `slowly_changing`, learnt by Lightning's own loop: one
example a step, plain SGD, a TensorBoard logger. Once without a callback, once with
``DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=100))``, in a process each, from the
same weights. Every 20 000 steps are noted: the squared error, the time of a step, the resident
memory, how many units were re-initialised, and how large the logs are.

Run with (some 6 minutes without and 20 minutes with the callback on a free core)::

    python -m tests.benchmarks.million --output tests/benchmarks/results/million.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.benchmarks.result_file import write_results
from tests.benchmarks.slowly_changing import PERIOD, stream

INPUTS, UNITS, LEARNING_RATE, BIN = 20, 5, 0.01, 20_000
RUNS = ("no callback", "callback every 100")


@dataclass
class Examples:
    """The stream of one seed, as a Trainer takes it: an iterable of batches of one example."""

    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        blocks = stream(range(self.seed, self.seed + 1))
        for _ in range(self.steps // PERIOD):
            block = next(blocks)
            fast, target = torch.from_numpy(block.fast), torch.from_numpy(block.target)
            slow = torch.from_numpy(block.slow).T.expand(PERIOD, -1)
            inputs = torch.cat([slow, fast.squeeze(-1)], dim=1)
            yield from zip(inputs.split(1), target.split(1), strict=True)


class Learner(pl.LightningModule):
    """A 20-5-1 ReLU network that learns by SGD, one example at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, 1)
        for layer in (self.hidden, self.output):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.total = torch.zeros(())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        hidden = nn.functional.relu(self.hidden(batch[0]))
        loss = nn.functional.mse_loss(self.output(hidden), batch[1])
        self.total += loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


@dataclass
class Notes(pl.Callback):
    """Notes down, every 20 000 steps, what the run has done and holds.

    Args:
        logs: Folder of the logs.
        path: Where the notes are written, after each of them.
        watcher: The callback that is measured, or None.
    """

    logs: Path
    path: Path
    watcher: DeadUnitCallback | None
    rows: list[dict[str, float]] = field(default_factory=list)
    _since: float = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Learner, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % BIN:
            return
        took = time.perf_counter() - self._since
        self.rows.append(
            {
                "steps": batch_idx + 1,
                "error": round(float(pl_module.total) / BIN, 4),
                "microseconds_per_step": round(took / BIN * 1e6, 1),
                "resident_mb": round(resident_bytes() / 2**20, 1),
                "log_mb": round(size_of(self.logs) / 2**20, 3),
                **self._events(),
            }
        )
        self.path.write_text(json.dumps(self.rows))
        pl_module.total.zero_()
        self._since = time.perf_counter()

    def _events(self) -> dict[str, int]:
        if self.watcher is None or self.watcher.reviver is None:
            return {}
        reports = self.watcher.reviver.events
        done = sum(report.num_reinitialised for report in reports)
        return {"events": len(reports), "reinitialised": done}


def resident_bytes() -> int:
    """Memory of this process that is in use, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def learn(name: str, steps: int, seed: int, path: Path) -> None:
    """Train one learner in a Trainer, with or without the callback."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(seed, verbose=False)
    watcher = None
    if name != RUNS[0]:
        watcher = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=100))
    with tempfile.TemporaryDirectory() as folder:
        notes = Notes(Path(folder), path, watcher)
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            callbacks=[notes] if watcher is None else [watcher, notes],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Learner(), Examples(steps, seed))


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """What a run comes to: the error of the last tenth, and how time and memory went."""
    tenth, step = max(1, len(rows) // 10), "microseconds_per_step"
    last = rows[-tenth:]
    return {
        "final_error": round(sum(row["error"] for row in last) / tenth, 4),
        "error_over_all_steps": round(sum(row["error"] for row in rows) / len(rows), 4),
        "median_microseconds_per_step": sorted(row[step] for row in rows)[len(rows) // 2],
        "resident_mb_early_and_late": [rows[0]["resident_mb"], rows[-1]["resident_mb"]],
        "log_mb": rows[-1]["log_mb"],
        "events": rows[-1].get("events", 0),
        "reinitialised": rows[-1].get("reinitialised", 0),
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=RUNS, help="train in this process; notes go to --output")
    options = parser.parse_args(arguments)
    if options.steps % BIN:
        parser.error(f"Expected --steps to be a multiple of {BIN}, but got {options.steps}.")
    if options.only:
        learn(options.only, options.steps, options.seed, options.output)
        return {}
    runs: dict[str, Any] = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            command = [sys.executable, "-m", "tests.benchmarks.million", "--only", name]
            command += ["--steps", str(options.steps), "--seed", str(options.seed)]
            subprocess.run([*command, "--output", str(path)], check=True)
            runs[name] = summary(json.loads(path.read_text()))
        print(name, {key: value for key, value in runs[name].items() if key != "rows"}, flush=True)
        # After each run: a benchmark that is stopped keeps what it has.
        write_results(options.output, steps=options.steps, seed=options.seed, runs=runs)
    return runs


if __name__ == "__main__":
    main()
