"""Made-up logs, for sizes that no quick training has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates


def rates(num_steps: int, num_units: int, seed: int = 0) -> np.ndarray:
    """Slowly rising rates; one unit in ten dies at some step, some of those come back."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.2, 0.9, num_units)
    drift = np.linspace(0, 0.09, num_steps)[:, None]
    values = level + drift + rng.normal(0, 0.004, (num_steps, num_units))
    values = values.clip(0, 0.999)
    dies = rng.integers(0, num_steps * 10, num_units)
    back = dies + rng.integers(num_steps // 4 + 1, num_steps * 4, num_units)
    step = np.arange(num_steps)[:, None]
    values[(step >= dies) & (step < back)] = 1.0
    return values.astype(np.float32)


def write_run(
    folder: Path, layers: dict[str, np.ndarray], threshold: float = 1.0, every: int = 10
) -> None:
    writer = SummaryWriter(str(folder), max_queue=10_000)
    for layer, values in layers.items():
        for index, row in enumerate(values):
            write_zero_rates(writer, layer, row, index * every, dead_threshold=threshold)
    writer.close()


def write_marks(folder: Path, layer: str, marks: dict[int, list[int]], num_units: int) -> None:
    writer = SummaryWriter(str(folder))
    for step, units in marks.items():
        write_reinit(writer, layer, units, num_units, step)
    writer.close()
