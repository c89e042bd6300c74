"""Loops that are not Lightning's Trainer, each over the same model and data.

    python -m tests.loops NAME FOLDER
    python -m torch.distributed.run --nproc-per-node 2 -m tests.loops NAME FOLDER

Trains a little, then evaluates inside of a watch, and leaves in the folder what every process
reported, and what the activations of its own share of the data were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitsReport, watch_dead_units

SAMPLES, BATCH = 48, 4


class Net(nn.Module):
    """One ReLU a module, one a function; notes what they put out. Unit 2 can never fire."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.act, self.fc2 = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)
        with torch.no_grad():
            self.fc1.bias[2] = -100.0
        self.noted: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return outputs and loss, as transformers' Trainer wants them."""
        first = self.act(self.fc1(x))
        second = F.relu(self.fc2(first))
        if not self.training:
            self.noted.append((first.detach().clone(), second.detach().clone()))
        target = torch.zeros(len(x), dtype=torch.long) if labels is None else labels
        return {"loss": F.cross_entropy(second, target), "logits": second}


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def batches() -> DataLoader[Any]:
    return DataLoader(dataset(), batch_size=BATCH)


def train(model: Any, optimizer: Any, loader: Iterable[Any], backward: Any, count: int = 2) -> None:
    model.train()
    for _, (x, y) in zip(range(count), loader, strict=False):
        optimizer.zero_grad()
        backward(model(x, y)["loss"])
        optimizer.step()


def evaluate(model: Any, loader: Iterable[Any]) -> None:
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            model(x, y)


def plain() -> tuple[Net, DeadUnitsReport]:
    model, share = Net(), list(batches())
    if "RANK" in __import__("os").environ:
        torch.distributed.init_process_group("gloo")
        share = share[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    train(model, torch.optim.SGD(model.parameters(), 0.1), batches(), lambda loss: loss.backward())
    with watch_dead_units(model) as watch:
        evaluate(model, share)
    return model, watch.report()


def fabric() -> tuple[Net, DeadUnitsReport]:
    from lightning.fabric import Fabric

    two = "RANK" in __import__("os").environ
    runner = Fabric(accelerator="cpu", devices=2 if two else 1, strategy="ddp" if two else "auto")
    runner.launch()
    net = Net()
    model, optimizer = runner.setup(net, torch.optim.SGD(net.parameters(), 0.1))
    loader = runner.setup_dataloaders(batches())
    train(model, optimizer, loader, runner.backward)
    with watch_dead_units(model) as watch:
        evaluate(model, loader)
    return net, watch.report()


def accelerate() -> tuple[Net, DeadUnitsReport]:
    from accelerate import Accelerator

    accelerator, net = Accelerator(cpu=True), Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    model, optimizer, loader = accelerator.prepare(net, optimizer, batches())
    train(model, optimizer, loader, accelerator.backward)
    with watch_dead_units(model) as watch:
        evaluate(model, loader)
    return net, watch.report()


class Samples(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = dataset()[index]
        return {"x": x, "labels": y}


def transformers() -> tuple[Net, DeadUnitsReport]:
    from transformers import Trainer, TrainingArguments

    from examples.transformers_trainer import DeadUnits

    net, callback = Net(), DeadUnits()
    arguments = TrainingArguments(
        sys.argv[2], use_cpu=True, max_steps=3, per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH, eval_strategy="steps", eval_steps=3, save_strategy="no",
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    data = Samples()
    Trainer(net, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]).train()
    (report,) = callback.reports
    return net, report


LOOPS: dict[str, Callable[[], tuple[Net, DeadUnitsReport]]] = {
    "plain": plain,
    "fabric": fabric,
    "accelerate": accelerate,
    "transformers": transformers,
}


def main(name: str, folder: Path) -> None:
    with nullcontext():
        net, report = LOOPS[name]()
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    noted = [torch.cat(outputs) for outputs in zip(*net.noted, strict=True)]
    layers = {
        key: (layer.zeros, layer.observations, layer.dead.tolist())
        for key, layer in report.layers.items()
    }
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    torch.save({"layers": layers, "noted": noted, "hooks": sum(hooks)}, folder / f"{rank}.pt")
    if torch.distributed.is_initialized():
        # A process that ends with gloo's threads running may abort (pytorch/pytorch#190489).
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
