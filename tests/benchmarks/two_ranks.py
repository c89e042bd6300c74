"""What a tool says on two processes that see different data."""

from __future__ import annotations

import socket
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback
from tests.benchmarks.known_cases import made, rank_of_two
from tests.benchmarks.peers import Ours, Tool


class Gate(pl.LightningModule):
    """Validates on what its own rank has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = made(rank_of_two, 0).model

    def val_dataloader(self) -> DataLoader[Any]:
        batches = made(rank_of_two, self.global_rank).batches
        return DataLoader(TensorDataset(torch.cat(batches)), batch_size=32)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])


class Saving(DeadUnitCallback):
    """Leaves the verdict on disk: a process of its own returns nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.is_global_zero and self.report is not None:
            torch.save([v.dead_fraction for v in self.report.layers.values()], self.path)


def verdict_of_rank_0(tool: type[Tool]) -> list[float]:
    """Return what a tool says on rank 0, with whatever it does to sum over ranks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdict.pt"
        if tool is Ours:
            _validate(path)
        else:
            mp.spawn(_judge, (tool, _free_port(), path), nprocs=2)  # type: ignore[no-untyped-call]
        found: list[float] = torch.load(path)
        return found


def _validate(path: Path) -> None:
    warnings.filterwarnings("ignore", message=".*(many workers|LeafSpec|no `.*logger).*")
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp_fork",
        devices=2,
        callbacks=[Saving(path)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.validate(Gate(), verbose=False)


def _judge(rank: int, tool: type[Tool], port: int, path: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    case = made(rank_of_two, rank)
    verdict = tool.judge(case.model, case.batches, case.channels_last)
    if rank == 0:
        torch.save(verdict, path)
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
