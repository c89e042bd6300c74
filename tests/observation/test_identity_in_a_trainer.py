"""Layers of experts in a Trainer: over processes, a resume, windows of training batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.observation.kinds import Experts

pytestmark = pytest.mark.forks

MakeTrainer = Callable[..., pl.Trainer]
NAMES = ["net.act.up.0", "net.act.up.1", "net.act.up.2"]


def samples() -> TensorDataset:
    """Eight samples for each expert, those of the first one first."""
    inputs = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    inputs[:, 0] = torch.arange(3).repeat_interleave(8) / 7 + 0.01
    return TensorDataset(inputs)


class Routed(pl.LightningModule):
    """Experts of which some processes, some epochs or some batches run a few only.

    Args:
        order: The samples to validate on, by epoch.
    """

    def __init__(self, order: list[list[int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.order = Experts(), order
        with torch.no_grad():
            for k in range(3):
                self.net.up[k].bias.fill_(20.0)
                self.net.up[k].bias[2 * k : 2 * k + 2] = -100.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        unused = sum(parameter.sum() for parameter in self.parameters())  # DDP wants all of them
        return (self.net(batch[0]).pow(2).mean() + unused) * 0

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Subset(samples(), [23, 1, 9, 2]), batch_size=1)

    def val_dataloader(self) -> DataLoader[Any]:
        mine = self.order[self.trainer.current_epoch % len(self.order)]
        if self.trainer.world_size > 1:
            mine = [i for i in mine if (i >= 16) == (self.global_rank == 0)]
        return DataLoader(Subset(samples(), mine), batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Keeping(DeadUnitCallback):
    """Leaves the dead of every validation, by layer, on disk."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder
        self.told: list[dict[str, list[int]]] = []

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if self.report is not None:
            self.told.append({n: own.dead.tolist() for n, own in self.report.layers.items()})
            torch.save(self.told, self.folder / f"{trainer.global_rank}.pt")


TRUTH = {name: [2 * k, 2 * k + 1] for k, name in enumerate(NAMES)}
EVERY = list(range(24))


def test_experts_that_one_process_alone_runs_are_everyones(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(
        strategy="ddp_fork", devices=2, callbacks=[Keeping(tmp_path)], max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    ).fit(Routed([EVERY, EVERY[::-1]]))  # fmt: skip
    told = [torch.load(path) for path in sorted(tmp_path.glob("*.pt"))]
    assert told == [[TRUTH] * 2] * 2


def test_names_do_not_depend_on_what_else_is_tracked(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    for rank in range(2):  # each process runs layers that the other one does not
        make_trainer(
            callbacks=[Keeping(tmp_path, layers=NAMES[2 * rank])],
            strategy="ddp_fork", devices=2, max_epochs=2,
            use_distributed_sampler=False, num_sanity_val_steps=0,
        ).fit(Routed([EVERY, EVERY[::-1]]))  # fmt: skip
        own = {NAMES[2 * rank]: TRUTH[NAMES[2 * rank]]}
        assert [torch.load(path) for path in sorted(tmp_path.glob("*.pt"))] == [[own] * 2] * 2


@pytest.mark.parametrize("options", [{}, {"criterion": "dormant", "tau": 0.1}])
def test_names_of_a_window_do_not_depend_on_what_else_is_tracked(
    make_trainer: MakeTrainer, options: dict[str, Any]
) -> None:
    config = ReinitConfig(every_n_train_steps=4, dry_run=True, **options)
    callback = DeadUnitCallback(layers=NAMES[1], reinit=config)
    make_trainer(callbacks=[callback], max_epochs=2, limit_val_batches=0).fit(Routed([EVERY]))
    assert callback.reviver is not None
    assert {*callback.reviver.events[0].planned, *callback.reviver.events[0].refused} == {NAMES[1]}


class Gathering(pl.LightningModule):
    """Experts whose weights are gathered for each sample; unit 1 of all is dead, 7 of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(3, 4, 8)), nn.Parameter(torch.ones(3, 8))
        self.act, self.head = nn.ReLU(), nn.Linear(8, 1)
        with torch.no_grad():
            self.b[:, 1] = self.b[0, 7] = -99.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = torch.rand(6, 4)
        chosen = torch.arange(6) % 3
        hidden = torch.einsum("bi,bio->bo", x, self.w[chosen]) + self.b[chosen]
        return self.head(self.act(hidden)).sum()

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(8), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("criterion", ["dead", "dormant"])
def test_gathered_experts_are_judged_each_by_its_own_rows(
    make_trainer: MakeTrainer, criterion: Any
) -> None:
    config = ReinitConfig(every_n_train_steps=4, criterion=criterion)
    callback = DeadUnitCallback(reinit=config)
    make_trainer(callbacks=[callback], max_epochs=1).fit(Gathering())
    assert callback.reviver is not None
    found = {name: sorted(units) for name, units in callback.reviver.events[0].refused.items()}
    assert found == {"act.w.0": [1, 7], "act.w.1": [1], "act.w.2": [1]}


def test_names_are_kept_whatever_runs_first_in_a_later_validation(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    order = [EVERY, EVERY[16:], EVERY[::-1]]
    make_trainer(
        callbacks=[Keeping(tmp_path)], max_epochs=3, num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    ).fit(Routed(order))  # fmt: skip
    every, one, again = torch.load(tmp_path / "0.pt")
    assert every == TRUTH
    assert one == {NAMES[2]: TRUTH[NAMES[2]]}
    assert again == TRUTH


def test_the_first_validation_of_a_resumed_run_is_compared_with_the_last_before(
    make_trainer: MakeTrainer, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    first = make_trainer(callbacks=[DeadUnitCallback()], max_epochs=1, num_sanity_val_steps=0)
    first.fit(Routed([EVERY]))
    assert any("are dead at the first validation" in str(told.message) for told in recwarn)
    first.save_checkpoint(tmp_path / "one.ckpt")
    recwarn.clear()
    make_trainer(callbacks=[DeadUnitCallback()], max_epochs=2, num_sanity_val_steps=0).fit(
        Routed([EVERY, EVERY]), ckpt_path=tmp_path / "one.ckpt"
    )
    assert not any("are dead" in str(told.message) for told in recwarn)


def test_names_and_history_survive_a_resume_in_which_another_expert_runs_first(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    options: dict[str, Any] = dict(num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1)
    first = make_trainer(callbacks=[DeadUnitCallback()], max_epochs=1, **options)
    first.fit(Routed([EVERY]))
    first.save_checkpoint(tmp_path / "one.ckpt")
    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback], max_epochs=2, **options).fit(
        Routed([EVERY, EVERY[16:]]), ckpt_path=tmp_path / "one.ckpt"
    )
    assert list(callback.report.layers) == [NAMES[2]]
    since = callback.report.layers[NAMES[2]].dead_since
    assert since[TRUTH[NAMES[2]]].tolist() == [first.global_step - 1] * 2


def test_a_checkpoint_of_before_loads_with_a_warning() -> None:
    callback = DeadUnitCallback()
    with pytest.warns(UserWarning, match="named layers by the order"):
        callback.load_state_dict({"history": {}, "reviver": {}})


def test_a_window_of_training_batches_knows_experts_by_their_weights(
    make_trainer: MakeTrainer,
) -> None:
    config = ReinitConfig(every_n_train_steps=4, dry_run=True)
    callback = DeadUnitCallback(reinit=config)
    make_trainer(callbacks=[callback], max_epochs=2, limit_val_batches=0).fit(Routed([EVERY]))
    assert callback.reviver is not None
    event = callback.reviver.events[0]
    assert {*event.planned, *event.refused} == set(NAMES)
