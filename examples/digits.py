"""Train a small CNN on scikit-learn's digits so carelessly that units die, and watch them.

Run it with ``python examples/digits.py``; it takes about a minute on two CPU cores, downloads
nothing, ends in a table and leaves TensorBoard logs. With ``--reinit`` the dead units get a new
life. ``--help`` tells of the learning rate and the bias that kill them.
"""

from __future__ import annotations

import argparse
import warnings

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback


class Block(nn.Module):
    """A convolution and a ReLU, as a function: no module there to hook.

    Args:
        inputs: Number of channels coming in.
        outputs: Number of filters.
        bias: Initial bias of the filters.
    """

    def __init__(self, inputs: int, outputs: int, bias: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]  # it has a bias

    def forward(self, images: Tensor) -> Tensor:
        """Return the activation, shape ``(N, outputs, H, W)``."""
        return F.relu(self.conv(images))


class Digits(pl.LightningModule):
    """A CNN for 8 x 8 images, with two ways to kill its units.

    Args:
        learning_rate: Step size of SGD with momentum; above 0.05 units die in training.
        bias: Initial bias of the convolutions; well below zero filters are born dead.
    """

    def __init__(self, learning_rate: float = 0.08, bias: float = -0.2) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.conv1 = Block(1, 32, bias)
        self.conv2 = Block(32, 64, bias)
        self.hidden = nn.Sequential(nn.Linear(64 * 4 * 4, 128), nn.ReLU())
        self.logits = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape ``(N, 10)``, of images of shape ``(N, 1, 8, 8)``."""
        features = F.max_pool2d(self.conv2(self.conv1(images)), 2)
        logits: Tensor = self.logits(self.hidden(features.flatten(1)))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy of one batch, and log it."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss and the accuracy."""
        logits = self(batch[0])
        hits = (logits.argmax(1) == batch[1]).float().mean()
        self.log("accuracy", hits, sync_dist=True)
        self.log("val_loss", F.cross_entropy(logits, batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


def loaders() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Return batches of 1347 training and 450 validation images."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    split = train_test_split(images, torch.tensor(labels), test_size=450, random_state=0)
    train = TensorDataset(split[0], split[2])
    held_out = TensorDataset(split[1], split[3])
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(held_out, batch_size=150)


def main(arguments: list[str] | None = None) -> DeadUnitCallback:
    """Train and say where to look; the callback says what it found.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.08, help="above 0.05 units die")
    parser.add_argument("--bias", type=float, default=-0.2, help="initial bias of convolutions")
    parser.add_argument("--reinit", action="store_true", help="give dead units a new life")
    parser.add_argument("--logs", default="logs", help="where TensorBoard logs go")
    options = parser.parse_args(arguments)

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    pl.seed_everything(0)
    callback = DeadUnitCallback(reinit=options.reinit)
    logger = TensorBoardLogger(options.logs, name="digits")
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        callbacks=[callback, LearningRateMonitor()],
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(Digits(options.learning_rate, options.bias), *loaders())

    print(f"accuracy on held-out digits: {trainer.callback_metrics['accuracy']:.1%}")
    print(f"\nSee every unit's life: tensorboard --logdir {options.logs}")
    return callback


if __name__ == "__main__":
    main()
