"""Steps that step optimizers themselves: adversaries, an actor and its critic, averaged targets.

Whatever such a step computes with weights from before an optimizer's step and after it, the dead
units of every network that it trains are revived.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn, optim

from lightning_deadunits import DeadUnitCallback
from tests.mortal import SCHEDULES, events, trained


class Pair(LightningModule):
    """Two networks with units that are born dead, and an optimizer for each."""

    def __init__(self) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.automatic_optimization = False
        self.maker = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        self.judge = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
        with torch.no_grad():
            self.maker[0].bias[:2] = self.judge[0].bias[:3] = -100.0
        self.target = copy.deepcopy(self.judge).requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return tuple(optim.Adam(net.parameters(), 1e-3) for net in (self.maker, self.judge))

    def step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("judged", self.judge(self.maker(batch[0])).mean())


class Adversaries(Pair):
    """What was made before the judge's step is judged again after it."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, (makers, judges) = batch[0], self.optimizers()
        made = self.maker(torch.randn_like(x))
        judged = F.softplus(-self.judge(x)).mean() + F.softplus(self.judge(made.detach())).mean()
        self.step(judges, judged)
        believed = F.softplus(-self.judge(made)).mean()
        self.step(makers, believed)
        self.log_dict({"judged": judged.detach(), "both": judged + believed})


class Penalised(Pair):
    """A penalty on the gradient of the judge (Gulrajani et al. 2017)."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, (makers, judges) = batch[0], self.optimizers()
        made = self.maker(torch.randn_like(x)).detach()
        mixed = torch.lerp(made, x, torch.rand(len(x), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.judge(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        self.step(judges, self.judge(made).mean() - self.judge(x).mean() + penalty)
        self.step(makers, -self.judge(self.maker(torch.randn_like(x))).mean())


class PenalisedAndNormed(Penalised):
    """What autograd takes gradients of has running statistics, too."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(16)
        with torch.no_grad():
            norm.bias[:2] = -100.0
        self.maker[0] = nn.Sequential(nn.Linear(12, 16), norm)


class Averaged(Pair):
    """A target network follows the judge."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, (makers, judges) = batch[0], self.optimizers()
        with torch.no_grad():
            expected = self.target(self.maker(x)) + batch[1]
        loss = F.mse_loss(self.judge(self.maker(x)), expected)
        self.step(judges, loss)
        self.step(makers, -self.judge(self.maker(x)).mean())
        for target, weights in zip(self.target.parameters(), self.judge.parameters(), strict=True):
            target.data.mul_(0.99).add_(weights.data, alpha=0.01)
        self.log("loss", loss.detach())


class Clipped(Pair):
    """Gradients are accumulated, clipped, and their size is logged."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = F.mse_loss(self.judge(self.maker(batch[0])), batch[1]) / 2
        self.manual_backward(loss)
        if batch_idx % 2:
            for optimizer, net in zip(self.optimizers(), (self.maker, self.judge), strict=True):
                self.log("size", nn.utils.clip_grad_norm_(net.parameters(), 1.0))
                optimizer.step()
                optimizer.zero_grad()
        self.log("loss", loss, on_step=True, on_epoch=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [Adversaries, Penalised, PenalisedAndNormed, Averaged, Clipped])
def test_dead_units_are_revived(kind: type[Pair], schedule: str) -> None:
    ours = DeadUnitCallback(layers=["maker.1", "judge.1"], reinit=SCHEDULES[schedule])
    trained(kind(), ours, max_epochs=2)
    first = events(ours)[0]
    assert {0, 1} <= set(first["maker.1"])
    assert {0, 1, 2} <= set(first["judge.1"])


def test_our_own_looks_at_weights_amid_a_step_are_no_use_of_them() -> None:
    class DiesOneByOne(Averaged):
        def on_train_epoch_start(self) -> None:
            with torch.no_grad():
                self.judge[0].weight[3 + self.current_epoch] = 0.0
                self.judge[0].bias[3 + self.current_epoch] = -1.0

    ours = DeadUnitCallback(layers=["judge.1"], reinit=SCHEDULES["at validation"])
    trained(DiesOneByOne(), ours, max_epochs=6)
    # What was just revived is looked at in the batch that is recorded for the next one.
    assert ours.reviver is not None
    assert [event.refused for event in ours.reviver.events if event.refused] == []
    revived = [unit for event in events(ours) for unit in event["judge.1"]]
    assert {0, 1, 2, 3, 4, 5} <= set(revived)
