"""Several real processes: DDP equals one process, bit for bit, whatever each of them saw."""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_deadunits import DeadUnitCallback
from tests.modules import Lit, data, loader

pytestmark = pytest.mark.forks

MakeTrainer = Callable[..., pl.Trainer]


class Saving(DeadUnitCallback):
    """Leaves the report of every process on disk, for the parent to read."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder
        self.calls: list[dict[str, int]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.world_size > 1:  # ending with gloo's threads may abort (pytorch#190489)
            atexit.register(torch.distributed.destroy_process_group)
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        reduce, gather = torch.distributed.all_reduce, torch.distributed.all_gather_object
        counted = {"reduce": 0, "gather": 0}

        def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                counted[name] += 1
                return function(*args, **kwargs)

            return call

        torch.distributed.all_reduce = counting("reduce", reduce)
        torch.distributed.all_gather_object = counting("gather", gather)
        try:
            super().on_validation_epoch_end(trainer, pl_module)
        finally:
            torch.distributed.all_reduce = reduce
            torch.distributed.all_gather_object = gather
        if self.report is not None:
            layers = {
                name: (layer.zeros, layer.observations, layer.dead_since)
                for name, layer in self.report.layers.items()
            }
            metrics = {k: v for k, v in trainer.callback_metrics.items() if "dead" in k}
            torch.save((layers, counted, metrics), self.folder / f"{trainer.global_rank}.pt")
            self.calls.append(counted)
            (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.calls))


class Stream(IterableDataset[Any]):
    """Samples without a length: Lightning runs validation on every rank, also without a batch."""

    def __init__(self, samples: list[int]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return (data()[index] for index in self.samples)


class Uneven(Lit):
    """Each rank validates on its own part; a layer runs on rank 1 only."""

    def __init__(self, split: int) -> None:
        super().__init__()
        self.split = split

    def val_dataloader(self) -> DataLoader[Any]:
        parts = [range(self.split), range(self.split, 64)]
        mine = parts[self.global_rank] if self.trainer.world_size > 1 else range(64)
        if self.split == 0:
            return DataLoader(Stream(list(mine)), batch_size=8)
        return DataLoader(Subset(data(), list(mine)), batch_size=8)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        hidden = self.net(batch[0])
        if self.trainer.world_size == 1 or self.global_rank == 1:
            self.net.fc2(F.hardswish(self.net.fc1(batch[0])))
        self.log("seen", hidden.sum())


def read(folder: Path) -> list[Any]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("*.pt"))]


class Changing(Uneven):
    """The layer of rank 1 runs in the third epoch only."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.trainer.current_epoch == 2:
            super().validation_step(batch, batch_idx)
        else:
            self.log("seen", self.net(batch[0]).sum())


def test_processes_ask_each_other_again_only_if_one_of_them_sees_something_else(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(
        strategy="ddp_fork", devices=2, callbacks=[Saving(tmp_path)], max_epochs=4,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    ).fit(Changing(24), loader())  # fmt: skip
    for rank in range(2):
        first, *later = json.loads((tmp_path / f"{rank}.json").read_text())
        assert first == {"reduce": 1, "gather": 2}  # what there is to sum; which names there are
        settled, asked_again = {"reduce": 1, "gather": 0}, {"reduce": 2, "gather": 1}
        assert later == [settled, asked_again, asked_again]
    for layers, *_ in read(tmp_path):
        assert list(layers) == ["net.act", "net.relu"]
        assert [seen for _, seen, _ in layers.values()] == [64, 64]


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_two_processes_equal_one(make_trainer: MakeTrainer, tmp_path: Path, strategy: str) -> None:
    trainer = make_trainer(
        strategy=strategy, devices=2, callbacks=[Saving(tmp_path)], max_epochs=1,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Uneven(24), loader())
    single = DeadUnitCallback()
    make_trainer(callbacks=[single], max_epochs=1, num_sanity_val_steps=0).validate(
        torch_load_weights(trainer, Uneven(24)), verbose=False
    )
    results = read(tmp_path)
    assert len(results) == 2
    for layers, counted, metrics in results:
        # The layers of rank 0 come first, then what only rank 1 has seen.
        assert list(layers) == ["net.act", "net.relu", "hardswish"]
        for name in ("net.act", "net.relu"):
            zeros, seen, _ = layers[name]
            assert torch.equal(zeros, single.report.layers[name].zeros)
            assert seen == 64
        assert layers["hardswish"][1] == 40
        assert counted["reduce"] == 1
        assert counted["gather"] <= 2
        assert metrics["dead_fraction/net.act"] == single.report.layers["net.act"].dead_fraction


def torch_load_weights(trainer: pl.Trainer, model: pl.LightningModule) -> pl.LightningModule:
    model.load_state_dict(trainer.lightning_module.state_dict())
    return model


def test_a_rank_without_a_batch_neither_hangs_nor_corrupts(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(
        strategy="ddp_fork", devices=2, callbacks=[Saving(tmp_path)], max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=2,
    )  # fmt: skip
    trainer.fit(Uneven(0), loader())
    first, second = read(tmp_path)
    # Modules and functions: what one process has not seen is not missing if another has.
    assert list(first[0]) == ["net.act", "net.relu", "hardswish"]
    for name, (zeros, seen, since) in first[0].items():
        assert torch.equal(zeros, second[0][name][0])
        assert torch.equal(since, second[0][name][2])
        assert seen == 64


class Widths(Lit):
    """Ranks that disagree on the number of units of a layer."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        hidden: Tensor = self.net.fc1(batch[0])
        F.relu6(F.pad(hidden, (0, self.global_rank)))
        self(batch[0])


def test_ranks_that_disagree_on_a_layer_are_told_and_the_others_judged(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    callback = Saving(tmp_path)
    trainer = make_trainer(strategy="ddp_fork", devices=2, callbacks=[callback], max_epochs=1)
    trainer.fit(Widths(), loader(), loader())
    for layers, _, _ in read(tmp_path):
        assert list(layers) == ["net.act", "net.relu"]


def test_the_subprocess_strategy(tmp_path: Path) -> None:
    """``ddp`` starts the script anew for every rank, so it takes a script."""
    import subprocess
    import sys

    script = tmp_path / "train.py"
    script.write_text(
        "import sys, warnings\n"
        "from pathlib import Path\n"
        "import lightning.pytorch as pl\n"
        "from tests.modules import Lit, loader\n"
        "from tests.test_processes import Saving\n"
        "folder = Path(sys.argv[1])\n"
        "trainer = pl.Trainer(strategy='ddp', devices=2, accelerator='cpu', max_epochs=1,\n"
        "    logger=False, enable_checkpointing=False, enable_progress_bar=False,\n"
        "    enable_model_summary=False, callbacks=[Saving(folder)])\n"
        "trainer.fit(Lit(), loader(), loader())\n"
    )
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True, cwd=root, timeout=240, capture_output=True,
        env={**__import__("os").environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    results = read(tmp_path)
    assert len(results) == 2
    assert results[0][0]["net.act"][1] == 64
