"""Two processes: weights and optimizer state stay equal bit for bit, and none waits in vain."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.reinit.training.agreement import RanksDifferError
from tests.mortal import (
    AT_VALIDATION,
    SCHEDULES,
    Mortal,
    data,
    differing,
    events,
    state_of,
    trained,
)
from tests.zoo import kill

pytestmark = pytest.mark.forks


def two(**options: Any) -> dict[str, Any]:
    """Options for two forked processes, of which none waits for longer than a test may take."""
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=30), **options)
    return {"strategy": strategy, "devices": 2}


class StayEqual(Callback):
    """Compares weights and optimizer state of both processes before every batch."""

    def __init__(self, least_events: int) -> None:
        self.least_events = least_events

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        buffers = {name for name, _ in pl_module.named_buffers()}  # each process's own until then
        state = {k: v for k, v in state_of(trainer, pl_module).items() if k not in buffers}
        found: list[Any] = [None, None]
        torch.distributed.all_gather_object(found, state)
        assert differing(*found) == []

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert len(events(trainer.callbacks[0])) >= self.least_events


OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (1, {}),
    "static graph": (1, {"static_graph": True}),  # which by itself does not bear accumulation
    "gradients in buckets, accumulated": (3, {"gradient_as_bucket_view": True}),
    "unused parameters, accumulated": (3, {"find_unused_parameters": True}),
}


@pytest.mark.parametrize(
    ("option", "schedule"),
    [
        ("plain", "at validation"),
        ("plain", "every two steps"),
        ("static graph", "at validation"),
        ("gradients in buckets, accumulated", "every two steps"),
        ("unused parameters, accumulated", "every two steps"),
    ],
)
def test_processes_stay_equal_over_many_events(option: str, schedule: str) -> None:
    accumulated, options = OPTIONS[option]
    callback = DeadUnitCallback(reinit=SCHEDULES[schedule])
    trained(
        Mortal(), callback, StayEqual(6), **two(**options), max_epochs=8,
        accumulate_grad_batches=accumulated, loaders=(data(128 if accumulated > 1 else 64), data()),
    )  # fmt: skip


class Uneven(Mortal):
    """Batches of other sizes on each process; only the second one has any to validate on."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Subset(data().dataset, range(64 - 11 * self.global_rank)), batch_size=16)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(64 * self.global_rank), batch_size=16)

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        self.loss(batch)


class Stream(IterableDataset[Any]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return (data().dataset[index] for index in range(self.samples))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_processes_may_have_batches_of_other_sizes_or_none(schedule: str) -> None:
    trained(
        Uneven(), DeadUnitCallback(reinit=SCHEDULES[schedule]), StayEqual(5), max_epochs=6,
        **two(broadcast_buffers=False),  # DDP itself would wait for the one that does not validate
        loaders=(), use_distributed_sampler=False,
    )  # fmt: skip


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class TakesPairs(Mortal):
    """Knows the parts of a batch by name."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return Pair(*batch)

    def loss(self, batch: Any) -> Tensor:
        return super().loss([batch.x, batch.y])


def test_batches_keep_their_type_on_the_way_to_other_processes() -> None:
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(TakesPairs(), callback, StayEqual(2), **two(), max_epochs=4)


def test_dormant_units_are_the_same_on_every_process() -> None:
    config = ReinitConfig(patience=1, grace_period=0, criterion="dormant", tau=0.05)
    trained(Mortal(), DeadUnitCallback(reinit=config), StayEqual(3), **two(), max_epochs=6)


class Tells(DeadUnitCallback):
    """Has each process write down what it raises: the parent sees one of them only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(reinit=AT_VALIDATION)
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        try:
            super().on_train_batch_start(trainer, *args)
        except RanksDifferError:
            (self.folder / f"raised-{trainer.global_rank}").touch()
            raise


class Differ(Callback):
    """Has the second process come to other weights."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.a.weight[2] += 1.0


def test_processes_that_differ_all_stop(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Processes have re-initialised units differently"):
        trained(Mortal(), Differ(), Tells(tmp_path), **two())
    assert {path.name for path in tmp_path.iterdir()} == {"raised-0", "raised-1"}


class BreaksOnOneRank(Callback):
    """Has the second process keep an average that cannot be written to."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            average = copy.deepcopy(pl_module.b)
            with torch.inference_mode():
                average.weight = nn.Parameter(average.weight.clone(), requires_grad=False)
            self.average_of_b = average


@pytest.mark.parametrize("criterion", ["dead", "dormant"])
def test_a_failure_on_one_process_undoes_the_event_on_all(criterion: Any) -> None:
    class Undone(StayEqual):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            assert events(trainer.callbacks[0]) == []
            assert bool((pl_module.bn.bias[1] < -40).all())

    config = ReinitConfig(patience=1, criterion=criterion)
    callback = DeadUnitCallback(reinit=config)
    trained(Mortal(), callback, BreaksOnOneRank(), Undone(0), **two(), max_epochs=3)


class FailingLogger(Logger):
    """Fails when it is told of an event, on the first process."""

    name, version = "failing", 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith("reinit/") for name in metrics) and trainer_rank() == 0:
            raise OSError("no space left on device")


