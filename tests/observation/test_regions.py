"""What runs in a region that torch compiles by itself is not counted: said, and no crash."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_deadunits import DeadUnitCallback, find_dead_units
from lightning_deadunits.observation.compiled import COUNTS_IN_GRAPHS
from lightning_deadunits.observation.regions import REASON
from tests.mortal import EVERY_TWO_STEPS, trained

pytestmark = pytest.mark.skipif(
    not COUNTS_IN_GRAPHS, reason="before torch 2.13 what is counted runs eagerly"
)


class ByModule(nn.Module):
    """Its first three units are dead, the others always fire."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)
        with torch.no_grad():
            self.a.bias.fill_(100.0)
            self.a.bias[:3] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


class ByFunction(ByModule):
    """The same with a function."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Checkpointed(nn.Module):
    """A block whose activations are computed twice."""

    def __init__(self, block: type[ByModule]) -> None:
        super().__init__()
        self.one, self.last = block(), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.one, x, use_reentrant=False))


class Branching(nn.Module):
    """One of two blocks, as the values say."""

    def __init__(self, block: type[ByModule]) -> None:
        super().__init__()
        self.one, self.two = block(), block()
        self.last = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cond(x.sum() > 0, self.one, self.two, (x,)))


def batches() -> list[Tensor]:
    return list(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)))


BLOCKS = pytest.mark.parametrize(("block", "name"), [(ByModule, "act"), (ByFunction, "relu")])


@BLOCKS
def test_a_checkpoint_in_a_whole_graph_is_not_judged(block: Any, name: str) -> None:
    model = torch.compile(Checkpointed(block), backend="aot_eager", fullgraph=True)
    for _ in range(2):  # what is compiled once is traced once
        with pytest.warns(UserWarning, match="could not be judged"):
            report = find_dead_units(model, batches())
        assert report.unjudged == {f"one.{name}": REASON}
        assert list(report.layers) == ["last.1"]


@BLOCKS
def test_a_checkpoint_where_the_graph_may_break_is_counted(block: Any, name: str) -> None:
    model = torch.compile(Checkpointed(block), backend="aot_eager")
    report = find_dead_units(model, batches())
    assert not report.unjudged
    assert report[f"one.{name}"].dead.tolist() == [0, 1, 2]


@BLOCKS
@pytest.mark.parametrize("fullgraph", [True, False, None], ids=["whole", "in parts", "eager"])
def test_branches_of_torch_cond_are_not_judged(block: Any, name: str, fullgraph: Any) -> None:
    model: Any = Branching(block)
    if fullgraph is not None:
        model = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    with pytest.warns(UserWarning, match="could not be judged"):
        report = find_dead_units(model, batches())
    assert report.unjudged == {f"one.{name}": REASON, f"two.{name}": REASON}
    assert list(report.layers) == ["last.1"]


def test_a_layer_that_runs_outside_of_a_region_as_well_is_not_judged_by_half() -> None:
    class Both(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.one(x))

    model = torch.compile(Both(ByModule), backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="could not be judged"):
        report = find_dead_units(model, batches())
    assert report.unjudged == {"one.act": REASON}


@pytest.mark.parametrize("reinit", [False, EVERY_TWO_STEPS], ids=["default", "reinit"])
@pytest.mark.parametrize("make", [Branching, Checkpointed])
def test_a_training_goes_on(make: Any, reinit: Any) -> None:
    class Learner(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make(ByModule)
            if make is Checkpointed:
                self.net = torch.compile(self.net, backend="aot_eager", fullgraph=True)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0].repeat(1, 2)[:, :8]).pow(2).mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-2)

    callback = DeadUnitCallback(reinit=reinit)
    learner = Learner()
    trained(learner, callback, max_epochs=2)
    assert callback.report is not None
    assert "net.one.act" in callback.report.unjudged
