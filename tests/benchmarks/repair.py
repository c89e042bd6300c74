"""Does a network whose units died come back? Digits, four ways to kill, four optimizers, two nets.

Seven of eight units of every hidden layer are killed: by their biases at the start, by incoming
weights (or the scale of the norm behind them) that are zero, by their biases in the tenth of 30
epochs, or by forty steps at a hundredfold learning rate, which kills as many as it likes. Then the
network goes on: as it is; with ``DeadUnitCallback(reinit=True)`` and no other option; or with as
many units re-drawn at the same moments, but random ones. Beside it a network that nothing happened
to. A Trainer with a validation after each epoch, accuracies on 397 held-out digits after the last.

Run with (a second or two a run on a free core, 520 runs)::

    python -m tests.benchmarks.repair --output tests/benchmarks/results/repair.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback
from tests.benchmarks.result_file import mean_and_ci, write_results

TRAINED, HELD_OUT, EPOCHS, BATCH = 1400, 397, 30, 64
STEPS = -(-TRAINED // BATCH)
LATE, SPIKE, FACTOR = 10, 40, 100.0

NETS = ("MLP", "CNN", "CNN with norms")
KILLS = ("biases", "weights", "biases, late", "learning rate")
FATES = ("killed", "revived", "random units")

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.03, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        net: "MLP", "CNN" or "CNN with norms".
        optimizer: Name of the optimizer.
        kill: How units die, "" for not at all.
        fate: What becomes of them, "healthy" where none is killed.
        seed: Of weights, order of samples and split of the data.
    """

    net: str
    optimizer: str
    kill: str
    fate: str
    seed: int


class Digits(LightningModule):
    """A classifier with two hidden layers, which can be killed."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.net = mlp() if run.net == "MLP" else cnn(normed="norms" in run.net)
        self.accuracies: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        right = (self.net(batch[0]).argmax(1) == batch[1]).float()
        self.accuracies.append(round(100 * float(right.mean()), 3))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.run.optimizer](self.parameters())

    def on_fit_start(self) -> None:
        if self.run.kill in ("biases", "weights"):
            self.kill()

    def on_train_epoch_start(self) -> None:
        if self.run.kill == "biases, late" and self.current_epoch == LATE:
            self.kill()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.run.kill == "learning rate" and self.global_step in (0, SPIKE):
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= FACTOR if self.global_step == 0 else 1 / FACTOR

    @torch.no_grad()
    def kill(self) -> None:
        """Silence seven of eight units of every hidden layer."""
        for maker in makers(self.net):
            dying = slice(len(maker.bias) // 8, None)
            if self.run.kill == "weights":
                maker.weight[dying] = 0.0
                maker.bias[dying] = -0.1
            else:
                maker.bias[dying] = -10.0


def mlp() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    )


def cnn(normed: bool) -> nn.Sequential:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normed)
        return [conv, *[nn.BatchNorm2d(outputs)] * normed, nn.ReLU(), nn.MaxPool2d(2)]

    image, head = nn.Unflatten(1, (1, 8, 8)), nn.Linear(32 * 4, 10)
    return nn.Sequential(image, *block(1, 16), *block(16, 32), nn.Flatten(), head)


def makers(net: nn.Sequential) -> Iterator[Any]:
    """Yield the module whose bias a hidden layer's units have: a norm, or a linear layer."""
    for before, module in zip(net, list(net)[1:], strict=False):
        if isinstance(module, nn.ReLU):
            yield before


class RandomUnits(Callback):
    """Re-draws as many units as are dead, at the moments that the callback would, but any of them.

    Args:
        watcher: Counts the dead, and re-initialises none.
    """

    def __init__(self, watcher: DeadUnitCallback) -> None:
        self.watcher, self._waits = watcher, dict[str, int]()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self.watcher.report
        if trainer.sanity_checking or report is None:
            return
        for layer, found in report.layers.items():
            dead = int(found.dead.sum())
            # Patience 2 and grace 2, as by default: at every second validation in which some are.
            self._waits[layer] = self._waits.get(layer, 0) + 1 if dead else 0
            if self._waits[layer] >= 2:
                redraw_(pl_module, layer, dead, trainer.optimizers[0])
                self._waits[layer] = -2


@torch.no_grad()
def redraw_(model: Digits, layer: str, number: int, optimizer: torch.optim.Optimizer) -> None:
    """Re-draw random units of a layer, silence them, and zero what the optimizer remembers."""
    net, index = model.net, int(layer.rsplit(".", 1)[1])
    norm = net[index - 1] if isinstance(net[index - 1], nn.BatchNorm2d) else None
    maker = net[index - 2] if norm is not None else net[index - 1]
    reader = next(m for m in list(net)[index:] if isinstance(m, (nn.Linear, nn.Conv2d)))
    num_units = maker.weight.shape[0]
    units = torch.randperm(num_units)[:number]
    fresh = type(maker)(*_sizes(maker), bias=maker.bias is not None)
    columns = units
    if isinstance(reader, nn.Linear) and reader.in_features != num_units:
        block = reader.in_features // num_units
        columns = (units[:, None] * block + torch.arange(block)).flatten()
    changes: list[tuple[nn.Parameter, Any, Any]] = [
        (maker.weight, units, fresh.weight[units]),
        (reader.weight, (slice(None), columns), 0.0),
    ]
    if maker.bias is not None:
        changes.append((maker.bias, units, fresh.bias[units]))
    if norm is not None:
        changes += [(norm.weight, units, 1.0), (norm.bias, units, 0.0)]
    for parameter, place, values in changes:
        parameter[place] = values
        for memory in optimizer.state.get(parameter, {}).values():
            if isinstance(memory, Tensor) and memory.shape == parameter.shape:
                memory[place] = 0.0


