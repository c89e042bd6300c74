"""A real training whose logs the tab shows: a small CNN on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates

EPOCHS = 12


class DigitsNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        first = F.relu(self.conv1(x))
        second = F.relu(self.conv2(first))
        third = F.relu(self.hidden(second.flatten(1)))
        return self.head(third), {"conv1.relu": first, "conv2.relu": second, "hidden.relu": third}


def train(folder: Path, *, reinit: bool, epochs: int = EPOCHS) -> None:
    """Train with a learning rate that kills units; log every epoch's rates."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    net = DigitsNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    writer = SummaryWriter(str(folder))
    step = 0
    for _ in range(epochs):
        for batch in torch.randperm(1440).split(96):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch])[0], y[batch]).backward()
            optimizer.step()
            step += 1
        rates = zero_rates(net, x[1440:])
        for layer, rate in rates.items():
            write_zero_rates(writer, layer, rate, step, dead_threshold=1.0)
        writer.add_scalar(
            "dead_fraction/total", np.mean(np.concatenate(list(rates.values())) >= 1), step
        )
        if reinit:
            revive(net, rates, writer, step)
    writer.close()


def zero_rates(net: DigitsNet, x: Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        activations = net(x)[1]
    return {
        layer: (value == 0).double().transpose(0, 1).flatten(1).mean(1).numpy()
        for layer, value in activations.items()
    }


def revive(net: DigitsNet, rates: dict[str, np.ndarray], writer: SummaryWriter, step: int) -> None:
    for layer, rate in rates.items():
        module = net.get_submodule(layer.removesuffix(".relu"))
        units = np.flatnonzero(rate >= 1.0)[:4].tolist()
        if not units:
            continue
        fresh = type(module)(*_shape(module))
        with torch.no_grad():
            module.weight[units] = fresh.weight[units]
            module.bias[units] = fresh.bias[units]
        write_reinit(writer, layer, units, len(rate), step)


def _shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels, 3
    return module.in_features, module.out_features


def train_runs(folder: Path) -> None:
    """Train without and with re-initialisation, beside a run that never heard of dead units."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model spends its time waiting for its threads
    try:
        train(folder / "plain", reinit=False)
        train(folder / "reinit", reinit=True)
    finally:
        torch.set_num_threads(threads)
    other = SummaryWriter(str(folder / "other"))
    other.add_scalar("loss", 1.0, 0)
    other.close()
