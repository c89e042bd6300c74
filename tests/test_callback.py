"""DeadUnitCallback in a real Trainer, in every way in which people train."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from packaging.version import Version
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, DeadUnitsReport, find_dead_units
from tests.modules import DEAD, Lit, data, loader

MakeTrainer = Callable[..., pl.Trainer]


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def assert_equals_scan(report: DeadUnitsReport | None, model: pl.LightningModule) -> None:
    """The report of the last validation is what one pass over the same data finds."""
    assert report is not None
    net = copy.deepcopy(model.net)
    truth = find_dead_units(net, [(data().tensors[0],)])
    assert [name.removeprefix("net.") for name in report.layers] == list(truth.layers)
    for mine, its in zip(report.layers.values(), truth.layers.values(), strict=True):
        assert torch.equal(mine.zeros, its.zeros)
        assert mine.observations == its.observations


def test_fit_with_no_argument(make_trainer: MakeTrainer) -> None:
    model, callback = Lit(), DeadUnitCallback()
    trainer = make_trainer(callbacks=[callback])
    trainer.fit(model, loader(), loader())
    assert_equals_scan(callback.report, model)
    layer = callback.report.layers["net.act"]
    assert layer.dead.tolist() == DEAD
    assert layer.born_dead[DEAD].all()
    assert list(callback.report.layers) == ["net.act", "net.relu"]
    assert trainer.callback_metrics["dead_fraction/net.act"] == len(DEAD) / 16
    assert trainer.callback_metrics["dead_fraction/total"] == pytest.approx(
        callback.report.dead_fraction
    )
    assert trainer.callback_metrics["dead_layers"] == 0
    assert hooks_of(model) == 0


@pytest.mark.filterwarnings("ignore:Dead units")
def test_where_nothing_is_judged_nothing_is_logged(make_trainer: MakeTrainer) -> None:
    model = Lit()
    model.net = nn.Linear(8, 2)
    trainer = make_trainer(callbacks=[DeadUnitCallback(every_n_train_steps=1)])
    trainer.fit(model, loader(), loader())
    assert not [name for name in trainer.callback_metrics if "dead" in name]


OPTIONS: dict[str, dict[str, Any]] = {
    "barebones": dict(barebones=True),
    "fast_dev_run": dict(fast_dev_run=True),
    "no sanity check": dict(num_sanity_val_steps=0),
    "several validations per epoch": dict(val_check_interval=0.5),
    "by steps": dict(val_check_interval=3, check_val_every_n_epoch=None),
    "gradient accumulation": dict(accumulate_grad_batches=2),
    "bf16 autocast": dict(precision="bf16-mixed"),
    "true bf16": dict(precision="bf16-true"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_kind_of_fit_finds_the_dead_and_leaves_nothing(
    make_trainer: MakeTrainer, options: dict[str, Any]
) -> None:
    model, callback = Lit(), DeadUnitCallback()
    make_trainer(callbacks=[callback], **options).fit(model, loader(), loader())
    assert callback.report is not None
    assert callback.report.layers["net.act"].dead.tolist() == DEAD
    assert hooks_of(model) == 0
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_scan_inside_of_a_validation_step_is_not_counted(make_trainer: MakeTrainer) -> None:
    class Scanning(Lit):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.scanned = find_dead_units(self.net, [batch[0][:2]])
            super().validation_step(batch, batch_idx)

    class Plain(Scanning):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            Lit.validation_step(self, batch, batch_idx)
            Lit.validation_step(self, batch, batch_idx)

    reports = []
    for model in (Scanning(), Plain()):
        callback = DeadUnitCallback()
        make_trainer(callbacks=[callback]).validate(model, loader(), verbose=False)
        assert callback.report is not None
        reports.append({n: layer.zeros.tolist() for n, layer in callback.report.layers.items()})
    assert reports[0] == reports[1]


class Probes(pl.Callback):
    """Runs the model, or a part of it, on what wakes every unit, in the hooks of batches."""

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        with torch.no_grad():
            pl_module(torch.full((4, 8), 1e9))
            pl_module.net(torch.full((4, 8), -1e9))
            pl_module.net.act(torch.ones(4, 16))
            torch.relu(torch.ones(4, 16))
            torch.relu(next(pl_module.parameters()) @ torch.ones(8, 3))

    on_validation_batch_end = on_train_batch_end = on_validation_batch_start
    on_test_batch_end = on_predict_batch_start = on_validation_batch_start


@pytest.mark.parametrize("first", [True, False])
def test_what_other_callbacks_compute_is_not_counted(
    make_trainer: MakeTrainer, first: bool
) -> None:
    ours, alone = (DeadUnitCallback(every_n_train_steps=2) for _ in range(2))
    callbacks = [Probes(), ours] if first else [ours, Probes()]
    for callback, run in ((alone, [alone]), (ours, callbacks)):
        trainer = make_trainer(callbacks=run)
        trainer.fit(Lit(), loader(), loader())
        known = callback.window_report.to_dict(), callback.report.to_dict()
        trainer.test(Lit(), loader(), verbose=False)
        tested = callback.report.to_dict()
        trainer.predict(Lit(), loader())
        if callback is alone:
            expected = known, tested, callback.report.to_dict()
    assert (known, tested, ours.report.to_dict()) == expected


class Drawn(nn.Module):
    """A parametrisation that draws whenever it is asked for the weight (DropConnect)."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.2)


