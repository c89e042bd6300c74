"""Learn a target that never stops changing, with and without new lives for dead units.

Run it with ``python examples/continual.py``: a shortened version of the slowly-changing regression
of Dohare et al. (2024), "Loss of plasticity in deep continual learning", Nature 632:768. A small
network learns online, one sample at a time, while the inputs keep moving; units die, and without
re-initialisation nothing replaces them. Validation is rare in such work, so units are judged on
training batches, every 100 steps. The full problem is ``python -m tests.benchmarks.continual``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_deadunits import DeadUnitCallback, ReinitConfig

BITS, SLOW, HIDDEN_TARGET = 20, 15, 100


class SlowlyChanging(IterableDataset[tuple[Tensor, Tensor]]):
    """Binary inputs, of which 15 are drawn anew every ``period`` steps and 5 at every step.

    Args:
        steps: Number of samples.
        period: Steps between changes of the slow bits.
        seed: Seed of the target network and of the inputs.
    """

    def __init__(self, steps: int, period: int, seed: int) -> None:
        self.steps, self.period, self.seed = steps, period, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs of shape ``(20,)`` and targets of shape ``(1,)``."""
        random = np.random.default_rng(self.seed)
        weights = random.choice([-1.0, 1.0], (HIDDEN_TARGET, BITS + 1))
        outputs = random.choice([-1.0, 1.0], HIDDEN_TARGET)
        threshold = 0.7 * (BITS + 1) - (weights < 0).sum(1)
        bits = random.integers(0, 2, BITS).astype(np.float64)
        for step in range(self.steps):
            if step % self.period == 0:
                bits[:SLOW] = random.integers(0, 2, SLOW)
            bits[SLOW:] = random.integers(0, 2, BITS - SLOW)
            on = weights @ np.append(bits, 1.0) >= threshold
            target = outputs[on].sum()
            yield torch.tensor(bits).float(), torch.tensor([target]).float()


class Learner(pl.LightningModule):
    """A 20-5-1 ReLU network that learns by SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(BITS, 5), nn.ReLU())
        self.output = nn.Linear(5, 1)
        weight = self.hidden[0].weight
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")  # type: ignore[arg-type]  # a tensor
        self.errors: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the squared error of one sample and remember it."""
        loss = nn.functional.mse_loss(self.output(self.hidden(batch[0])), batch[1])
        self.errors.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.03)


def learn(steps: int, period: int, seed: int, callbacks: list[pl.Callback]) -> list[float]:
    """Train one learner online and return its squared error at every step."""
    pl.seed_everything(seed, verbose=False)
    learner = Learner()
    trainer = pl.Trainer(barebones=True, max_epochs=1, accelerator="cpu", callbacks=callbacks)
    trainer.fit(learner, DataLoader(SlowlyChanging(steps, period, seed), batch_size=1))
    return learner.errors


def draw(curves: dict[str, np.ndarray[Any, Any]], width: int, picture: Path) -> None:
    """Draw the error, averaged over runs and over bins of ``width`` steps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, errors), colour in zip(curves.items(), ("#606060", "#d1335b"), strict=True):
        bins = errors[:, : errors.shape[1] // width * width].reshape(len(errors), -1, width)
        axis.plot(np.arange(bins.shape[1]) * width, bins.mean((0, 2)), label=name, color=colour)
    axis.set(xlabel="training step", ylabel="squared error")
    axis.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Learn with and without, print both errors and draw the curves.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--period", type=int, default=1_000, help="steps between changes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=Path("logs/continual.png"))
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = ReinitConfig(every_n_train_steps=100)
    curves = {}
    for name, reinit in (("SGD", False), ("SGD, dead units re-initialised", config)):
        curves[name] = np.array(
            [
                learn(
                    options.steps,
                    options.period,
                    seed,
                    [DeadUnitCallback(reinit=reinit)] if reinit else [],
                )
                for seed in range(options.runs)
            ]
        )
    half = options.steps // 2
    final = {name: float(errors[:, half:].mean()) for name, errors in curves.items()}
    draw(curves, max(1, options.steps // 20), options.picture)
    for name, error in final.items():
        print(f"{name:32s} squared error over the second half: {error:.3f}")
    print(f"Curves: {options.picture}")
    return final


if __name__ == "__main__":
    main()
