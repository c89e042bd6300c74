"""Averaged weights get the edits that the model gets, however they are kept."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import AT_VALIDATION, Mortal, differing, events, state_of, trained
from tests.zoo import kill

EMA = get_ema_avg_fn(0.9)


class Around(Callback):
    """Keeps the module and its average at the start of batches: one before, one after us."""

    def __init__(self, average: Any) -> None:
        self.average, self.states = average, []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        average = self.average(pl_module)
        states = [m if isinstance(m, dict) else m.state_dict() for m in (pl_module, average)]
        self.states.append(copy.deepcopy(states))


def check_alike(model: Any, average: Any, *callbacks: Callback, **options: Any) -> None:
    """Train; hold that what an event wrote into the model is in its average too, and only that."""
    first, last = Around(average), Around(average)
    ours = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(model, *callbacks, first, ours, last, max_epochs=6, **options)
    compared = set()
    for (model_0, average_0), (model_1, average_1) in zip(first.states, last.states, strict=True):
        for name, tensor in average_1.items():
            name = name.removeprefix("module.")
            at = model_0[name] != model_1[name] if name in model_0 else torch.tensor(False)
            if at.any():
                compared.add(name)
            before = next(average_0[n] for n in (name, f"module.{name}") if n in average_0)
            assert torch.equal(tensor, before.where(~at, model_1.get(name, before))), name
    assert compared >= {"a.weight", "bn.weight", "bn.bias", "b.weight", "b.bias", "c.weight"}


CALLBACKS = {
    "WeightAveraging": lambda: WeightAveraging(avg_fn=EMA),
    "without buffers": lambda: WeightAveraging(avg_fn=EMA, use_buffers=False),
    "EMA": lambda: EMAWeightAveraging(decay=0.9),
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_averages_of_lightnings_callbacks(name: str) -> None:
    averaging = CALLBACKS[name]()
    check_alike(Mortal(), lambda _: averaging._average_model, averaging)


@pytest.mark.parametrize("averages", [True, False])
def test_an_event_tells_that_validation_judged_averaged_weights(averages: bool) -> None:
    ours = DeadUnitCallback(reinit=AT_VALIDATION)
    more = [WeightAveraging(avg_fn=EMA)] if averages else []
    trained(Mortal(mortal=False), *more, ours, max_epochs=3)
    assert ours.reviver is not None
    first, *_ = ours.reviver.events
    assert first.reinitialised
    assert any("ran with other weights" in note for note in first.notes) is averages


class Keeps(Mortal):
    """Keeps an average of itself or of a part, in one of the ways that people do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        if how == "a submodule":
            self.body = nn.ModuleDict({"a": self.a, "bn": self.bn, "b": self.b, "c": self.c})
            self.averaged = AveragedModel(self.body, avg_fn=EMA)
        elif how == "hidden in a list":
            self.hidden = [AveragedModel(self, avg_fn=EMA)]
        elif how == "an ema by name":
            self.parts = nn.ModuleDict({"a": self.a, "bn": self.bn, "b": self.b, "c": self.c})
            self.parts_ema = copy.deepcopy(self.parts)
        elif how == "buffers":  # latent diffusion's LitEma
            self.parts = nn.ModuleDict({"a": self.a, "bn": self.bn, "b": self.b, "c": self.c})
            self.parts_ema = nn.Module()
            for name, parameter in self.parts.named_parameters():
                self.parts_ema.register_buffer(name.replace(".", ""), parameter.detach().clone())
        elif how == "a part's names":
            self.parts = nn.ModuleDict({"a": self.a, "bn": self.bn, "b": self.b, "c": self.c})
            named = self.parts.named_parameters()
            self.kept = SimpleNamespace(ema={n: p.detach().clone() for n, p in named})
        elif how == "shadow parameters":
            shadow = [p.detach().clone() for p in self.parameters()]
            self.average = SimpleNamespace(shadow_params=shadow)
        elif how == "slow weights by groups":  # Lookahead (Zhang et al., 2019)
            slow = [p.detach().clone() for p in self.parameters()]
            self.average = SimpleNamespace(slow_weights=[slow[:2], slow[2:]])

    def average_of(self, how: str) -> Any:
        if how == "shadow parameters":
            names = (name for name, _ in self.named_parameters())
            return dict(zip(names, self.average.shadow_params, strict=True))
        if how == "slow weights by groups":
            names = (name for name, _ in self.named_parameters())
            slow = itertools.chain(*self.average.slow_weights)
            return dict(zip(names, slow, strict=True))
        if how == "a part's names":
            return self.kept.ema
        if how == "buffers":
            names = [name for name, _ in self.parts.named_parameters()]
            return {name: getattr(self.parts_ema, name.replace(".", "")) for name in names}
        if how == "hidden in a list":
            return self.hidden[0]
        return self.averaged if how == "a submodule" else self.parts_ema


@pytest.mark.parametrize(
    "how",
    [
        *("a submodule", "hidden in a list", "an ema by name", "shadow parameters"),
        *("buffers", "a part's names", "slow weights by groups"),
    ],
)
def test_an_average_that_the_module_keeps_itself(how: str) -> None:
    check_alike(Keeps(how), lambda model: model.average_of(how))


