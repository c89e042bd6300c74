"""What the cost of observing grows with, and what it does not.

``python -m tests.benchmarks.scale`` times an MLP's evaluation pass, plain and observed in turn on
one thread, against the number of layers, of units and of samples per batch; an epoch, against the
number of batches, and of batches of which one is counted; the end of a validation, with its history
and all that goes to TensorBoard, against how many there were before; and counts the collectives of
a validation against the number of processes.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits import DeadUnitsReport, LayerReport
from lightning_deadunits.lightning.logging import write_report
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.tally import layout_of, pack
from lightning_deadunits.reporting.history import History
from tests.benchmarks.cost import keep_heap
from tests.benchmarks.ranks import collectives
from tests.benchmarks.result_file import write_results

LAYERS = [1, 4, 16, 64]
UNITS = [64, 256, 1024, 4096]
BATCH = [32, 128, 512, 2048]
BATCHES = [1, 4, 16, 64, 256]
EVERY = [1, 2, 4, 8]
VALIDATIONS = [1, 10, 100, 1000]
RANKS = [1, 2, 4]


def mlp(layers: int, units: int) -> nn.Module:
    """Return layers of the same width with a ReLU each."""
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(units, units), nn.ReLU()) for _ in range(layers))
    )


def pass_cost(layers: int, units: int, batch: int, pairs: int) -> dict[str, float]:
    """Return what observing adds to one pass: microseconds and the ratio, medians of pairs."""
    model, inputs = mlp(layers, units).eval(), torch.randn(batch, units)
    observer = Observer(model)
    plain, observed = [], []
    with torch.no_grad(), observer.watching():
        for turn in range(pairs + 3):
            observer.pause()
            begin = time.process_time()
            model(inputs)
            middle = time.process_time()
            observer.resume()
            with observer.one_pass():
                model(inputs)
            if turn >= 3:  # the first ones warm up
                plain.append(middle - begin)
                observed.append(time.process_time() - middle)
    added = [b - a for a, b in zip(plain, observed, strict=True)]
    ratios = [b / a for a, b in zip(plain, observed, strict=True)]
    return {
        "added_us": round(1e6 * statistics.median(added), 1),
        "ratio": round(statistics.median(ratios), 4),
    }


def epoch_cost(batches: int, repeats: int, every: int = 1) -> dict[str, float]:
    """Return what observing adds per batch of an epoch, and the bytes of the counts at its end.

    Args:
        batches: Batches of the epoch.
        repeats: Epochs, of which the median is taken.
        every: Of so many batches one is counted, as by ``every_n_batches``.
    """
    model, inputs = mlp(4, 256).eval(), torch.randn(128, 256)
    costs = []
    for _ in range(repeats):
        observer = Observer(model)
        with torch.no_grad(), observer.watching():
            with observer.one_pass():
                model(inputs)  # warms up
            added = 0.0
            for index in range(batches):
                observer.pause()
                begin = time.process_time()
                model(inputs)
                middle = time.process_time()
                if index % every == 0:
                    observer.resume()
                    with observer.one_pass():
                        model(inputs)
                else:
                    model(inputs)
                added += (time.process_time() - middle) - (middle - begin)
            costs.append(added / batches)
            vector = counts_of(observer)
    return {
        "added_us_per_batch": round(1e6 * statistics.median(costs), 1),
        "bytes_held": vector.numel() * vector.element_size(),
    }


def validation_cost(validations: int, layers: int = 8, units: int = 256) -> dict[str, float]:
    """Return what the last of so many validations costs at its end, and the bytes kept by then."""
    generator = torch.Generator().manual_seed(0)
    history, last = History(), deque[float](maxlen=9)
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        loggers = [SimpleNamespace(experiment=writer)]
        trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=False, loggers=loggers)
        for step in range(validations):
            reports = {}
            for index in range(layers):
                # Units die and come back all the time: the worst case for a history.
                zeros = 99 + (torch.rand(units, generator=generator) < 0.2).long()
                reports[f"{index}"] = LayerReport(f"{index}", units, 1, 100, zeros)
            begin = time.process_time()
            report = history.record(DeadUnitsReport(reports), step)
            write_report(trainer, report, per_unit=True, custom_scalars=False, step=step)
            last.append(time.process_time() - begin)
    return {
        "ms_per_validation": round(1e3 * statistics.median(last), 2),
        "bytes_held": len(pickle.dumps(history.state_dict())),
    }


def counts_of(observer: Observer) -> Tensor:
    """Return all that an observer keeps between batches, as the vector that processes sum."""
    return pack(observer.counts, layout_of(observer.counts), torch.device("cpu"))


def measure(pairs: int, ranks: list[int]) -> dict[str, dict[int, Any]]:
    """Measure along every axis; the others stay at 4 layers, 256 units and batch 128."""
    return {
        "layers": {n: pass_cost(n, 256, 128, pairs) for n in LAYERS},
        "units": {n: pass_cost(4, n, 128, pairs) for n in UNITS},
        "batch size": {n: pass_cost(4, 256, n, pairs) for n in BATCH},
        "batches": {n: epoch_cost(n, max(5, pairs // n)) for n in BATCHES},
        "every_n_batches": {n: epoch_cost(16, pairs, every=n) for n in EVERY},
        "validations": {n: validation_cost(n) for n in VALIDATIONS},
        "processes": {n: collectives(n, layers=8) for n in ranks},
    }


def draw(results: dict[str, dict[int, Any]], picture: Path) -> None:
    """Draw one panel per axis."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained")
    axes.flat[-1].set_axis_off()
    for axis, (name, points) in zip(axes.flat, results.items(), strict=False):
        axis.set(xscale="log", xlabel=name)
        sizes = list(points)
        if name == "processes":
            values = [sum(calls.values()) for calls in points.values()]
            axis.set(title="collectives a validation", ylim=(0, 4), xscale="linear")
        elif name in ("batches", "every_n_batches"):
            values = [point["added_us_per_batch"] for point in points.values()]
            axis.set(title="µs added per batch", ylim=(0, 1.5 * max(values)))
        elif name == "validations":
            values = [point["ms_per_validation"] for point in points.values()]
            axis.set(title="ms at the end of the last one", ylim=(0, 2 * max(values)))
        else:
            values = [point["ratio"] for point in points.values()]
            axis.set(title="time, observed / plain", ylim=(0.9, max(1.5, *values) + 0.1))
            axis.axhline(1, color="#bdbdbd", linewidth=1)
        axis.plot(sizes, values, marker="o", color="#00457d")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def table(results: dict[str, dict[int, Any]]) -> str:
    """Return every point as a row in markdown."""
    rows = ["| axis | size | measured |", "|---|---|---|"]
    for name, points in results.items():
        for size, point in points.items():
            told = ", ".join(f"{key} {value}" for key, value in point.items())
            rows.append(f"| {name} | {size} | {told} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> dict[str, dict[int, Any]]:
    """Measure, print a table, and draw and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_heap()
    results = measure(options.pairs, options.ranks)
    print(table(results))
    if options.picture:
        draw(results, options.picture)
    write_results(options.json, pairs=options.pairs, scale=results)
    return results


if __name__ == "__main__":
    main()
