"""Weights that the user's code divides by their norm: zeros would become NaN, and stay so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.revive import record_both
from lightning_deadunits.reinit.training.first_batches import take_back_
from tests.mortal import EVERY_TWO_STEPS, Mortal, trained
from tests.zoo import kill


class Coder(Mortal):
    """An autoencoder with two dead latents, whose decoder's columns have norm 1.

    Args:
        when: The hook in which the columns are divided by their norms.
        bound: The least norm that they are divided by.
    """

    def __init__(self, when: str, bound: float = 0.0) -> None:
        super().__init__(mortal=False)
        self.encoder, self.decoder, self.other = (
            nn.Linear(12, 8),
            nn.Linear(8, 12),
            nn.Linear(12, 6),
        )
        self.head = nn.Linear(6, 1)
        self.when, self.bound = when, bound
        self.losses: list[float] = []
        kill(self.encoder, 2, 5)
        kill(self.other, 3)
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        self.decoder.weight.div_(self.decoder.weight.norm(dim=0).clamp(min=self.bound))

    def loss(self, batch: list[Tensor]) -> Tensor:
        decoded = self.decoder(F.relu(self.encoder(batch[0])))
        head = self.head(F.relu(self.other(batch[0])))
        return F.mse_loss(decoded, batch[0]) + F.mse_loss(head, batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(float(loss.detach()))
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.when == "before":
            self.normalise()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.when == "after":
            self.normalise()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("when", ["before", "after"])
def test_columns_of_zeros_that_are_divided_by_their_norm_leave_no_nan(when: str) -> None:
    model, callback = Coder(when), DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(model, callback)
    assert weights(model).isfinite().all()


def test_a_unit_whose_weights_became_nan_is_given_up_with_the_reason() -> None:
    model, callback = Coder("before"), DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    columns = model.decoder.weight.detach()[:, [2, 5]].clone()
    rows = model.encoder.weight.detach()[[2, 5]].clone()
    trained(model, callback)
    assert callback.reviver is not None
    first, taken_back, *_ = callback.reviver.events
    assert first.reinitialised == {"relu": [2, 5], "relu.other": [3]} or first.reinitialised
    reasons = [why for own in taken_back.refused.values() for why in own.values()]
    assert any("divided by their norm" in why for why in reasons)
    # As they were before the event: dead, and of norm 1.
    torch.testing.assert_close(model.decoder.weight.detach()[:, [2, 5]], columns)
    assert torch.equal(model.encoder.weight.detach()[[2, 5]], rows)
    assert sum(loss != loss for loss in model.losses) == 1  # the batch in which it was seen
    assert "revived" in callback.reviver.told()


def test_others_of_the_same_event_are_revived_at_the_next_verdict() -> None:
    model, callback = Coder("before"), DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(model, callback, max_epochs=8)
    report = callback.window_report
    assert report is not None
    dead = {name: layer.dead.tolist() for name, layer in report.layers.items()}
    assert sorted(map(tuple, dead.values())) == [(), (2, 5)]


def test_a_norm_that_is_bounded_from_below_lets_units_live() -> None:
    model, callback = Coder("before", bound=1e-8), DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(model, callback)
    assert weights(model).isfinite().all()
    assert callback.reviver is not None
    assert callback.reviver.summary.revived == 3
    assert callback.window_report is not None
    assert callback.window_report.num_dead == 0


def test_gradients_from_before_the_event_do_not_come_back_with_the_weights() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(8, 4)
    kill(net[0], 1)
    before = weights(net)
    for parameter in net.parameters():  # as while gradients are accumulated
        parameter.grad = torch.ones_like(parameter)
    event = Event(net, record_both(net, x), OptimizerMemory(), ReinitConfig())
    event.operate_({"1": [1]})
    event.commit_()
    assert event.report.reinitialised == {"1": [1]}
    net[2].weight.data[:, 1] = torch.nan
    report = take_back_(event)
    assert report is not None
    assert list(report.refused["1"]) == [1]
    assert torch.equal(weights(net), before)
    assert torch.equal(net[2].weight.grad[:, 1], torch.zeros(2))
    assert torch.equal(net[2].weight.grad[:, 0], torch.ones(2))
