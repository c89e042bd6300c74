"""A small network whose units die again and again, and what a Trainer needs to train it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.reinit.optimizers.adam_steps import StepCorrection
from tests.zoo import kill

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

AT_VALIDATION = ReinitConfig(patience=1, grace_period=0)
EVERY_TWO_STEPS = ReinitConfig(patience=1, grace_period=0, every_n_train_steps=2)
SCHEDULES = {"at validation": AT_VALIDATION, "every two steps": EVERY_TWO_STEPS}


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


class Mortal(LightningModule):
    """A network that only its steps run; in every epoch a unit of each hidden layer dies.

    Args:
        optimizer: Makes the optimizer.
        mortal: Whether units die in the course of training; two are born dead in any case.
    """

    def __init__(self, optimizer: MakeOptimizer = adam, mortal: bool = True) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.a, self.bn = nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16)
        self.b, self.c = nn.Linear(16, 8), nn.Linear(8, 1)
        self.make_optimizer, self.mortal = optimizer, mortal
        kill(self.bn, 1)
        kill(self.b, 0)

    def loss(self, batch: list[Tensor]) -> Tensor:
        hidden = F.relu(self.b(F.relu(self.bn(self.a(batch[0])))))
        return F.mse_loss(self.c(hidden), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.mortal and batch_idx == 1:
            kill(self.bn, 2 + self.current_epoch % 14)
            kill(self.b, 1 + self.current_epoch % 7)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def data(samples: int = 64, batch_size: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 12, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :1].abs()), batch_size=batch_size)


def trained(
    model: LightningModule, *callbacks: Callback, resume: Any = None, **options: Any
) -> Trainer:
    """Train on four batches an epoch."""
    loaders = options.pop("loaders", (data(), data()))
    trainer = Trainer(
        **{
            "max_epochs": 4,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "num_sanity_val_steps": 0,
            "callbacks": list(callbacks),
            **options,
        }
    )
    with warnings.catch_warnings():
        for noise in ("num_workers", "logging interval", "LeafSpec", "using `ckpt_path`"):
            warnings.filterwarnings("ignore", f".*{noise}.*")
        trainer.fit(model, *loaders, ckpt_path=resume)
    return trainer


def events(callback: DeadUnitCallback) -> list[dict[str, list[int]]]:
    """Return what was re-initialised, event by event."""
    assert callback.reviver is not None
    return [event.reinitialised for event in callback.reviver.events if event.reinitialised]


def state_of(trainer: Trainer, model: LightningModule) -> dict[str, Tensor]:
    """Return copies of all weights, buffers and optimizer state, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for parameter, state in optimizer.state.items():
            found |= {
                f"{number}/{names[parameter]}/{key}": value.clone()
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
    return found


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that differ in a bit, or are in one only."""
    both = one.keys() & other.keys()
    return sorted(
        (one.keys() ^ other.keys())
        | {name for name in both if not torch.equal(one[name], other[name])}
    )


def corrected(trainer: Trainer) -> Iterator[StepCorrection]:
    """Yield the step corrections of a Trainer's optimizers that are under way."""
    for optimizer in trainer.optimizers:
        if (correction := StepCorrection.of(optimizer)).fresh:
            yield correction
