"""The callback revives units in real trainings."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback, ReinitConfig, find_dead_units
from lightning_deadunits.observation.selection import SelectionError
from lightning_deadunits.reinit.training.windows import Window
from tests.zoo import kill


class Plain(LightningModule):
    """A network that only its steps run."""

    def __init__(self, optimizer: str = "Adam", batch_norm: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(12, 16)
        self.bn = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
        self.b = nn.Linear(16, 8)
        self.c = nn.Linear(8, 1)
        self.optimizer = optimizer
        self.seen: list[Tensor] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        hidden = F.relu(self.b(F.relu(self.bn(self.a(x)))))
        return F.mse_loss(self.c(hidden), y)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = self.loss(batch)
        self.seen.append(loss)
        self.logger.experiment.add_scalar("own", loss) if self.logger else None
        self.log("val_loss", loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=1e-3)


def data(samples: int = 64, batch_size: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 12, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :1].abs()), batch_size=batch_size)


def dying(**kwargs: Any) -> Plain:
    seed_everything(0, verbose=False)
    model = Plain(**kwargs)
    kill(model.bn if isinstance(model.bn, nn.BatchNorm1d) else model.a, 1, 5)
    kill(model.b, 0)
    return model


class Recorder(Callback):
    """Notes what the network computes around every training batch's start."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.after.append(copy.deepcopy(pl_module.state_dict()))


def fit(model: LightningModule, tmp_path: Any, *callbacks: Callback, **kwargs: Any) -> Trainer:
    options: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "default_root_dir": tmp_path,
        "callbacks": list(callbacks),
    }
    resume = kwargs.pop("ckpt_path", None)
    trainer = Trainer(**(options | kwargs))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*num_workers.*")
        warnings.filterwarnings("ignore", ".*logging interval.*")
        trainer.fit(model, data(), data(), ckpt_path=resume)
    return trainer


def test_dead_units_of_a_network_that_only_its_steps_run_come_to_life(tmp_path: Any) -> None:
    model, callback = dying(), DeadUnitCallback(reinit=True)
    fit(model, tmp_path, callback)
    assert callback.reviver is not None
    first = callback.reviver.events[0]
    assert first.reinitialised == {"relu.bn": [1, 5], "relu.b": [0]}, str(first)
    assert first.step == 8  # two validations of patience, before the first batch that follows
    assert first.alive == first.reinitialised
    assert first.died_again == {}
    assert callback.report is not None
    assert callback.report.num_dead == 0


def test_an_event_leaves_no_trace_in_the_module(tmp_path: Any) -> None:
    model, callback = dying(), DeadUnitCallback(reinit=True)
    fit(model, tmp_path, callback)
    # Four validations of four batches and a sanity check of two.
    assert len(model.seen) == 18
    assert "log" not in vars(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_patience_grace_and_limits_are_kept(tmp_path: Any) -> None:
    config = ReinitConfig(patience=3, max_per_event=1)
    model, callback = dying(), DeadUnitCallback(reinit=config)
    fit(model, tmp_path, callback, max_epochs=5)
    assert callback.reviver is not None
    first, second = callback.reviver.events
    assert (first.step, first.reinitialised) == (12, {"relu.bn": [1], "relu.b": [0]})
    assert (second.step, second.reinitialised) == (16, {"relu.bn": [5]})


def test_a_dry_run_touches_nothing(tmp_path: Any) -> None:
    plain, dry = dying(), dying()
    fit(plain, tmp_path)
    callback = DeadUnitCallback(reinit=ReinitConfig(dry_run=True))
    fit(dry, tmp_path, callback)
    assert callback.reviver is not None
    assert callback.reviver.events[0].planned == {"relu.bn": [1, 5], "relu.b": [0]}
    assert callback.reviver.events[0].reinitialised == {}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, dry.state_dict()[name]), name


def test_a_schedule_in_training_steps_needs_no_validation(tmp_path: Any) -> None:
    config = ReinitConfig(every_n_train_steps=3, patience=1)
    model, callback = dying(), DeadUnitCallback(reinit=config)
    fit(model, tmp_path, callback, limit_val_batches=0)
    assert callback.reviver is not None
    first = callback.reviver.events[0]
    assert (first.step, first.reinitialised) == (3, {"relu.bn": [1, 5], "relu.b": [0]}), str(first)
    assert callback.report is callback.window_report is not None
    assert callback.report.layers["relu.bn"].observations > 0


