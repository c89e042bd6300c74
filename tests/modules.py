"""Lightning modules for the tests, with units that are alive, dead or die on command."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

DEAD = [0, 3, 5]


class Net(nn.Module):
    """Two hidden layers, one ReLU a module and one a function; units ``DEAD`` are born dead."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(8, 16), nn.ReLU()
        self.fc2, self.fc3 = nn.Linear(16, 12), nn.Linear(12, 2)
        with torch.no_grad():
            self.fc1.bias[DEAD] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(self.act(self.fc1(x)))))


class Lit(pl.LightningModule):
    """Trains :class:`Net`; kills unit ``kill[step]`` of the first layer at a training step."""

    def __init__(self, kill: dict[int, list[int]] | None = None, lr: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.kill = kill or {}
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for unit in self.kill.get(self.trainer.global_step, []):
            with torch.no_grad():
                self.net.fc1.bias[unit] = -100.0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def data(samples: int = 64, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 8, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def loader(samples: int = 64, batch_size: int = 16, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(data(samples, seed), batch_size=batch_size)
