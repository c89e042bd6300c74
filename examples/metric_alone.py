"""Count zeros with the metric alone, as in any TorchMetrics code: no callback and no Trainer.

Run it with ``python examples/metric_alone.py``; it takes seconds, prints a table and draws the
rates of both layers. Sparse is not dead: the second layer is silent nine times in ten, and every
unit of it fires.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from lightning_deadunits import ZeroActivationRate

UNITS = 32
DEAD = 8


class Encoder(nn.Module):
    """Two hidden layers: the first with dead units, the second merely sparse.

    A metric counts what it is given, so the model hands out its activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, UNITS)
        with torch.no_grad():
            self.first.bias[:DEAD] = -100.0  # nothing that comes in outweighs that
            self.second.weight.copy_(torch.eye(UNITS))
            self.second.bias.fill_(-0.7)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return both activations, shape ``(N, 32)`` each, of inputs of shape ``(N, 32)``."""
        return self.first(inputs).relu(), self.second(inputs / 2).relu()


def measure(encoder: Encoder, num_batches: int) -> dict[str, ZeroActivationRate]:
    """Update one metric per layer, batch by batch.

    Args:
        encoder: The model.
        num_batches: How many batches of 64 to look at.

    Returns:
        Layer to its metric.
    """
    metrics = {name: ZeroActivationRate(num_units=UNITS) for name in ("first", "second")}
    for _ in range(num_batches):
        with torch.no_grad():
            activations = encoder(torch.randn(64, UNITS))
        for metric, activation in zip(metrics.values(), activations, strict=True):
            metric.update(activation)
    return metrics


def main(arguments: list[str] | None = None) -> dict[str, Tensor]:
    """Print how many units are dead and draw every unit's rate.

    Args:
        arguments: Command line arguments; those of the process by default.

    Returns:
        Layer to the rates of its units, shape ``(32,)``.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=50, help="how many to look at")
    parser.add_argument("--picture", type=Path, default=Path("logs/metric_alone.png"))
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    metrics = measure(Encoder(), options.batches)
    rates: dict[str, Tensor] = {name: metric.compute() for name, metric in metrics.items()}

    print(f"{'layer':8s} {'dead':>5s} {'mean zero rate':>15s}")
    for name, rate in rates.items():
        print(f"{name:8s} {int((rate == 1).sum()):5d} {float(rate.mean()):15.3f}")

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, (name, metric) in zip(axes, metrics.items(), strict=True):
        metric.plot(ax=axis)
        axis.set(title=name, ylabel="zero-activation rate")
        if axis.get_legend() is not None:
            axis.get_legend().remove()  # TorchMetrics names every unit there
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, dpi=80)
    plt.close(figure)
    print(f"\nEvery unit's rate: {options.picture}")
    return rates


if __name__ == "__main__":
    main()
