"""A compiled LightningModule is trained as an eager one, and never compiled again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch._dynamo.utils import counters

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.observation.compiled import COUNTS_IN_GRAPHS
from tests.mortal import AT_VALIDATION, Mortal, differing, events, state_of, trained

# Of four batches two are recorded, which runs them eagerly: the first and the last of a window.
WINDOWS: dict[str, Any] = {"patience": 1, "grace_period": 0, "every_n_train_steps": 4}
CONFIGS = {
    "at validation": AT_VALIDATION,
    "every four steps": ReinitConfig(**WINDOWS),
    "dormant, every four steps": ReinitConfig(**WINDOWS, criterion="dormant"),
}


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Silent(Mortal):
    """Logs nothing: Lightning's own ``log`` has Dynamo recompile by itself."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)


class Graphs(Callback):
    """Counts graphs at the end of every epoch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.counts.append(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("name", CONFIGS)
def test_events_cost_no_recompilation_and_change_no_result(name: str) -> None:
    def run(compiled: bool) -> tuple[dict[str, Tensor], list[Any], list[int]]:
        model, graphs = Silent(), Graphs()
        callback = DeadUnitCallback(reinit=CONFIGS[name])
        whole = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
        trainer = trained(whole, callback, graphs, max_epochs=6)
        return state_of(trainer, model), events(callback), graphs.counts

    eager, compiled = run(False), run(True)
    assert len(eager[1]) >= 5
    assert differing(eager[0], compiled[0]) == []
    assert eager[1] == compiled[1]
    assert len(set(compiled[2])) == 1  # all there will ever be, after the first epoch
    if COUNTS_IN_GRAPHS:
        assert compiled[2] == [2] * 6  # one for training, one for validation
    assert not counters["graph_break"]


@pytest.mark.parametrize("part", [True, False], ids=["a part", "the whole"])
def test_that_recorded_batches_run_uncompiled_is_said_once(part: bool) -> None:
    model = Silent()
    if part:
        model.b.compile(backend="eager")
    whole = model if part else torch.compile(model, backend="eager")
    with pytest.warns(UserWarning, match="runs uncompiled") as told:
        trained(whole, DeadUnitCallback(reinit=AT_VALIDATION), max_epochs=3)
    assert sum("runs uncompiled" in str(each.message) for each in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*runs uncompiled")
        trained(Silent(), DeadUnitCallback(reinit=AT_VALIDATION), max_epochs=2)