def trainer_rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_processes_stop_together_when_monitoring_fails_on_one(schedule: str) -> None:
    callback = DeadUnitCallback(reinit=SCHEDULES[schedule])
    options = {**two(), "max_epochs": 4, "logger": FailingLogger()}
    trained(Mortal(), callback, StayEqual(1), **options)


class Resumed(Callback):
    """Compares a resumed run with the end of the uninterrupted one."""

    def __init__(self, path: Path, write: bool) -> None:
        self.path, self.write = path, write

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        path = self.path / f"end-{trainer.global_rank}.pt"
        state = state_of(trainer, pl_module)
        if trainer.global_rank:  # whose own buffers no checkpoint holds
            state = {n: t for n, t in state.items() if n not in dict(pl_module.named_buffers())}
        if self.write:
            torch.save(state, path)
        else:
            assert differing(state, torch.load(path)) == []


class KeepsStatistics(Uneven):
    """Its running statistics stay as they are: no checkpoint holds those of the second process.

    It is the second one that has recorded a validation and plans, with what it computes itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bn.momentum = 0.0


class Flickering(Mortal):
    """A dead unit fires once: on the second process, within the second window."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        hidden = F.relu(self.bn(self.a(batch[0])))
        if self.global_rank == 1 and self.trainer.training and self.global_step == 3:
            hidden = hidden * 1e4
        return F.mse_loss(self.c(F.relu(self.b(hidden))), batch[1])


class Lifted(Mortal):
    """Its first batch of the second window, on the second process, is like none of the others."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        hidden = self.b(F.relu(self.bn(self.a(batch[0]))))
        if self.global_rank == 1 and self.trainer.training and self.global_step == 3:
            hidden = hidden + 1000.0
        return F.mse_loss(self.c(F.relu(hidden)), batch[1])


RESUMED = {
    "between plan and application": (Mortal, AT_VALIDATION, 2),
    "with an example of the second process": (KeepsStatistics, AT_VALIDATION, 2),
    "inside a window": (Flickering, ReinitConfig(every_n_train_steps=3), 1),
    "inside a window, after a batch like no other": (
        Lifted, ReinitConfig(every_n_train_steps=3), 1,
    ),
    "inside a window of dormancy": (
        Flickering, ReinitConfig(every_n_train_steps=3, criterion="dormant"), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("when", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, when: str) -> None:
    model, config, epoch = RESUMED[when]
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, again = DeadUnitCallback(reinit=config), DeadUnitCallback(reinit=config)
    options: dict[str, Any] = {"max_epochs": 7}
    if model is KeepsStatistics:
        options |= {"loaders": (), "use_distributed_sampler": False}
    processes = {"broadcast_buffers": model is not KeepsStatistics}
    end = Resumed(tmp_path, write=True)
    trained(model(), whole, keep, end, **two(**processes), **options)
    end, path = Resumed(tmp_path, write=False), tmp_path / f"epoch={epoch}.ckpt"
    trained(model(), again, end, **two(**processes), **options, resume=path)


class Heads(Mortal):
    """A part of which each process runs a head of its own; in validation only, or an expert."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.trunk = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(3)
        )
        kill(self.trunk[0], 1, 4)
        for head in self.heads:
            kill(head[0], 2)

    def loss(self, batch: Any) -> Tensor:
        own = 1 + trainer_rank() if self.how == "always" or not self.training else 0
        hidden = self.trunk(batch[0])
        return super().loss(batch) + self.heads[own](hidden).square().mean()


