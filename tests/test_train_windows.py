"""Windows of training batches: exact, logged with and without a validation, resumed, summed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from lightning_deadunits.tensorboard_plugin.metadata import decode
from tests.modules import DEAD, Lit, data, loader
from tests.reference import zeros_by_loops

pytestmark = pytest.mark.forks

MakeTrainer = Callable[..., pl.Trainer]


class Seen(Lit):
    """Notes the very activations of every training batch, before and after each ReLU."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[np.ndarray] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.seen.append(self.net.fc1(batch[0]).clamp(min=0).numpy().copy())
        return super().training_step(batch, batch_idx)


def brute(batches: list[np.ndarray]) -> list[int]:
    return zeros_by_loops(torch.from_numpy(np.concatenate(batches)), 1).tolist()


class Noting(pl.Callback):
    """Writes down step, zeros and values per unit of every window, for the parent on disk, too."""

    def __init__(self, callback: DeadUnitCallback, folder: Path | None = None) -> None:
        self.callback, self.folder = callback, folder
        self.reports: list[tuple[int, list[int], int]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        report = self.callback.window_report
        if report is None or (self.reports and self.reports[-1][0] == report.step):
            return
        layer = report.layers["net.act"]
        self.reports.append((report.step, layer.zeros.tolist(), layer.observations))
        if self.folder is not None:
            torch.save(self.reports, self.folder / f"{trainer.global_rank}.pt")


def test_every_window_equals_brute_force(make_trainer: MakeTrainer) -> None:
    model, callback = Seen(), DeadUnitCallback(layers="net.act", every_n_train_steps=3)
    noting = Noting(callback)
    # Epochs of four batches: the second window spans two epochs; the last two batches fill none.
    make_trainer(callbacks=[callback, noting]).fit(model, loader())
    assert noting.reports == [(2, brute(model.seen[:3]), 48), (5, brute(model.seen[3:6]), 48)]
    assert callback.report is callback.window_report
    assert callback.report.layers["net.act"].born_dead.nonzero().flatten().tolist() == DEAD


def test_what_backward_computes_anew_is_not_counted(make_trainer: MakeTrainer) -> None:
    class Saving(Lit):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.net, x, use_reentrant=False)

    plain, saving = DeadUnitCallback(every_n_train_steps=4), DeadUnitCallback(every_n_train_steps=4)
    make_trainer(callbacks=[plain]).fit(Lit(), loader())
    make_trainer(callbacks=[saving]).fit(Saving(), loader())
    for name, layer in plain.report.layers.items():
        assert torch.equal(layer.zeros, saving.report.layers[name].zeros)
        assert layer.observations == saving.report.layers[name].observations == 64


def test_training_is_not_touched_by_windows(make_trainer: MakeTrainer) -> None:
    weights = []
    for callbacks in ([], [DeadUnitCallback(every_n_train_steps=3)]):
        pl.seed_everything(1, verbose=False)
        model = Lit()
        make_trainer(callbacks=callbacks).fit(model, loader())
        weights.append(model.state_dict())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert torch.overrides._get_current_function_mode_stack() == []


def logged(folder: str) -> tuple[EventAccumulator, set[str], set[str]]:
    events = EventAccumulator(folder, size_guidance={"tensors": 0, "scalars": 0}).Reload()
    ours = {tag for tag in events.Tags()["scalars"] if "dead" in tag or "zero" in tag}
    kinds = ("dead_units/", "dead_units_reinit/")  # the report's own tables are no vectors
    return events, ours, {tag for tag in events.Tags()["tensors"] if tag.startswith(kinds)}


SCALARS = {
    "dead_fraction/total", "dead_layers", "dead_fraction/net.act", "dead_fraction/net.relu",
    "zero_rate/net.act", "zero_rate/net.relu",
}  # fmt: skip
VECTORS = {"dead_units/net.act", "dead_units/net.relu"}


def test_without_validation_a_window_is_logged_as_a_validation_is(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    callback = DeadUnitCallback(every_n_train_steps=3)
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path, name="csv")
    trainer = make_trainer(callbacks=[callback], logger=[board, table], max_epochs=3)
    trainer.fit(Lit(), loader())
    events, scalars, vectors = logged(board.log_dir)
    assert (scalars, vectors) == (SCALARS, VECTORS)
    assert [event.step for event in events.Scalars("dead_fraction/net.act")] == [2, 5, 8, 11]
    assert [event.step for event in events.Tensors("dead_units/net.act")] == [2, 5, 8, 11]
    assert "zero_rate_per_unit/net.act" in events.Tags()["histograms"]
    assert trainer.callback_metrics["dead_fraction/net.act"] == len(DEAD) / 16
    assert "dead_fraction/net.act" in (Path(table.log_dir) / "metrics.csv").read_text()


