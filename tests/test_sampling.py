"""One batch of every so many is counted: which, at what cost, and what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback, LayerReport, find_dead_units
from lightning_deadunits.observation.observer import Observer
from tests.modules import DEAD, Lit, data, loader
from tests.test_processes import Saving, Uneven, read

MakeTrainer = Callable[..., pl.Trainer]


def of_batches(model: Lit, *indices: int, size: int = 16) -> dict[str, LayerReport]:
    """Scan only these batches."""
    inputs = data().tensors[0].split(size)
    return find_dead_units(model.net, [inputs[index] for index in indices]).layers


def assert_same(measured: dict[str, LayerReport], truth: dict[str, LayerReport]) -> None:
    assert [name.removeprefix("net.") for name in measured] == list(truth)
    for mine, its in zip(measured.values(), truth.values(), strict=True):
        assert torch.equal(mine.zeros, its.zeros)
        assert mine.observations == its.observations


@pytest.mark.parametrize(("every", "counted"), [(1, (0, 1, 2, 3)), (3, (0, 3)), (9, (0,))])
def test_every_nth_batch_is_counted_from_the_first_on(
    make_trainer: MakeTrainer, every: int, counted: tuple[int, ...]
) -> None:
    model, callback = Lit(), DeadUnitCallback(every_n_batches=every)
    make_trainer(callbacks=[callback]).fit(model, loader(), loader())
    assert callback.report.every_n_batches == every
    assert_same(callback.report.layers, of_batches(model, *counted))


def test_each_dataloader_is_counted_from_its_first_batch_on(make_trainer: MakeTrainer) -> None:
    model, callback = Lit(), DeadUnitCallback(every_n_batches=2)
    trainer = make_trainer(callbacks=[callback])
    trainer.validate(model, [loader(48), loader(16)], verbose=False)
    truth = find_dead_units(model.net, [data(48).tensors[0].split(16)[i] for i in (0, 2)])
    assert callback.report.layers["net.act"].observations == 48
    other = find_dead_units(model.net, [data(16).tensors[0]])
    total = truth.layers["act"].zeros + other.layers["act"].zeros
    assert torch.equal(callback.report.layers["net.act"].zeros, total)


class Watched(Lit):
    """Notes in which batches anyone watches."""

    def on_validation_epoch_start(self) -> None:
        self.watched: list[tuple[bool, bool]] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        hooks = any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())
        self.watched.append((hooks, torch._C._len_torch_function_stack() > 0))
        super().validation_step(batch, batch_idx)


def test_what_is_not_counted_runs_as_if_nobody_watched(make_trainer: MakeTrainer) -> None:
    model = Watched()
    make_trainer(callbacks=[DeadUnitCallback(every_n_batches=2)]).validate(
        model, loader(), verbose=False
    )
    assert model.watched == [(True, True), (False, False)] * 2


def test_a_compiled_model_runs_its_plain_graph_where_it_is_not_counted(
    make_trainer: MakeTrainer,
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, callback = Lit(), DeadUnitCallback(every_n_batches=2)
    model.net = torch.compile(model.net, backend="eager", fullgraph=True)
    make_trainer(callbacks=[callback]).validate(model, loader(), verbose=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    model.net = model.net._orig_mod
    assert_same(callback.report.layers, of_batches(model, 0, 2))


def test_the_report_says_so_with_the_statistical_error(make_trainer: MakeTrainer) -> None:
    model, callback = Lit(), DeadUnitCallback(every_n_batches=2)
    make_trainer(callbacks=[callback]).fit(model, loader(), loader())
    layer = callback.report.layers["net.act"]
    assert layer.most_unseen == 3 / 32
    assert "of every 2 batches one was counted" in str(callback.report)
    assert "at most 3/n of the time, at 95 %: 0.094 or less, by the 32 values" in str(
        callback.report
    )
    assert "Sampled" not in str(find_dead_units(model.net, [data().tensors[0]]))


def test_the_rule_of_three_bounds_the_exact_binomial_bound() -> None:
    zeros = torch.zeros(1, dtype=torch.int64)
    for seen in (4, 30, 1000, 10**6):
        exact = 1 - 0.05 ** (1 / seen)  # the rate at which none in n has a chance of 5 %
        assert exact <= LayerReport("a", 1, 1, seen, zeros).most_unseen <= 1.6 * exact
    assert LayerReport("a", 1, 1, 2, zeros).most_unseen == 1.0
    assert LayerReport("a", 1, 1, 0, zeros).most_unseen != LayerReport("a", 1, 1, 0, zeros)


class Sometimes(Lit):
    """Uses one more layer, in every second batch only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.late = nn.ReLU()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx % 2:
            self.late(self.net.fc1(batch[0]))
        super().validation_step(batch, batch_idx)