@pytest.mark.parametrize("kind", ["spectral norm", "drawn"])
def test_weights_that_are_computed_are_not_computed_once_more(
    make_trainer: MakeTrainer, kind: str
) -> None:
    outcomes = []
    for callbacks in ([], [DeadUnitCallback(reinit=True)]):
        model = Lit()
        pl.seed_everything(1, verbose=False)
        for layer in (model.net.fc1, model.net.fc2):
            if kind == "drawn":
                nn.utils.parametrize.register_parametrization(layer, "weight", Drawn())
            else:
                nn.utils.parametrizations.spectral_norm(layer)
        make_trainer(callbacks=callbacks, max_epochs=2).fit(model, loader(), loader())
        outcomes.append([value.clone() for value in model.state_dict().values()])
    assert all(map(torch.equal, *outcomes))


def test_training_is_not_touched(make_trainer: MakeTrainer) -> None:
    bare, watched = Lit(), Lit()
    for model, callbacks in ((bare, []), (watched, [DeadUnitCallback()])):
        pl.seed_everything(1, verbose=False)
        make_trainer(callbacks=callbacks).fit(model, loader(), loader())
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_every_stage_alone_leaves_a_report(make_trainer: MakeTrainer, stage: str) -> None:
    model, callback = Lit(), DeadUnitCallback()
    trainer = make_trainer(callbacks=[callback])
    options = {} if stage == "predict" else {"verbose": False}
    getattr(trainer, stage)(model, loader(), **options)
    assert_equals_scan(callback.report, model)
    assert callback.report.layers["net.act"].dead_since is None
    assert hooks_of(model) == 0
    logged = [name for name in trainer.callback_metrics if "dead" in name]
    assert bool(logged) == (stage == "validate")


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_after_a_fit_knows_since_when_units_are_dead(
    make_trainer: MakeTrainer, stage: str
) -> None:
    model, callback = Lit(), DeadUnitCallback()
    trainer = make_trainer(callbacks=[callback])
    trainer.fit(model, loader(), loader())
    since = callback.report.layers["net.act"].dead_since
    getattr(trainer, stage)(model, loader())
    assert torch.equal(callback.report.layers["net.act"].dead_since, since)


