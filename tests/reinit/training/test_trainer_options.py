"""Whatever a Trainer does with gradients and steps, fresh weights move as a new optimizer's would.

The reference is an Adam that keeps a step count for every single weight, trained by the same
Trainer: it needs no correction, for the reset of its state resets the counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, optim

from lightning_deadunits import DeadUnitCallback
from tests.mortal import (
    AT_VALIDATION,
    EVERY_TWO_STEPS,
    Mortal,
    data,
    events,
    trained,
)  # fmt: skip


class PerWeightAdam(optim.Optimizer):
    """AdamW with a step count for every weight (Kingma & Ba 2015, Loshchilov & Hutter 2019)."""

    def __init__(self, params: Any, **options: Any) -> None:
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        super().__init__(params, defaults | {"amsgrad": False} | options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.step_one(p, group)
        return loss

    def step_one(self, p: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        steps, m, v, v_max = (
            state.setdefault(key, torch.zeros_like(p)) for key in ("steps", "m", "v", "v_max")
        )
        p.mul_(1 - group["lr"] * group["weight_decay"])
        steps += 1
        m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        v_max.copy_(torch.maximum(v_max, v) if group["amsgrad"] else v)
        denominator = (v_max / (1 - beta2**steps)).sqrt() + group["eps"]
        p.sub_(group["lr"] * (m / (1 - beta1**steps)) / denominator)


Make = Callable[..., optim.Optimizer]


def one_group(kind: Make, parameters: Any, **options: Any) -> optim.Optimizer:
    return kind(parameters, lr=1e-2, **options)


def two_groups(kind: Make, parameters: Any, **options: Any) -> optim.Optimizer:
    first, *rest = list(parameters)
    groups = [{"params": [first], "lr": 5e-3, "betas": (0.5, 0.9)}, {"params": rest}]
    return kind(groups, lr=1e-2, **options)


class OneCycle(Mortal):
    """A scheduler that moves the learning rate and the betas at every step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        cycle = optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=200)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cycle, "interval": "step"},
        }


class Skipping(Mortal):
    """Makes only two of three steps."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        if batch_idx % 3 == 1:
            closure()
        else:
            optimizer.step(closure=closure)


class Scaled(Mortal):
    """Scales the loss itself, and meets an overflow in every epoch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=10_000)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers().optimizer
        optimizer.zero_grad()
        loss = self.loss(batch) * (torch.inf if batch_idx == 2 else 1.0)
        self.manual_backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update(2.0)


class Adversaries(Mortal):
    """Trains both halves in turn, each with an optimizer of its own, as a GAN is trained."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        lower = [*self.a.parameters(), *self.bn.parameters()]
        upper = [*self.b.parameters(), *self.c.parameters()]
        return self.make_optimizer(lower), self.make_optimizer(upper)


class Stepping(Mortal):
    """Steps an optimizer that the Trainer does not know."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def on_fit_start(self) -> None:
        self.own = [self.make_optimizer(self.parameters())]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (own,) = self.own
        own.zero_grad()
        self.manual_backward(self.loss(batch))
        own.step()

    def configure_optimizers(self) -> None:
        return None


class Renewing(Mortal):
    """Has its optimizer made anew in every epoch."""

    carry = False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if batch_idx == 1:
            optimizer = self.make_optimizer(self.parameters())
            if self.carry:
                optimizer.load_state_dict(self.trainer.optimizers[0].state_dict())
            self.trainer.optimizers = [optimizer]


class Handing(Renewing):
    """Also hands the state on from one to the next."""

    carry = True


CASES: dict[str, dict[str, Any]] = {
    "a scheduler at every step": {"module": OneCycle},
    "gradients clipped by norm": {"gradient_clip_val": 0.1},
    "by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulated gradients": {"accumulate_grad_batches": 3},
    "an event amid accumulation": {"accumulate_grad_batches": 3, "config": EVERY_TWO_STEPS},
    "steps that are left out": {"module": Skipping},
    "an overflow under a scaler": {"module": Scaled},
    "two optimizers in turn": {"module": Adversaries},
    "an unknown optimizer": {"module": Stepping},
    "an optimizer made anew": {"module": Renewing},
    "one that takes over the state": {"module": Handing},
    "several fits": {"fits": 3, "max_epochs": 3},
    "groups with own options": {"groups": two_groups},
    "for-loop": {"adam": {"foreach": False}},
    "foreach": {"adam": {"foreach": True}},
    "fused": {"adam": {"fused": True}, "accumulate_grad_batches": 2},
    "amsgrad": {"both": {"amsgrad": True}},
    "decoupled decay": {"kind": optim.AdamW, "both": {"weight_decay": 0.1}},
}


@pytest.mark.parametrize("name", CASES)
def test_fresh_weights_move_as_if_each_counted_its_own_steps(name: str) -> None:
    case = dict(CASES[name])
    module, config = case.pop("module", Mortal), case.pop("config", AT_VALIDATION)
    groups, kind = case.pop("groups", one_group), case.pop("kind", optim.Adam)
    both, only_adam, fits = case.pop("both", {}), case.pop("adam", {}), case.pop("fits", 1)

    def run(make: Any) -> tuple[dict[str, Tensor], list[Any]]:
        model, callback = module(make), DeadUnitCallback(reinit=config)
        done: list[Any] = []
        for _ in range(fits):
            trained(model, callback, **{"precision": "64-true", "max_epochs": 6, **case})
            done += events(callback)  # of this fit: each begins afresh
        assert len(done) >= 3
        return model.state_dict(), done

    weights, done = run(lambda p: groups(kind, p, **both, **only_adam))
    expected, known = run(lambda p: groups(PerWeightAdam, p, **both))
    assert done == known
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-12, msg=key)


def test_gradients_of_fresh_weights_are_cleared_amid_accumulation() -> None:
    class Gradients(Callback):
        """Sums the gradients of the second layer by unit."""

        def __init__(self) -> None:
            self.sums: list[Tensor] = []

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            gradient = pl_module.b.weight.grad
            self.sums.append(torch.zeros(8) if gradient is None else gradient.abs().sum(1))

    before, ours, after = Gradients(), DeadUnitCallback(reinit=EVERY_TWO_STEPS), Gradients()
    options = {"accumulate_grad_batches": 8, "limit_train_batches": 7, "max_epochs": 1}
    trained(Mortal(), before, ours, after, loaders=(data(128), data()), **options)
    assert 1 in events(ours)[1]["relu.b"]  # it died in the second batch, with gradients from before
    assert before.sums[4][1] > 0
    assert after.sums[4][1] == 0
    assert bool((after.sums[4][2:] > 0).all())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true", "32"])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_units_are_revived_in_every_precision(precision: Any, optimizer: str) -> None:
    class Output(Callback):
        """What the network computes; the first is called before the event, the second after."""

        def __init__(self) -> None:
            self.outputs: list[Tensor] = []

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                pl_module.eval()
                self.outputs.append(pl_module.loss(batch))
                pl_module.train()

    def make(parameters: Any) -> optim.Optimizer:
        if optimizer == "SGD":
            return optim.SGD(parameters, lr=1e-2, momentum=0.9)
        return optim.Adam(parameters, lr=1e-2, eps=1e-4)  # 1e-8 is 0 in half precision

    before, after, ours = Output(), Output(), DeadUnitCallback(reinit=AT_VALIDATION)
    trained(Mortal(make), before, ours, after, precision=precision, max_epochs=6)
    assert len(events(ours)) >= 4
    assert all(map(torch.equal, before.outputs, after.outputs))
