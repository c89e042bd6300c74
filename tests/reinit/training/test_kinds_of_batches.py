"""Any batch that a step can take, re-initialisation can: nothing of a batch is cut or rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import trained

Features = Callable[[Any], Tensor]


class Graph:
    """As torch_geometric's Data: an object that can be moved."""

    def __init__(self, x: Tensor, edge: Tensor) -> None:
        self.x, self.edge = x, edge

    def to(self, device: Any, **kwargs: Any) -> Graph:
        return Graph(self.x.to(device), self.edge.to(device))


@dataclass
class Record:
    x: Tensor
    name: str


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def aggregated(x: Tensor, edge: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, edge[1], x[edge[0]])


def edges() -> Tensor:
    return torch.randint(0, 30, (2, 90))


def letters(batch: dict[str, Any]) -> Tensor:
    codes = [[float(ord(c)) / 100 for c in text[:4]] + [1.0] for text in batch["text"]]
    return torch.tensor(codes) * batch["y"][:, None].sign()


def unpacked(batch: PackedSequence) -> Tensor:
    return pad_packed_sequence(batch, batch_first=True)[0].flatten(0, 1)


PROJECTION = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))

BATCHES: dict[str, tuple[Callable[[], Any], Features]] = {
    "a tensor": (lambda: torch.randn(16, 5), lambda b: b),
    "an object": (lambda: Graph(torch.randn(30, 5), edges()), lambda b: aggregated(b.x, b.edge)),
    "x and edges": (lambda: (torch.randn(30, 5), edges()), lambda b: aggregated(*b)),
    "a dataclass": (lambda: Record(torch.randn(16, 5), "a"), lambda b: b.x),
    "a named tuple": (lambda: Pair(torch.randn(16, 5), torch.randn(3)), lambda b: b.x),
    "lists of images and of targets": (
        lambda: ([torch.randn(3, 4, 4) for _ in range(4)], [{"boxes": torch.rand(2, 4)}] * 4),
        lambda b: torch.stack(b[0]).flatten(1) @ PROJECTION,
    ),
    "texts beside tensors": (
        lambda: {"text": ["abcdefg"[i % 3 :] for i in range(16)], "y": torch.randn(16)},
        letters,
    ),
    "a packed sequence": (
        lambda: pack_sequence([torch.randn(n, 5) for n in (7, 5, 3, 2)]),
        unpacked,
    ),
    "a sparse tensor": (lambda: torch.randn(16, 5).relu().to_sparse(), lambda b: b.to_dense()),
    "one sample": (lambda: torch.randn(1, 5), lambda b: b),
    "a size that the step knows": (lambda: torch.randn(16, 5), lambda b: b + torch.zeros(16, 1)),
}


class Net(LightningModule):
    """One hidden layer with four dead units, after features of whatever a batch is."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.features, self.body, self.head = features, nn.Linear(5, 16), nn.Linear(16, 1)
        with torch.no_grad():
            self.body.bias[:4] = -100.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(F.relu(self.body(self.features(batch)))).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def loader(make: Callable[[], Any]) -> DataLoader[Any]:
    seed_everything(1, verbose=False)
    items: Any = [make() for _ in range(6)]
    return DataLoader(items, batch_size=None, collate_fn=lambda item: item)


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("name", BATCHES)
def test_units_are_revived_whatever_a_batch_is(name: str, every: int | None) -> None:
    make, features = BATCHES[name]
    callback = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=every))
    loaders = (loader(make), loader(make))
    trained(Net(features), callback, loaders=loaders, max_epochs=4)
    assert callback.reviver is not None
    first = callback.reviver.events[0]
    assert {0, 1, 2, 3} <= set(first.reinitialised["relu"]), str(first)
    assert not first.refused


STEPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "the logger's folder": lambda module, loss: Path(module.logger.log_dir).mkdir(
        parents=True, exist_ok=True
    ),
    "a check for NaN": lambda module, loss: _check(loss),
    "a file": lambda module, loss: torch.save(loss, Path(module.logger.save_dir) / "loss.pt"),
    "a size": lambda module, loss: module.log("n", float(module.trainer.num_val_batches[0])),
    "the trainer's state": lambda module, loss: setattr(module.trainer, "last_loss", loss),
    "an optimizer": lambda module, loss: module.log(
        "lr", module.optimizers().param_groups[0]["lr"]
    ),
}


def _check(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError("a loss that is not finite")


@pytest.mark.parametrize("name", STEPS)
def test_units_are_revived_whatever_a_step_uses(tmp_path: Path, name: str) -> None:
    class Uses(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            STEPS[name](self, self.training_step(batch, batch_idx).detach())

    make, features = BATCHES["a tensor"]
    callback = DeadUnitCallback(reinit=True)
    loaders = (loader(make), loader(make))
    trained(Uses(features), callback, loaders=loaders, max_epochs=4, logger=CSVLogger(tmp_path))
    assert callback.reviver is not None
    first = callback.reviver.events[0]
    assert {0, 1, 2, 3} <= set(first.reinitialised["relu"]), str(first)
    assert not first.refused
