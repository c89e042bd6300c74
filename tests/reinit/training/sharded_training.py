"""Run by two processes: trains with sharded weights, and leaves on disk what came of it."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import optim
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_deadunits import DeadUnitCallback
from tests.mortal import SCHEDULES, Mortal, data, events, trained


class FullyShards(Mortal):
    """Shards every layer by FSDP2."""

    def configure_model(self) -> None:
        for layer in (self.a, self.bn, self.b, self.c):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class SplitsLayers(Mortal):
    """Splits the last two layers between the processes; the unit's reader and maker are halves."""

    def configure_model(self) -> None:
        plan = {"b": ColwiseParallel(), "c": RowwiseParallel()}
        parallelize_module(self, self.device_mesh["tensor_parallel"], plan)

    def configure_optimizers(self) -> Any:
        return optim.Adam(self.parameters(), lr=1e-2, foreach=False)


class ShardsState(Mortal):
    """Has each process keep the optimizer state of some parameters only."""

    def configure_optimizers(self) -> Any:
        return ZeroRedundancyOptimizer(self.parameters(), optim.Adam, lr=1e-2)


def model_parallel(data_size: int, tensor_size: int) -> Strategy:
    return ModelParallelStrategy(
        data_parallel_size=data_size, tensor_parallel_size=tensor_size, **WAIT
    )


WAIT: dict[str, Any] = {"process_group_backend": "gloo", "timeout": timedelta(seconds=30)}
CASES = {
    "FSDP2": (FullyShards, lambda: model_parallel(2, 1)),
    "tensor parallel": (SplitsLayers, lambda: model_parallel(1, 2)),
    "ZeRO": (ShardsState, lambda: DDPStrategy(**WAIT)),
}


def main(folder: Path) -> None:
    for name, (module, strategy) in CASES.items():
        for schedule, config in SCHEDULES.items():
            callback = DeadUnitCallback(reinit=config)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                trainer = trained(
                    module(mortal=False), callback, strategy=strategy(), devices=2, max_epochs=2,
                    loaders=(data(), data()),
                )  # fmt: skip
            result = {
                "warnings": [str(w.message) for w in told if "not be re-init" in str(w.message)],
                "events": events(callback),
                "refused": [e.refused for e in callback.reviver.events],
                "dead": {n: r.dead.tolist() for n, r in callback.report.layers.items()},
                "observations": [r.observations for r in callback.report.layers.values()],
                "unjudged": dict(callback.report.unjudged),
                "steps": trainer.global_step,
            }
            torch.save(result, folder / f"{name}, {schedule}, {trainer.global_rank}.pt")
