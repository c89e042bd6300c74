"""A network that died learns again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback

TRAINED, HELD_OUT = 1400, 397


class Digits(LightningModule):
    """Two hidden layers of 64 units; all but two of each may be born dead."""

    def __init__(self, stillborn: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
        if stillborn:
            with torch.no_grad():
                self.net[0].bias[2:] = -10.0
                self.net[2].bias[2:] = -10.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def accuracy(tmp_path: Any, stillborn: bool, reinit: bool) -> float:
    digits = load_digits()
    order = torch.randperm(TRAINED + HELD_OUT, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
    y = torch.tensor(digits.target)[order]
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[DeadUnitCallback(reinit=reinit)],
    )
    train = DataLoader(TensorDataset(x[:TRAINED], y[:TRAINED]), batch_size=64, shuffle=True)
    held_out = DataLoader(TensorDataset(x[TRAINED:], y[TRAINED:]), batch_size=HELD_OUT)
    trainer.fit(Digits(stillborn), train, held_out)
    return float(trainer.callback_metrics["accuracy"])


def test_digits_are_learnt_in_spite_of_a_start_that_killed_most_units(tmp_path: Any) -> None:
    healthy = accuracy(tmp_path, stillborn=False, reinit=False)
    died = accuracy(tmp_path, stillborn=True, reinit=False)
    revived = accuracy(tmp_path, stillborn=True, reinit=True)
    print(f"healthy {healthy:.3f}, died {died:.3f}, revived {revived:.3f}")
    assert healthy > 0.9
    assert died < 0.5
    assert revived > healthy - 0.01
