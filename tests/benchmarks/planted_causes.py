"""Trainings in which units die from a cause that is known, and healthy ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback, DeadUnitsReport

Net = Literal["MLP", "CNN"]
NETS: tuple[Net, ...] = ("MLP", "CNN")
EPOCHS = 8
STEPS_PER_EPOCH = 21
_SPIKE = range(4 * STEPS_PER_EPOCH + 5, 4 * STEPS_PER_EPOCH + 11)


@dataclass(frozen=True)
class Cause:
    """How a training is spoilt.

    Attributes:
        learning_rate: Of SGD with momentum 0.9, or of Adam.
        adam: Whether Adam trains.
        spike: Factor of the learning rate for six steps in the middle of the fifth epoch.
        bias_rate: Factor of the biases' learning rate.
        bias: Initial bias of the hidden layers, None for torch's own.
        weight_mean: What is added to the initial weights of the hidden layers.
        shift: What is added to the standardised inputs.
        expected: What a diagnosis should say, None for nothing.
    """

    learning_rate: float
    adam: bool = False
    spike: float = 1.0
    bias_rate: float = 1.0
    bias: float | None = None
    weight_mean: float = 0.0
    shift: float = 0.0
    expected: str | None = None


CAUSES: dict[str, Cause] = {
    "healthy, SGD": Cause(0.02),
    "healthy, Adam": Cause(1e-3, adam=True),
    "learning-rate spike, SGD": Cause(0.02, spike=50.0, expected="learning_rate"),
    "learning-rate spike, Adam": Cause(1e-3, adam=True, spike=300.0, expected="learning_rate"),
    "initial biases far below zero": Cause(0.02, bias=-4.0, expected="initialisation"),
    "initial weights below zero": Cause(
        1e-3, adam=True, weight_mean=-0.3, expected="initialisation"
    ),
    "biases drift, rate too large": Cause(0.03, adam=True, expected="falling_biases"),
    "biases drift, their rate alone": Cause(
        1e-3, adam=True, bias_rate=200.0, expected="falling_biases"
    ),
    "inputs with a large mean, SGD": Cause(0.005, shift=10.0, expected="shifted_inputs"),
    "inputs with a large mean, Adam": Cause(1e-3, adam=True, shift=10.0, expected="shifted_inputs"),
}  # fmt: skip


class Learner(pl.LightningModule):
    """Classifies digits, spoilt by a cause."""

    def __init__(self, net: Net, cause: Cause) -> None:
        super().__init__()
        self.cause = cause
        self.net = _mlp() if net == "MLP" else _cnn()
        hidden = [it for it in self.net if isinstance(it, (nn.Linear, nn.Conv2d))][:-1]
        with torch.no_grad():
            for module in hidden:
                fan_in = module.weight[0].numel()
                module.weight += cause.weight_mean * (64 / fan_in) ** 0.5
                if cause.bias is not None and module.bias is not None:
                    module.bias.fill_(cause.bias)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        rate = self.cause.learning_rate
        biases = [it for name, it in self.net.named_parameters() if name.endswith("bias")]
        weights = [it for name, it in self.net.named_parameters() if not name.endswith("bias")]
        groups = [{"params": weights}, {"params": biases, "lr": rate * self.cause.bias_rate}]
        kind: Callable[..., torch.optim.Optimizer] = (
            torch.optim.Adam
            if self.cause.adam
            else lambda *args, **kwargs: torch.optim.SGD(*args, momentum=0.9, **kwargs)
        )
        optimizer = kind(groups, lr=rate)
        spiking = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.cause.spike if step in _SPIKE else 1.0
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": spiking, "interval": "step"},
        }


def _mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(net: Net, cause: Cause, seed: int, folder: str) -> DeadUnitsReport:
    """Train once and return the last report."""
    pl.seed_everything(seed, verbose=False)
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32)
    inputs = (inputs - inputs.mean()) / inputs.std() + cause.shift
    data = TensorDataset(inputs.view(-1, 1, 8, 8), torch.tensor(labels))
    parts = torch.utils.data.random_split(data, [1344, 453])
    callback = DeadUnitCallback(verbose=False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(
        Learner(net, cause),
        DataLoader(parts[0], batch_size=64, shuffle=True),
        DataLoader(parts[1], batch_size=453),
    )
    assert callback.report is not None
    return callback.report