def _sizes(maker: Any) -> tuple[int, ...]:
    if isinstance(maker, nn.Conv2d):
        return maker.in_channels, maker.out_channels, maker.kernel_size[0]
    return maker.in_features, maker.out_features


def trained(run: Run) -> dict[str, Any]:
    """Train one network; return its accuracy at the end, and what was re-initialised."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning_deadunits"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed_everything(run.seed, verbose=False)
    model, start = Digits(run), time.perf_counter()
    callbacks: list[Callback] = []
    if run.fate in ("revived", "random units"):
        callbacks.append(DeadUnitCallback(reinit=run.fate == "revived"))
    if run.fate == "random units":
        callbacks.append(RandomUnits(callbacks[0]))
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    train, held_out = loaders(run.seed)
    trainer.fit(model, train, held_out)
    reviver = callbacks[0].reviver if run.fate == "revived" else None
    events = [] if reviver is None else reviver.events
    return {
        **asdict(run),
        "accuracies": model.accuracies,
        "reinitialised": {
            event.step // STEPS: event.num_reinitialised for event in events if event.reinitialised
        },
        "seconds": round(time.perf_counter() - start, 1),
    }


def loaders(seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return batches for training, in random order, and the held-out digits in one batch."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x, y = (
        torch.tensor(found.data / 16, dtype=torch.float32)[order],
        torch.tensor(found.target)[order],
    )
    train = TensorDataset(x[:TRAINED], y[:TRAINED])
    held_out = TensorDataset(x[TRAINED:], y[TRAINED:])
    return DataLoader(train, BATCH, shuffle=True), DataLoader(held_out, HELD_OUT)


def runs(seeds: int, nets: list[str], optimizers: list[str], kills: list[str]) -> list[Run]:
    """Return all trainings."""
    found = []
    for seed, net, optimizer in product(range(seeds), nets, optimizers):
        found.append(Run(net, optimizer, "", "healthy", seed))
        found += [Run(net, optimizer, *end, seed) for end in product(kills, FATES)]
    return found


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per net, optimizer and way to kill; gaps are paired by seed.

    A network that was revived in the second epoch has had two epochs less than a healthy one. What
    a new network would have reached in the epochs that were left is read from the healthy runs:
    their accuracy after as many epochs.
    """
    curves = {Run(*(r[key] for key in Run.__annotations__)): r for r in results}
    rows = []
    for net, optimizer, kill in product(NETS, OPTIMIZERS, KILLS):
        cells: dict[str, list[float]] = {name: [] for name in ("healthy", *FATES, "as long")}
        for seed in sorted({run.seed for run in curves}):
            found = [curves.get(Run(net, optimizer, "", "healthy", seed))]
            found += [curves.get(Run(net, optimizer, kill, fate, seed)) for fate in FATES]
            whole = [run for run in found if run is not None]
            if len(whole) < len(found):
                continue
            healthy, *ends = whole
            for name, run in zip(("healthy", *FATES), (healthy, *ends), strict=True):
                cells[name].append(run["accuracies"][-1])
            first = min((int(epoch) for epoch in ends[1]["reinitialised"]), default=0)
            cells["as long"].append(healthy["accuracies"][EPOCHS - first - 1])
        if cells["healthy"]:
            rows.append(
                {
                    "net": net,
                    "optimizer": optimizer,
                    "kill": kill,
                    "seeds": len(cells["healthy"]),
                    **{name: mean_and_ci(cells[name]) for name in ("healthy", *FATES)},
                    "revived minus healthy": gap(cells, "healthy"),
                    "revived minus a fresh start then": gap(cells, "as long"),
                    "revived minus random units": gap(cells, "random units"),
                }
            )
    return rows


def gap(cells: dict[str, list[float]], other: str) -> dict[str, float]:
    """Return by how much the revived are better than others, seed by seed."""
    return mean_and_ci([a - b for a, b in zip(cells["revived"], cells[other], strict=True)])


def said(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown, and in how many rows the gap is at most a point."""
    gaps = ("revived minus healthy", "revived minus a fresh start then")
    columns = ("healthy", *FATES, *gaps)
    head = ["net", "optimizer", "killed by", *columns]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [f"{row[name]['mean']:.1f} +- {row[name]['ci95']:.1f}" for name in columns]
        lines.append(f"| {row['net']} | {row['optimizer']} | {row['kill']} | {' | '.join(cells)} |")
    for name in gaps:
        close = sum(row[name]["mean"] >= -1.0 for row in rows)
        lines.append(f"{name}: at least -1.0 in {close} of {len(rows)}.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--kills", nargs="+", choices=KILLS, default=list(KILLS))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    due = runs(options.seeds, options.nets, options.optimizers, options.kills)
    results: list[dict[str, Any]] = []
    if options.output and options.output.exists():
        results = json.loads(options.output.read_text())["runs"]
        known = {Run(*(r[key] for key in Run.__annotations__)) for r in results}
        due = [run for run in due if run not in known]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_trained, run) for run in due]):
            results.append(done.result())
            # After each run: what is cut off keeps what it has, and goes on from there.
            write_results(options.output, rows=table(results), runs=results)
    print(said(table(results)))
    return table(results)


def _trained(run: Run) -> dict[str, Any]:
    # By its full name: a spawned process knows nothing of what was run as a script.
    from tests.benchmarks import repair

    return repair.trained(run)


if __name__ == "__main__":
    main()
