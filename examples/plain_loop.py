"""Find and revive dead units in a plain PyTorch loop, without Lightning.

Run it with ``python examples/plain_loop.py``; it takes seconds. An MLP learns scikit-learn's
digits at a learning rate that kills its units, once left alone and once with what died revived
after every epoch. It prints how many are dead in either case and draws it. Fresh units are no cure
for a learning rate at which training diverges: with ``--learning-rate 0.3`` both runs collapse.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_deadunits import find_dead_units, reinit_dead_units


class Epoch(NamedTuple):
    """What one epoch ended with.

    Attributes:
        dead: Dead units of both hidden layers together.
        revived: How many of them were re-initialised.
        accuracy: Share of the held-out digits that were told right.
    """

    dead: int
    revived: int
    accuracy: float


def digits() -> tuple[Tensor, Tensor]:
    """Return 1797 images, shape ``(1797, 64)``, and their labels, in random order."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def train(epochs: int, learning_rate: float, *, revive: bool) -> list[Epoch]:
    """Train an MLP and look for dead units after every epoch.

    Args:
        epochs: How often to go through the images.
        learning_rate: Step size of SGD with momentum; above 0.2 units die.
        revive: Whether to re-initialise what died.

    Returns:
        What every epoch ended with.
    """
    torch.manual_seed(0)
    images, labels = digits()
    held_out = images[1347:]
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    history = []
    for epoch in range(epochs):
        for chosen in torch.split(torch.randperm(1347), 32):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
        report = find_dead_units(model, torch.split(held_out, 150))
        revived = 0
        if revive:
            done = reinit_dead_units(model, report, images[:32], optimizers=[optimizer], seed=epoch)
            revived = done.num_reinitialised
        with torch.no_grad():
            hits = (model(held_out).argmax(1) == labels[1347:]).float().mean()
        history.append(Epoch(report.num_dead, revived, float(hits)))
    return history


def draw(alone: list[Epoch], revived: list[Epoch], picture: Path) -> None:
    """Draw how many units are dead after every epoch.

    Args:
        alone: The run that was left alone.
        revived: The run in which the dead were revived.
        picture: Where to write the picture.
    """
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.plot([epoch.dead for epoch in alone], color="#d1335b", label="left alone")
    axis.plot([epoch.dead for epoch in revived], color="#00457d", label="revived every epoch")
    axis.set(xlabel="epoch", ylabel="dead units of 256", ylim=(0, None))
    axis.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> tuple[list[Epoch], list[Epoch]]:
    """Train twice, print a line per epoch and draw both.

    Args:
        arguments: Command line arguments; those of the process by default.

    Returns:
        The run that was left alone, and the one in which the dead were revived.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=0.25, help="above 0.2 units die")
    parser.add_argument("--picture", type=Path, default=Path("logs/plain_loop.png"))
    options = parser.parse_args(arguments)

    alone = train(options.epochs, options.learning_rate, revive=False)
    revived = train(options.epochs, options.learning_rate, revive=True)
    print("        left alone         revived every epoch")
    print("epoch   dead  accuracy     dead  revived  accuracy")
    for number, (left, right) in enumerate(zip(alone, revived, strict=True)):
        print(
            f"{number:5d} {left.dead:6d} {left.accuracy:9.1%} "
            f"{right.dead:8d} {right.revived:8d} {right.accuracy:9.1%}"
        )
    draw(alone, revived, options.picture)
    print(f"\nThe same as a picture: {options.picture}")
    return alone, revived


if __name__ == "__main__":
    main()