def test_a_layer_that_runs_from_the_second_validation_on_has_its_plain_name(
    make_trainer: MakeTrainer,
) -> None:
    class Later(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.ReLU()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch > 0:
                self.late(self.net.fc1(batch[0]))

    callback = DeadUnitCallback()
    with pytest.warns(UserWarning, match="late: it did not run"):
        make_trainer(callbacks=[callback]).fit(Later(), loader(), loader())
    assert list(callback.report.layers) == ["net.act", "net.relu", "late"]


def test_several_validation_loaders_are_one_epoch(make_trainer: MakeTrainer) -> None:
    model, callback = Lit(), DeadUnitCallback()
    halves = [loader(32), loader(32, seed=1)]
    make_trainer(callbacks=[callback], max_epochs=1).fit(model, loader(), halves)
    assert callback.report.layers["net.act"].observations == 64


def test_layers_made_in_configure_model(make_trainer: MakeTrainer) -> None:
    class Late(Lit):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = Lit().net

    callback = DeadUnitCallback(layers="net.act")
    make_trainer(callbacks=[callback]).fit(Late(), loader(), loader())
    assert callback.report.layers["net.act"].dead.tolist() == DEAD


def test_manual_optimisation_counts_steps_as_the_charts_do(make_trainer: MakeTrainer) -> None:
    class Manual(Lit):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback]).fit(Manual(), loader(), loader())
    assert callback.report.step == 7


def test_death_is_dated_and_birth_told_apart(make_trainer: MakeTrainer) -> None:
    model, callback = Lit(kill={5: [7], 6: [8], 9: [9]}), DeadUnitCallback()
    make_trainer(callbacks=[callback], max_epochs=4).fit(model, loader(), loader())
    layer = callback.report.layers["net.act"]
    assert layer.dead.tolist() == sorted([*DEAD, 7, 8, 9])
    # Lightning draws the validation of an epoch at the step of its last batch, counted from 0.
    assert layer.dead_since[DEAD].tolist() == [3, 3, 3]
    assert layer.dead_since[[7, 8, 9]].tolist() == [7, 7, 11]
    assert layer.dead_since[1] == -1
    assert layer.born_dead.nonzero().flatten().tolist() == DEAD


def test_resume_keeps_the_history(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    kill = {2: [7], 6: [8]}
    whole = DeadUnitCallback()
    make_trainer(callbacks=[whole], max_epochs=4).fit(Lit(kill), loader(), loader())
    path = tmp_path / "half.ckpt"
    first = make_trainer(callbacks=[DeadUnitCallback()], max_epochs=2)
    first.fit(Lit(kill), loader(), loader())
    first.save_checkpoint(path)
    resumed = DeadUnitCallback()
    make_trainer(callbacks=[resumed], max_epochs=4).fit(
        Lit(kill), loader(), loader(), ckpt_path=path
    )
    for name, layer in whole.report.layers.items():
        assert torch.equal(layer.dead_since, resumed.report.layers[name].dead_since)
        assert torch.equal(layer.born_dead, resumed.report.layers[name].born_dead)
    assert whole.report.diagnosis == resumed.report.diagnosis


def test_two_instances_keep_states_apart(make_trainer: MakeTrainer) -> None:
    one, two = DeadUnitCallback(layers="net.act"), DeadUnitCallback(exclude="net.act")
    assert one.state_key != two.state_key
    make_trainer(callbacks=[one, two]).fit(Lit(), loader(), loader())
    assert list(one.report.layers) == ["net.act"]
    assert list(two.report.layers) == ["net.relu"]


def test_early_stopping_and_checkpoints_monitor_it(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    stop = EarlyStopping("dead_fraction/total", patience=1, mode="min")
    keep = ModelCheckpoint(
        tmp_path,
        monitor="dead_fraction/total",
        filename="dead={dead_fraction/total:.2f}",
        auto_insert_metric_name=False,
    )
    trainer = make_trainer(
        callbacks=[DeadUnitCallback(), stop, keep], max_epochs=9, enable_checkpointing=True
    )
    trainer.fit(Lit(lr=0.0), loader(), loader())
    assert stop.stopped_epoch == 1
    assert Path(keep.best_model_path).name.startswith("dead=0.")


def test_weight_averaging(make_trainer: MakeTrainer) -> None:
    weight_averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    callback = DeadUnitCallback()
    averaging = weight_averaging.EMAWeightAveraging(decay=0.5)
    model = Lit()
    make_trainer(callbacks=[averaging, callback]).fit(model, loader(), loader())
    assert callback.report.layers["net.act"].dead.tolist() == DEAD
    assert hooks_of(model) == 0
    assert hooks_of(averaging._average_model or model) == 0


@pytest.mark.parametrize("what", ["whole", "inner"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "after a first validation"])
def test_compiled_equals_eager(make_trainer: MakeTrainer, what: str, early: bool) -> None:
    torch._dynamo.reset()
    eager = DeadUnitCallback()
    make_trainer(callbacks=[eager], max_epochs=1).fit(Lit(), loader(), loader())
    model, callback = Lit(), DeadUnitCallback()
    if not early:
        make_trainer(callbacks=[callback], max_epochs=1).validate(model, loader(), verbose=False)
    if what == "inner":
        model.net = torch.compile(model.net, backend="eager")
    given = torch.compile(model, backend="eager") if what == "whole" else model
    make_trainer(callbacks=[callback], max_epochs=1).fit(given, loader(), loader())
    for name, layer in eager.report.layers.items():
        assert torch.equal(layer.zeros, callback.report.layers[name].zeros)
        assert layer.observations == callback.report.layers[name].observations


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(
    make_trainer: MakeTrainer, error: type[BaseException]
) -> None:
    class Failing(Lit):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])
            raise error("on purpose")

    model, callback = Failing(), DeadUnitCallback()
    expected = SystemExit if error is KeyboardInterrupt else RuntimeError
    with pytest.raises(expected):
        make_trainer(callbacks=[callback]).fit(model, loader(), loader())
    assert hooks_of(model) == 0
    assert torch.overrides._get_current_function_mode_stack() == []