class InGroups(torch.optim.SGD):
    """Keeps an average in the order of its groups, as NeMo's ``EMAOptimizer``."""

    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not hasattr(self, "ema_params"):
            self.ema_params = [p.detach().clone() for p in parameters]
        loss = super().step(closure)
        for kept, parameter in zip(self.ema_params, parameters, strict=True):
            kept.lerp_(parameter.detach(), 0.1)
        return loss


def test_an_average_in_the_order_of_an_optimizers_groups() -> None:
    class Groups(Mortal):
        def configure_optimizers(self) -> Any:
            vectors, matrices = ([p for p in self.parameters() if p.ndim == d] for d in (1, 2))
            self.names = [self.name_of(p) for p in (*matrices, *vectors)]
            return InGroups([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], 1e-2)

        def name_of(self, parameter: Tensor) -> str:
            return next(name for name, own in self.named_parameters() if own is parameter)

    def average(model: Groups) -> dict[str, Tensor]:
        optimizer = model.trainer.optimizers[0]
        kept = getattr(optimizer, "ema_params", None) or [
            p.detach() for group in optimizer.param_groups for p in group["params"]
        ]
        return dict(zip(model.names, kept, strict=True))

    check_alike(Groups(), average)


def test_an_average_gets_the_edits_of_a_layer_of_which_nearly_all_is_revived() -> None:
    class NearlyDead(Keeps):
        def __init__(self) -> None:
            super().__init__("shadow parameters")
            kill(self.bn, *range(14))
            kill(self.b, *range(7))
            self.average.shadow_params = [p.detach().clone() for p in self.parameters()]

    check_alike(NearlyDead(), lambda model: model.average_of("shadow parameters"))


def test_copies_that_are_no_averages_are_snapshots_and_stay() -> None:
    class Snapshots(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.teacher = copy.deepcopy(pl_module)
            self.best_state = copy.deepcopy(pl_module.state_dict())

    snapshots, ours = Snapshots(), DeadUnitCallback(reinit=AT_VALIDATION)
    model = Mortal()
    before = copy.deepcopy(model.state_dict())
    trained(model, snapshots, ours)
    assert events(ours)
    assert differing(before, dict(snapshots.teacher.state_dict())) == []
    assert differing(before, snapshots.best_state) == []


def test_averages_of_gradients_and_of_their_squares_stay() -> None:
    class Filtered(Mortal):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if not hasattr(self, "ema_grads"):
                self.ema_grads = {n: torch.zeros_like(p) for n, p in self.named_parameters()}
                self.ema_fisher = [torch.zeros_like(p) for p in self.parameters()]
            for (name, parameter), square in zip(
                self.named_parameters(), self.ema_fisher, strict=True
            ):
                if parameter.grad is not None:
                    self.ema_grads[name].lerp_(parameter.grad, 0.1)
                    square.lerp_(parameter.grad.square(), 0.1)

    class Around(Callback):
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            held = getattr(pl_module, "ema_grads", {}), getattr(pl_module, "ema_fisher", [])
            self.kept.append(copy.deepcopy([*held[0].values(), *held[1]]))

    first, ours, last = Around(), DeadUnitCallback(reinit=AT_VALIDATION), Around()
    trained(Filtered(), first, ours, last)
    assert events(ours)
    for before, after in zip(first.kept, last.kept, strict=True):
        assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_average_equals_the_uninterrupted_one(tmp_path: Path, name: str) -> None:
    def run(*more: Callback, **options: Any) -> dict[str, Tensor]:
        averaging, model = CALLBACKS[name](), Mortal()
        ours = DeadUnitCallback(reinit=ReinitConfig(patience=1))
        trainer = trained(model, averaging, ours, *more, max_epochs=6, **options)
        average = {f"average.{k}": v for k, v in averaging._average_model.state_dict().items()}
        assert events(ours)
        return state_of(trainer, model) | average

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = run(keep, default_root_dir=tmp_path)
    again = run(resume=tmp_path / "epoch=1.ckpt", default_root_dir=tmp_path)
    assert differing(whole, again) == []


class ValidatesItsAverage(Mortal):
    """Runs an average of a part in validation, beside the part itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
        kill(self.body[0], 1, 4)
        self.body_ema = copy.deepcopy(self.body).requires_grad_(False)

    def loss(self, batch: Any) -> Tensor:
        own = self.body(batch[0])
        if not self.training:
            own = own + self.body_ema(batch[0])
        return super().loss(batch) + own.square().mean()

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for mine, own in zip(self.body_ema.parameters(), self.body.parameters(), strict=True):
                mine.lerp_(own, 0.1)


def test_units_of_an_average_are_told_to_have_got_the_edits_not_to_be_refused() -> None:
    callback = DeadUnitCallback(reinit=AT_VALIDATION)
    trained(ValidatesItsAverage(), callback, max_epochs=3)
    (first, *_) = callback.reviver.events
    assert {1, 4} <= {*first.reinitialised["body.1"]}
    assert first.reinitialised["body_ema.1"] == first.reinitialised["body.1"]
    assert "body_ema.1" not in first.refused
    assert first.notes == ["Note: body_ema.1 follows body.1: its units got the same weights."]
    table = callback.history.to_dataframe()
    revived = table[table["layer"] == "body_ema.1"]["reinitialised"].sum()
    assert revived == table[table["layer"] == "body.1"]["reinitialised"].sum() > 0
