"""A module that notes every call of its steps, and leaves traces of every kind in them."""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from tests.zoo import kill

OURS = ("dead_fraction/", "dead_layers", "zero_rate/", "reinit/")
"""How the names begin that the callback logs itself, those of windows behind ``train/``."""


def digest(*values: Any) -> str:
    """Return a digest of tensors, arrays and primitives in nested containers."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            sha.update(str((value.dtype, value.shape)).encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, np.ndarray):
            sha.update(value.tobytes())
        elif isinstance(value, dict):
            sha.update(digest(*(item for pair in value.items() for item in pair)).encode())
        elif isinstance(value, (list, tuple)):
            sha.update(digest(*value).encode())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()


def random_state() -> str:
    """Return a digest of the state of every global random generator."""
    return digest(torch.get_rng_state(), np.random.get_state(), repr(random.getstate()))


def counter() -> Callable[[], int]:
    """Return a function that counts its calls in a closure."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count


class Witness(LightningModule):
    """Two hidden layers with dead units, a head per validation loader, traces of every kind.

    Args:
        folder: Where the steps write files.
        manual: Whether it steps its two optimizers itself.
    """

    calls_of_class: list[str] = []

    def __init__(self, folder: Path, manual: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="folder")
        self.hparams["seen"] = []
        seed_everything(0, verbose=False)
        self.a, self.bn, self.drop = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.2)
        self.b, self.c = nn.Linear(16, 8), nn.Linear(8, 1)
        self.other = nn.Linear(8, 1)
        self.register_buffer("total", torch.zeros(3))
        self.mean = MeanMetric()
        self.automatic_optimization = not manual
        self.folder, self.count = folder, counter()
        self.nested: dict[str, Any] = {"losses": [{"all": []}], "last": ()}
        self.stream: Iterator[int] = iter(range(10**6))
        self.own = torch.Generator().manual_seed(5)
        self.journal: list[tuple[Any, ...]] = []
        type(self).calls_of_class = []
        kill(self.bn, 1, 5)
        kill(self.b, 0)

    def loss(self, batch: Any, head: nn.Module) -> Tensor:
        noise = torch.rand(len(batch[0]), 1, generator=self.own) * random.random()
        hidden = self.drop(F.relu(self.bn(self.a(batch[0] + 1e-3 * noise))))
        return F.mse_loss(head(F.relu(self.b(hidden))), batch[1])

    def note(self, stage: str, batch: Any, batch_idx: int, loader: int, loss: Tensor) -> None:
        """Take the call down, and leave something of it wherever a module can."""
        number = (self.count(), next(self.stream), stage, batch_idx, loader)
        self.journal.append((*number, digest(batch)))
        type(self).calls_of_class.append(stage)
        self.nested["losses"][0]["all"].append(loss.detach())
        self.nested["last"] = (self.nested["last"][-2:], loss.detach().clone())
        self.total[loader] += loss.detach()
        self.mean.update(loss.detach())
        self.hparams["seen"].append(batch_idx)
        self.trainer.seen_by_the_user = number
        with (self.folder / f"log-{self.global_rank}.txt").open("a") as file:
            file.write(f"{number} {float(loss):.9g}\n")
        if batch_idx == 0:
            torch.save(batch, self.folder / f"{stage}-{self.global_rank}-{number[0]}.pt")
        assert not torch.isnan(loss)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.automatic_optimization:
            return self.step_by_hand(batch, batch_idx)
        loss = self.loss(batch, self.c) + self.loss(batch, self.other)
        self.note("train", batch, batch_idx, 0, loss)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def step_by_hand(self, batch: Any, batch_idx: int) -> None:
        for optimizer, head in zip(self.optimizers(), (self.c, self.other), strict=True):
            loss = self.loss(batch, head)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.note("train", batch, batch_idx, 0, loss)
        self.log("train_loss", loss)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        loss = self.loss(batch, (self.c, self.other)[dataloader_idx])
        self.note("val", batch, batch_idx, dataloader_idx, loss)
        self.log("val_loss", loss)
        self.log("mean", self.mean)
        if self.logger is not None:
            Path(self.logger.log_dir).mkdir(parents=True, exist_ok=True)
            self.logger.experiment.add_scalar("own", loss, self.count())
        return loss

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.Adam(self.parameters(), lr=1e-3)
        below = [*self.a.parameters(), *self.bn.parameters(), *self.b.parameters()]
        first = torch.optim.Adam([*below, *self.c.parameters()], lr=1e-3)
        return first, torch.optim.SGD(self.other.parameters(), lr=1e-3)

    def traces(self) -> dict[str, str]:
        """Return a digest of everything that the steps have changed, by kind."""
        vars_of_trainer = {
            key: value
            for key, value in vars(self.trainer).items()
            if isinstance(value, (int, float, str, bool, tuple, type(None)))
            and key != "_last_val_time"
        }
        metrics = {
            key: float(value)
            for key, value in self.trainer.callback_metrics.items()
            if not key.removeprefix("train/").startswith(OURS)
        }
        files = {path.name: path.read_bytes() for path in sorted(self.folder.glob("*-*"))}
        optimizers = [list(each.state.values()) for each in self.trainer.optimizers]
        return {
            "attributes": digest(sorted(vars(self))),
            "buffers": digest(dict(self.named_buffers())),
            "class attributes": digest(self.calls_of_class),
            "closures": digest(self.count.__closure__[0].cell_contents),  # type: ignore[attr-defined]
            "files": digest(files),
            "generators": digest(self.own.get_state(), operator.length_hint(self.stream)),
            "hyperparameters": digest(dict(self.hparams)),
            "journal": digest(self.journal),
            "metrics": digest(metrics),
            "nested containers": digest(self.nested),
            "optimizers": digest(optimizers),
            "random state": random_state(),
            "trainer": digest(vars_of_trainer),
            "weights": digest(dict(self.named_parameters())),
        }


class Traces(Callback):
    """Keeps all traces at the start of every training batch; to stand before the callback."""

    def __init__(self) -> None:
        self.at: list[dict[str, str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.at.append(pl_module.traces())
