"""The same digits by LightningCLI: ``python examples/cli.py fit --config examples/cli.yaml``.

Every option of the callback comes from YAML or the command line, as in
``--trainer.callbacks.dead_threshold=0.99``; ``fit --help`` and ``fit --print_config`` show all.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from digits import Digits, loaders
from lightning.pytorch.cli import ArgsType, LightningCLI
from torch.utils.data import DataLoader


class DigitsData(pl.LightningDataModule):
    """Scikit-learn's digits, 8 x 8 images of ten classes."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return 1347 images in batches of 32."""
        return loaders()[0]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return 450 images in batches of 150."""
        return loaders()[1]


def main(arguments: ArgsType = None) -> LightningCLI:
    """Run the command line; the callback says what it found.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    return LightningCLI(Digits, DigitsData, args=arguments, seed_everything_default=0)


if __name__ == "__main__":
    main()
