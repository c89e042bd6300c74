"""How often processes wait for each other in one validation."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback

COLLECTIVES = ("all_reduce", "all_gather_object")


class Mlp(pl.LightningModule):
    """As many layers as wanted; validates on a few batches, twice in a fit of two epochs."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(layers))
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=4)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch[0]).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])


class Counting(DeadUnitCallback):
    """Counts the collectives of its own hook and leaves the numbers on disk, by validation."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.calls: list[dict[str, int]] = []

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with counted() as calls:
            super().on_validation_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            self.calls.append(calls)
            self.path.write_text(json.dumps(self.calls))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count calls of torch's collectives."""
    originals = {name: getattr(torch.distributed, name) for name in COLLECTIVES}
    calls = dict.fromkeys(COLLECTIVES, 0)

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name, function in originals.items():
        setattr(torch.distributed, name, counting(name, function))
    try:
        yield calls
    finally:
        for name, function in originals.items():
            setattr(torch.distributed, name, function)


def collectives(ranks: int, layers: int) -> dict[str, int]:
    """Return how many collectives of each kind a validation makes, once the first is over."""
    warnings.filterwarnings("ignore", message=".*(many workers|LeafSpec|no `.*logger).*")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.json"
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy="ddp_fork" if ranks > 1 else "auto",
            devices=ranks,
            max_epochs=2,
            num_sanity_val_steps=0,
            limit_train_batches=1,
            callbacks=[Counting(path)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Mlp(layers))
        calls: list[dict[str, int]] = json.loads(path.read_text())
        return calls[1]