class Heard(DeadUnitCallback):
    """Holds that no head computes otherwise right after an event than right before it."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        before = self._computed(pl_module)
        super().on_train_batch_start(trainer, pl_module, *args)
        torch.testing.assert_close(self._computed(pl_module), before, rtol=1e-5, atol=1e-6)

    @torch.no_grad()
    def _computed(self, pl_module: Any) -> Tensor:
        x = torch.randn(32, 12, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
        net = copy.deepcopy(pl_module)  # which nobody watches
        return torch.cat([head(net.trunk(x)) for head in net.heads[1:]])  # the first may not run


class TellsHeads(Callback):
    """Holds at the end what was revived: the trunk first, each process's expert in its turn."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        first, *more = trainer.callbacks[0].reviver.events
        assert first.reinitialised["trunk.1"] == [1, 4]
        assert "trunk.1" not in first.refused
        revived = {layer for event in (first, *more) for layer in event.reinitialised}
        assert {"heads.1.1", "heads.2.1"} <= revived
        for layer in {"heads.1.1", "heads.2.1"} - first.reinitialised.keys():
            assert "its turn comes later" in first.refused[layer][2]


@pytest.mark.parametrize("how", ["always", "in validation"])
def test_units_are_revived_though_each_process_has_a_head_of_its_own(how: str) -> None:
    ours = Heard(reinit=ReinitConfig(patience=1))
    options = two(find_unused_parameters=True)
    trained(Heads(how), ours, TellsHeads(), StayEqual(2), max_epochs=8, **options)


class Exchanges(Mortal):
    """Logs the mean over all processes of its training loss, too, as Lightning advises."""

    def __init__(self, how: str) -> None:
        super().__init__(mortal=False)
        self.how = how

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.how == "log":
            self.log("train_loss", loss, sync_dist=True)
        elif self.how == "reduce":
            mean = loss.detach().clone()
            torch.distributed.all_reduce(mean)
            loss = loss / mean.clamp(min=1.0)  # what was received is data
        elif self.how == "gather":
            found = [torch.zeros(()) for _ in range(2)]
            torch.distributed.all_gather(found, loss.detach())
            self.log("spread", found[0] - found[1])
        elif self.how == "into empty memory":
            hidden = F.relu(self.b(F.relu(self.bn(self.a(batch[0])))))
            own = self.c(hidden)
            found = [torch.empty_like(own) for _ in range(2)]
            torch.distributed.all_gather(found, own.detach())
            loss = loss + (own @ torch.cat(found).T).logsumexp(1).mean()
        elif self.how == "by an operator":
            group = torch.distributed.group.WORLD
            all_reduce(loss.detach(), "sum", group)
        else:
            hidden = F.relu(self.bn(self.a(batch[0])))
            torch.distributed.all_reduce(hidden.detach().mean(0))  # the unit itself is sent
        return loss


@pytest.mark.parametrize("how", ["log", "reduce", "gather", "into empty memory"])
def test_what_a_step_exchanges_between_processes_stays_the_same(how: str) -> None:
    class Revived(StayEqual):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            first, *_ = events(trainer.callbacks[0])
            assert first == {"relu.bn": [1], "relu.b": [0]}

    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Exchanges(how), callback, Revived(1), **two(), max_epochs=3)


class PutsAnAverage(Mortal):
    """Has the second process validate with another head in the place of its own."""

    def on_validation_epoch_start(self) -> None:
        self.own = self.c
        if self.global_rank == 1:
            self.c = copy.deepcopy(self.c)

    def on_validation_epoch_end(self) -> None:
        self.c = self.own


def test_what_one_process_replaces_in_validation_is_refused_on_all() -> None:
    class Refused(StayEqual):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            first, *_ = trainer.callbacks[0].reviver.events
            assert "ran other modules" in first.refused["relu.b"][0]

    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(PutsAnAverage(mortal=False), callback, Refused(0), **two(), max_epochs=6)


class Reduces(Mortal):
    """Averages gradients by hand."""

    def __init__(self) -> None:
        super().__init__(mortal=False)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.loss(batch).backward()
        for parameter in self.parameters():
            torch.distributed.all_reduce(parameter.grad)
        optimizer.step()


def test_gradients_that_are_averaged_by_hand_cost_nothing() -> None:
    class Revived(StayEqual):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            first, *_ = events(trainer.callbacks[0])
            assert first == {"relu.bn": [1], "relu.b": [0]}

    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Reduces(), callback, Revived(1), **two(), max_epochs=3)


def test_an_exchange_that_is_an_operator_is_refused_and_never_replayed() -> None:
    class Refused(StayEqual):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            first, *_ = trainer.callbacks[0].reviver.events
            assert not first.reinitialised
            assert "exchanges tensors with other processes" in first.refused["relu.b"][0]

    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Exchanges("by an operator"), callback, Refused(0), **two(), max_epochs=3)


def test_a_unit_that_is_sent_to_other_processes_is_refused() -> None:
    class Refused(StayEqual):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            first, *_ = events(trainer.callbacks[0])
            assert first == {"relu.b": [0]}

    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Exchanges("unit"), callback, Refused(1), **two(), max_epochs=3)
