"""``h[h < 0] = 0``, which Dynamo of torch 2.15 shows to no mode, is named as not judged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, find_dead_units
from lightning_deadunits.observation import sites
from lightning_deadunits.observation.compiled import COUNTS_IN_GRAPHS
from lightning_deadunits.observation.hidden_writes import HIDES_WRITES, REASON
from lightning_deadunits.observation.lineage.gates import GATES
from tests.mortal import trained

pytestmark = pytest.mark.skipif(
    not COUNTS_IN_GRAPHS, reason="before torch 2.13 what is counted runs eagerly"
)


class Written(nn.Module):
    """Its write is the last thing it does, which no later call of a function can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.relu(self.a(x)))
        mask = ~(h > 0)
        h[mask] = 0.0
        return h


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Written(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


class OtherWrites(nn.Module):
    """Writes beside a comparison, none of which is an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        high, first, one = h.clone(), h.clone(), h.clone()
        high[h > 3] = 0.0
        first[:, 0] = 0.0
        one[one < 0] = 1.0
        return high + first + one


def batches() -> list[Tensor]:
    return [torch.randn(5, 4) for _ in range(3)]


def hide_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any version of torch show no writes, as 2.15 does."""
    monkeypatch.setattr(sites, "HIDES_WRITES", True)
    monkeypatch.delitem(GATES, Tensor.__setitem__)
    torch._dynamo.reset()


@pytest.mark.parametrize(("model", "name"), [(Written, "setitem"), (Around, "inner.setitem")])
def test_a_write_in_a_compiled_graph_is_named(
    model: type[nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_writes(monkeypatch)
    net = torch.compile(model(), backend="eager", fullgraph=True)
    with pytest.warns(UserWarning, match="h.masked_fill"):
        report = find_dead_units(net, batches())
    assert report.unjudged == {name: REASON}
    assert list(report.layers) == [name.replace("setitem", "relu")]
    with pytest.warns(UserWarning, match="h.masked_fill"):  # from a graph of its own
        assert find_dead_units(net, batches()).unjudged == {name: REASON}
    assert find_dead_units(net, batches(), exclude="*setitem").unjudged == {}


def test_it_is_counted_where_torch_shows_it() -> None:
    report = find_dead_units(Written(), batches())
    assert list(report.layers) == ["relu", "setitem"]
    torch._dynamo.reset()
    if not HIDES_WRITES:
        report = find_dead_units(torch.compile(Written(), backend="eager"), batches())
        assert list(report.layers) == ["relu", "setitem"]
    assert report.unjudged == {}


def test_other_writes_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_writes(monkeypatch)
    report = find_dead_units(torch.compile(OtherWrites(), backend="eager"), batches())
    assert report.unjudged == {}
    assert list(report.layers) == ["relu"]


def test_every_validation_names_it_though_the_graph_is_traced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Learner(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(Around(), backend="eager")

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0].repeat(1, 2)[:, :4]).pow(2).mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-2)

    reports = []

    class Kept(DeadUnitCallback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_validation_epoch_end(trainer, pl_module)
            assert self.report is not None
            reports.append(self.report.unjudged)

    hide_writes(monkeypatch)
    with pytest.warns(UserWarning, match="h.masked_fill"):
        trained(Learner(), Kept(verbose=False), max_epochs=3)
    assert reports == [{"net.inner.setitem": REASON}] * 3