def test_dormant_units_are_revived_by_their_score(tmp_path: Any) -> None:
    config = ReinitConfig(criterion="dormant", tau=0.01, patience=1)
    model, callback = dying(batch_norm=False), DeadUnitCallback(reinit=config)
    fit(model, tmp_path, callback)
    assert callback.reviver is not None
    assert callback.reviver.events[0].reinitialised == {"relu.a": [1, 5], "relu.b": [0]}


def test_dormancy_is_the_mean_over_the_whole_validation(tmp_path: Any) -> None:
    class Late(Plain):
        """Unit 1 of the first layer is as loud as the others, but on the last batch alone."""

        def loss(self, batch: list[Tensor]) -> Tensor:
            shift = 8.0 if batch[0][0, 0] == last else -100.0
            hidden = F.relu(self.a(batch[0]) + shift * torch.eye(16)[1])
            return F.mse_loss(self.c(F.relu(self.b(hidden))), batch[1])

    last = data().dataset.tensors[0][-16, 0]  # type: ignore[attr-defined]
    seed_everything(0, verbose=False)
    model = Late(batch_norm=False)
    kill(model.a, 5)
    config = ReinitConfig(criterion="dormant", tau=0.1, patience=1)
    callback = DeadUnitCallback(reinit=config)
    fit(model, tmp_path, callback, max_epochs=2)
    assert callback.reviver is not None
    assert callback.reviver.events[0].reinitialised["relu.a"] == [5]


def test_counting_that_fails_costs_a_warning_and_not_the_training(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, model: Any) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(Window, "begin", broken)
    callback = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=2))
    with pytest.warns(UserWarning, match="(?s)watches no longer; training goes.*a bug of ours"):
        trainer = fit(dying(), tmp_path, callback)
    assert trainer.global_step == 16


def test_the_outcome_of_an_event_is_told_after_a_resume(tmp_path: Any) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=10)
    fit(dying(), tmp_path, DeadUnitCallback(reinit=True), keep, max_epochs=3)
    callback = DeadUnitCallback(reinit=True)
    fit(dying(), tmp_path, callback, max_epochs=3, ckpt_path=str(tmp_path / "step=10.ckpt"))
    assert callback.reviver is not None
    told = callback.reviver.events[0]
    assert (told.step, told.alive) == (8, {"relu.bn": [1, 5], "relu.b": [0]})


@pytest.mark.parametrize("name", ["Adam", "SGD", "AdamW"])
def test_resuming_between_plan_and_application_equals_the_uninterrupted_run(
    tmp_path: Any, name: str
) -> None:
    whole, callback = dying(optimizer=name), DeadUnitCallback(reinit=True)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    fit(whole, tmp_path, callback, keep, max_epochs=5)
    for epoch in (1, 2, 3):  # 1: planned, not applied; 2, 3: corrected steps are under way
        resumed, again = dying(optimizer=name), DeadUnitCallback(reinit=True)
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        fit(resumed, tmp_path, again, max_epochs=5, ckpt_path=path)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), (epoch, key)


def test_a_step_that_takes_whole_batches_only_is_given_no_others(tmp_path: Any) -> None:
    class Fragile(Plain):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            if len(batch[0]) < 16:
                raise ValueError("only whole batches please")
            super().validation_step(batch, batch_idx)

    seed_everything(0, verbose=False)
    model = Fragile()
    kill(model.bn, 1)
    callback = DeadUnitCallback(reinit=True)
    fit(model, tmp_path, callback)
    assert callback.reviver is not None
    assert callback.reviver.events[0].reinitialised == {"relu.bn": [1]}


@pytest.mark.parametrize("every", [None, 4])
def test_a_step_may_call_its_arguments_as_it_likes(tmp_path: Any, every: int | None) -> None:
    class Terse(Plain):
        def training_step(self, b: list[Tensor], i: int) -> Tensor:
            return self.loss(b)

        def validation_step(self, b: list[Tensor], i: int, *rest: Any) -> None:
            super().validation_step(b, i)

    seed_everything(0, verbose=False)
    model = Terse()
    kill(model.bn, 1)
    callback = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=every))
    fit(model, tmp_path, callback)
    assert callback.reviver is not None
    assert callback.reviver.events[0].reinitialised == {"relu.bn": [1]}