def test_a_layer_of_other_batches_is_told_with_the_likely_reason(
    make_trainer: MakeTrainer,
) -> None:
    callback = DeadUnitCallback(every_n_batches=2)
    with pytest.warns(UserWarning, match=r"late: it did not run \(one of every 2 batches"):
        make_trainer(callbacks=[callback]).validate(Sometimes(), loader(), verbose=False)
    assert "late" not in callback.report.layers


def test_a_pattern_for_a_layer_of_other_batches_says_what_was_counted(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(callbacks=[DeadUnitCallback(layers="late", every_n_batches=2)])
    with pytest.warns(UserWarning, match=r"'late' matches none.*one of every 2 batches"):
        trainer.validate(Sometimes(), loader(), verbose=False)


def fickle() -> tuple[Lit, DataLoader[Any]]:
    """Return a module whose unit 1 fires in every second batch only, and those batches."""
    model, inputs = Lit(lr=0.0), data().tensors[0].clone()
    inputs[:, 0] = torch.tensor([-1.0, 1.0]).repeat_interleave(16).repeat(2)
    with torch.no_grad():
        model.net.fc1.weight[1], model.net.fc1.bias[1] = torch.eye(8)[0], 0.0
    return model, DataLoader(TensorDataset(inputs, data().tensors[1]), batch_size=16)


def test_what_fires_on_uncounted_batches_only_is_called_dead(make_trainer: MakeTrainer) -> None:
    for every, dead in ((1, DEAD), (2, sorted([*DEAD, 1]))):
        model, batches = fickle()
        callback = DeadUnitCallback(every_n_batches=every)
        make_trainer(callbacks=[callback]).validate(model, batches, verbose=False)
        assert callback.report.layers["net.act"].dead.tolist() == dead


def test_reinit_refuses_what_fires_on_its_example_though_the_sample_called_it_dead(
    make_trainer: MakeTrainer,
) -> None:
    model, batches = fickle()
    callback = DeadUnitCallback(every_n_batches=2, reinit=True)
    make_trainer(callbacks=[callback], max_epochs=4).fit(model, batches, batches)
    events = callback.reviver.events
    done = [unit for event in events for unit in event.reinitialised["net.act"]]
    assert sorted(set(done)) == DEAD
    assert events[0].refused["net.act"] == {1: "it fires on the recorded batch"}


@pytest.mark.forks
@pytest.mark.parametrize("split", [24, 0])
def test_processes_with_different_numbers_of_batches_sample_alike(
    make_trainer: MakeTrainer, tmp_path: Path, split: int
) -> None:
    trainer = make_trainer(
        strategy="ddp_fork", devices=2, callbacks=[Saving(tmp_path, every_n_batches=2)],
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.validate(Uneven(split), verbose=False)
    model = Uneven(split)
    parts = [range(split), range(split, 64)]
    counted = [
        torch.stack([data()[index][0] for index in part[start : start + 8]])
        for part in parts
        for start in range(0, len(part), 16)
    ]
    truth = find_dead_units(model.net, counted).layers
    results = read(tmp_path)
    assert len(results) == 2
    for layers, calls, _ in results:
        assert calls["reduce"] == 1
        for name in ("act", "relu"):
            zeros, seen, _ = layers[f"net.{name}"]
            assert torch.equal(zeros, truth[name].zeros)
            assert seen == truth[name].observations


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-2, ValueError), (True, TypeError),
                                              (1.5, TypeError), ("2", TypeError)])  # fmt: skip
def test_the_option_is_checked_at_once(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="Expected `every_n_batches`"):
        DeadUnitCallback(every_n_batches=given)


def test_callbacks_that_sample_otherwise_have_a_state_of_their_own() -> None:
    plain = DeadUnitCallback()
    assert plain.state_key != DeadUnitCallback(every_n_batches=2).state_key
    assert "every_n_batches" not in plain.state_key


def test_nothing_is_told_without_sampling(make_trainer: MakeTrainer) -> None:
    callback = DeadUnitCallback()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batches was counted.*")
        make_trainer(callbacks=[callback]).validate(Sometimes(), loader(), verbose=False)
    assert callback.report.every_n_batches == 1
    assert "late" in callback.report.layers


def test_pause_leaves_no_hook_and_resume_brings_the_same_back() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    observer = Observer(net)
    with observer.watching():
        before = [dict(m._forward_hooks) for m in net.modules()]
        observer.pause()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        observer.resume()
        assert [dict(m._forward_hooks) for m in net.modules()] == before
    assert F.relu is torch.nn.functional.relu