def test_beside_a_validation_names_do_not_collide(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    callback, logger = DeadUnitCallback(every_n_train_steps=3), TensorBoardLogger(tmp_path)
    trainer = make_trainer(callbacks=[callback], logger=logger, max_epochs=3)
    trainer.fit(Lit(), loader(), loader(32))
    events, scalars, vectors = logged(logger.log_dir)
    assert scalars == SCALARS | {f"train/{name}" for name in SCALARS}
    assert vectors == VECTORS | {"dead_units/train/net.act", "dead_units/train/net.relu"}
    assert [event.step for event in events.Scalars("dead_fraction/net.act")] == [3, 7, 11]
    assert [event.step for event in events.Scalars("train/dead_fraction/net.act")] == [2, 5, 8, 11]
    assert callback.report.layers["net.act"].observations == 32
    assert callback.window_report.layers["net.act"].observations == 48
    assert callback.report.step == callback.window_report.step == 11
    for tag in ("dead_units/net.act", "dead_units/train/net.act"):
        content = events.SummaryMetadata(tag).plugin_data.content
        assert decode(content).made_by == ("net.fc1",)


def test_windows_can_be_monitored(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    stop = EarlyStopping("dead_fraction/total", patience=1, check_on_train_epoch_end=True)
    keep = ModelCheckpoint(tmp_path, monitor="dead_fraction/total", every_n_train_steps=3)
    callback = DeadUnitCallback(every_n_train_steps=3)
    trainer = make_trainer(
        callbacks=[callback, stop, keep], max_epochs=9, enable_checkpointing=True
    )
    trainer.fit(Lit(lr=0.0), loader())
    assert stop.stopped_epoch == 1
    assert float(keep.best_model_score) == pytest.approx(callback.report.dead_fraction)


class Stepping(Lit):
    """Takes the samples of its step: a loader begins anew where a run resumes inside an epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(data(16, seed=self.trainer.global_step).tensors, batch_idx)


@pytest.mark.parametrize("stop_at", [2, 3, 4, 7])
def test_a_run_resumed_inside_a_window_gives_the_same_windows(
    make_trainer: MakeTrainer, tmp_path: Path, stop_at: int
) -> None:
    def run(**extra: Any) -> list[tuple[int, list[int], int]]:
        callback = DeadUnitCallback(layers="net.act", every_n_train_steps=3)
        noting = Noting(callback)
        keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = make_trainer(
            callbacks=[callback, noting, keep], max_epochs=3, enable_checkpointing=True
        )
        trainer.fit(Stepping(kill={6: [7]}), loader(), **extra)
        return noting.reports

    whole = run()
    assert len(whole) == 4
    resumed = run(ckpt_path=tmp_path / f"step={stop_at}.ckpt")
    assert resumed == [report for report in whole if report[0] >= stop_at]


def test_reinitialisation_by_windows_leaves_a_report_and_logs(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    callback = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=2))
    logger = TensorBoardLogger(tmp_path)
    make_trainer(callbacks=[callback], logger=logger).fit(Lit(), loader())
    events, scalars, vectors = logged(logger.log_dir)
    assert scalars == SCALARS
    assert vectors >= {*VECTORS, "dead_units_reinit/net.act"}
    values = [event.value for event in events.Scalars("dead_fraction/net.act")]
    assert values[0] == len(DEAD) / 16
    assert values[-1] == 0
    assert callback.report.layers["net.act"].dead.tolist() == []


def test_reinitialisation_marks_both_series(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    callback = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=2))
    logger = TensorBoardLogger(tmp_path)
    make_trainer(callbacks=[callback], logger=logger).fit(Lit(), loader(), loader())
    vectors = logged(logger.log_dir)[2]
    assert vectors >= {"dead_units_reinit/net.act", "dead_units_reinit/train/net.act"}


def test_a_training_shorter_than_a_window_says_so(make_trainer: MakeTrainer) -> None:
    callback = DeadUnitCallback(every_n_train_steps=1000)
    with pytest.warns(UserWarning, match="there were 8, and a window takes 1000"):
        make_trainer(callbacks=[callback]).fit(Lit(), loader())
    assert callback.report is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(every_n_train_steps=0), ValueError, "at least 1"),
        (dict(every_n_train_steps=2.5), TypeError, "to be an int"),
        (
            dict(every_n_train_steps=5, reinit=ReinitConfig(every_n_train_steps=2)),
            ValueError, "that of `reinit`, 2",
        ),
    ],
)  # fmt: skip
def test_windows_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DeadUnitCallback(**options)


def test_a_pattern_that_matches_nothing_in_training_is_a_warning(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(callbacks=[DeadUnitCallback(layers="net.gelu", every_n_train_steps=2)])
    with pytest.warns(UserWarning, match="'net.gelu' matches none"):
        trainer.fit(Lit(), loader())
    assert trainer.global_step == 8


class Split(Lit):
    """Trains two processes on the batches of one: each takes every second sample of a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mine = slice(self.global_rank, None, self.trainer.world_size)
        return super().training_step([values[mine] for values in batch], batch_idx)


def test_two_processes_judge_windows_by_what_both_saw(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    reports = []
    for devices in (2, 1):
        folder = tmp_path / str(devices)
        folder.mkdir()
        callback = DeadUnitCallback(every_n_train_steps=2)
        trainer = make_trainer(
            strategy="ddp_fork" if devices == 2 else "auto", devices=devices, max_epochs=1,
            callbacks=[callback, Noting(callback, folder)], use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(Split(lr=0.0), loader())
        reports.append([torch.load(path) for path in sorted(folder.glob("*.pt"))])
    (first, second), (alone,) = reports
    assert first == second == alone
    assert [seen for *_, seen in alone] == [32, 32]


def test_a_second_fit_starts_fresh_and_a_continued_one_does_not(make_trainer: MakeTrainer) -> None:
    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback]).fit(Lit(kill={5: [7]}), loader(), loader())
    first = callback.history
    model = Lit()
    with torch.no_grad():
        model.net.fc1.bias[8] = -100.0
    trainer = make_trainer(callbacks=[callback], max_epochs=1)
    trainer.fit(model, loader(), loader())
    assert callback.history is not first
    layer = callback.report.layers["net.act"]
    assert layer.born_dead.nonzero().flatten().tolist() == sorted([*DEAD, 8])
    assert layer.dead_since[7] == -1
    second = callback.history
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader(), loader())
    assert callback.history is second
    assert callback.report.layers["net.act"].dead_since[8] == 3