def test_manual_optimisation_with_two_optimizers(tmp_path: Any) -> None:
    class Manual(Plain):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            lower = [*self.a.parameters(), *self.bn.parameters()]
            upper = [*self.b.parameters(), *self.c.parameters()]
            return torch.optim.Adam(lower), torch.optim.SGD(upper, lr=1e-2, momentum=0.9)

    seed_everything(0, verbose=False)
    model = Manual()
    model.automatic_optimization = False
    kill(model.bn, 1)
    kill(model.b, 0)
    callback = DeadUnitCallback(reinit=True)
    fit(model, tmp_path, callback)
    assert callback.reviver is not None
    assert callback.reviver.events[0].reinitialised == {"relu.bn": [1], "relu.b": [0]}


def test_the_function_stays_at_the_moment_of_the_event(tmp_path: Any) -> None:
    before, after = Recorder(), Recorder()
    fit(dying(), tmp_path, before, DeadUnitCallback(reinit=True), after, max_epochs=3)
    x = torch.randn(32, 12)

    def computed(state: dict[str, Tensor]) -> Tensor:
        model = Plain()
        model.load_state_dict(state)
        model.eval()
        return model.c(F.relu(model.b(F.relu(model.bn(model.a(x))))))

    changed = [i for i, s in enumerate(after.after) if not same(s, before.after[i])]
    assert changed == [8]
    assert torch.equal(computed(before.after[8]), computed(after.after[8]))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_revived_unit_has_gradients_and_is_alive_after_a_hundred_steps() -> None:
    from lightning_deadunits import reinit_dead_units

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    kill(net[0], 2, 3)
    x, y = torch.randn(256, 12), torch.randn(256, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    reinit_dead_units(net, {"1": [2, 3]}, x[:8], optimizers=[optimizer])
    for step in range(100):
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        if step == 0:
            assert bool((net[2].weight.grad[:, [2, 3]] != 0).all())
        if step == 1:
            assert bool((net[0].weight.grad[[2, 3]].abs().sum(1) > 0).all())
        optimizer.step()
    assert not set(find_dead_units(net, [x]).layers["1"].dead.tolist()) & {2, 3}


def test_an_event_and_its_outcome_stand_in_the_log_and_in_the_text_tab(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(dying(), tmp_path, DeadUnitCallback(reinit=True), logger=TensorBoardLogger(tmp_path))
    done = "Re-initialised 3 units"
    told = "Of those re-initialised at step 8, 3 fire at the next look, 0 died again."
    (line,) = [text for text in caplog.messages if done in text]
    assert "\n" not in line
    assert told in caplog.messages
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    texts = [str(each.tensor_proto.string_val[0]) for each in events.Tensors("reinit/text_summary")]
    assert [done in text for text in texts] == [True, False, False]
    assert told in texts[1]
    assert "silenced: b.weight" in texts[0]  # which the line leaves out
    assert "3 revived, 0 of them dead again at the next look" in texts[2]
    assert [each.value for each in events.Scalars("reinit/relu.bn")] == [2.0]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "32-true"])
def test_constants_of_the_precision_plugins_default_dtype_cost_nothing(
    tmp_path: Any, precision: Any
) -> None:
    class Shifted(Plain):
        def loss(self, batch: list[Tensor]) -> Tensor:
            x, y = batch
            hidden = F.relu(self.b(F.relu(self.a(x.to(self.dtype) + torch.linspace(0, 1, 12)))))
            return F.mse_loss(self.c(hidden).float(), y.float())

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.loss(batch)

    seed_everything(0, verbose=False)
    model = Shifted()
    kill(model.a, 1, 5)
    callback = DeadUnitCallback(reinit=ReinitConfig(patience=1))
    fit(model, tmp_path, callback, max_epochs=2, precision=precision)
    (event, *_) = callback.reviver.events
    assert event.reinitialised["relu.a"] == [1, 5]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("argument", ["layers", "exclude"])
@pytest.mark.parametrize("pattern", ["relu.aa", "c"])
def test_a_misspelt_pattern_of_layers_to_revive_is_an_error_before_training(
    tmp_path: Any, argument: str, pattern: str
) -> None:
    callback = DeadUnitCallback(reinit=ReinitConfig(patience=1, **{argument: pattern}))
    model = dying()
    with pytest.raises(SelectionError, match=f"`reinit.{argument}`.*'{pattern}'"):
        fit(model, tmp_path, callback)
    assert model.trainer.global_step == 0


def test_windows_warn_of_a_pattern_of_layers_to_revive_that_matches_none(tmp_path: Any) -> None:
    config = ReinitConfig(every_n_train_steps=2, layers="c")
    callback = DeadUnitCallback(reinit=config)
    with pytest.warns(UserWarning, match=r"`reinit.layers`.*'c' matches none"):
        fit(dying(), tmp_path, callback, limit_val_batches=0, max_epochs=1)