def test_monitoring_that_fails_warns_once_and_training_goes_on(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("lightning_deadunits.reporting.history.History.record", broken)
    trainer, model = make_trainer(callbacks=[DeadUnitCallback()]), Lit()
    with pytest.warns(UserWarning, match="(?s)watches no longer.*in broken") as caught:
        trainer.fit(model, loader(), loader())
    assert sum("watches no longer" in str(warning.message) for warning in caught) == 1
    assert trainer.global_step == 8
    assert hooks_of(model) == 0


@pytest.mark.parametrize("argument", ["layers", "exclude"])
def test_an_impossible_pattern_is_refused_before_training(
    make_trainer: MakeTrainer, argument: str
) -> None:
    trainer = make_trainer(callbacks=[DeadUnitCallback(**{argument: "encoder.*"})])
    with pytest.raises(ValueError, match=r"'encoder\.\*' can match none.*net\.fc1"):
        trainer.fit(Lit(), loader(), loader())
    assert trainer.global_step == 0


def test_a_pattern_that_matches_nothing_that_runs_is_refused_in_the_sanity_check(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(callbacks=[DeadUnitCallback(layers="net.gelu")])
    with pytest.raises(ValueError, match=r"matches none\..* there are: net\.act, net\.relu"):
        trainer.fit(Lit(), loader(), loader())
    assert trainer.global_step == 0


def lit_without_activation() -> Lit:
    model = Lit()
    model.net = nn.Sequential(nn.Linear(8, 2), nn.Tanh())  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("sanity", [0, 2], ids=["no sanity check", "sanity check"])
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_model_of_which_nothing_can_be_judged_is_a_warning_in_every_stage(
    make_trainer: MakeTrainer, stage: str, sanity: int
) -> None:
    trainer = make_trainer(callbacks=[DeadUnitCallback()], num_sanity_val_steps=sanity)
    loaders = (loader(), loader()) if stage == "fit" else (loader(),)
    with pytest.warns(UserWarning, match="Expected a model with an activation") as told:
        result = getattr(trainer, stage)(lit_without_activation(), *loaders)
    assert sum("Expected a model with" in str(w.message) for w in told) == 1
    if stage == "fit":
        assert trainer.global_step == 8
    else:
        assert result


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_pattern_in_vain_costs_no_finished_pass(make_trainer: MakeTrainer, stage: str) -> None:
    trainer = make_trainer(callbacks=[DeadUnitCallback(layers="net.gelu")])
    with pytest.warns(UserWarning, match="'net.gelu' matches none"):
        assert getattr(trainer, stage)(Lit(), loader())


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_impossible_pattern_is_refused_before_a_batch_has_run(
    make_trainer: MakeTrainer, stage: str
) -> None:
    model = Lit()
    calls: list[int] = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(callbacks=[DeadUnitCallback(layers="encoder.*")])
    with pytest.raises(ValueError, match=r"'encoder\.\*' can match none"):
        getattr(trainer, stage)(model, loader())
    assert not calls


def test_a_layer_named_by_the_user_that_runs_later_passes_the_sanity_check(
    make_trainer: MakeTrainer,
) -> None:
    class Rare(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.rare = nn.ReLU()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if not self.trainer.sanity_checking:
                self.rare(self.net.fc1(batch[0]))
            super().validation_step(batch, batch_idx)

    callback = DeadUnitCallback(layers="rare")
    make_trainer(callbacks=[callback]).fit(Rare(), loader(), loader())
    assert callback.report.layers["rare"].observations == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dead_threshold=0.0), "dead_threshold"),
        (dict(dead_threshold=1.5), "dead_threshold"),
        (dict(atol=-1.0), "atol"),
        (dict(layers=[]), "layers"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeadUnitCallback(**options)


def test_no_validation_is_told(make_trainer: MakeTrainer) -> None:
    with pytest.warns(UserWarning, match="but there is none"):
        make_trainer(callbacks=[DeadUnitCallback()]).fit(Lit(), loader())


def test_a_wholly_dead_layer_is_called_out(make_trainer: MakeTrainer) -> None:
    model, callback = Lit(), DeadUnitCallback()
    nn.init.constant_(model.net.fc2.bias, -1000)
    trainer = make_trainer(callbacks=[callback])
    with pytest.warns(UserWarning, match="Every unit of net.relu is dead") as caught:
        trainer.fit(model, loader(), loader())
    told = [w for w in caught if "Every unit of" in str(w.message)]
    assert len(told) == 1
    assert trainer.callback_metrics["dead_layers"] == 1
    assert "Wholly dead" in str(callback.report)


def test_metric_modules_are_not_layers(make_trainer: MakeTrainer) -> None:
    from torchmetrics import Metric

    class Clamping(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

        def update(self, logits: Tensor) -> None:
            self.total = self.total + F.relu(logits).sum()

        def compute(self) -> Tensor:
            return self.total

    class Measured(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.metric = Clamping()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.metric(self(batch[0]))

    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback]).fit(Measured(), loader(), loader())
    assert list(callback.report.layers) == ["net.act", "net.relu"]


def test_a_callback_can_be_copied_and_pickled_in_the_middle(make_trainer: MakeTrainer) -> None:
    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback]).fit(Lit(), loader(), loader())
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert twin.report.layers["net.act"].dead.tolist() == DEAD


def test_the_twin_for_pytorch_lightning() -> None:
    import pytorch_lightning

    from lightning_deadunits.pytorch_lightning import DeadUnitCallback as Twin

    class Other(pytorch_lightning.LightningModule):
        forward, training_step = Lit.forward, Lit.training_step
        configure_optimizers = Lit.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net, self.lr = Lit().net, 0.01

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    # Lightning 2.5 takes callbacks of its own namespace only.
    old = Version(pl.__version__) < Version("2.6")
    for callback in (Twin(),) if old else (Twin(), DeadUnitCallback()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pytorch_lightning.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
            )  # fmt: skip
            trainer.fit(Other(), loader(), loader())
        assert callback.report.layers["net.act"].dead.tolist() == DEAD
