"""With re-initialisation the user's steps run as often as without, on the same batches.

Up to the first event nothing differs in a bit, whatever a step writes, logs, draws or counts; the
calls and the random state never differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import AT_VALIDATION, Mortal, data, events, trained
from tests.reinit.training.test_ranks import two
from tests.reinit.training.witness import Traces, Witness

pytestmark = pytest.mark.forks

BOTH = {"loaders": (data(), [data(), data(48)])}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "at validation": (True, {}),
    "patience 1": (ReinitConfig(patience=1, grace_period=0), {}),
    "windows": (ReinitConfig(every_n_train_steps=2), {}),
    "windows without validation": (ReinitConfig(every_n_train_steps=3), {"limit_val_batches": 0}),
    "accumulated": (True, {"accumulate_grad_batches": 3}),
    "windows, accumulated": (ReinitConfig(every_n_train_steps=2), {"accumulate_grad_batches": 3}),
    "manual": (True, {"manual": True}),
    "manual, windows": (ReinitConfig(every_n_train_steps=2), {"manual": True}),
    "every second epoch": (ReinitConfig(patience=1), {"check_val_every_n_epoch": 2}),
    "within an epoch": (True, {"val_check_interval": 2}),
    "at a share of an epoch": (True, {"val_check_interval": 0.5}),
    "over epochs": (True, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "dormant": (ReinitConfig(patience=1, criterion="dormant"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_calls_are_as_without_and_nothing_differs_before_the_first_event(
    tmp_path: Path, name: str
) -> None:
    reinit, options = CASES[name]
    options = dict(options)
    manual = options.pop("manual", False)

    def run(where: str, *callbacks: Callback) -> tuple[Witness, list[dict[str, str]]]:
        folder = tmp_path / where
        folder.mkdir()
        model, traces = Witness(folder, manual), Traces()
        logger = TensorBoardLogger(folder, version=0)
        trained(
            model, traces, *callbacks, max_epochs=5, num_sanity_val_steps=2, **BOTH,
            logger=logger, log_every_n_steps=1, **options,
        )  # fmt: skip
        return model, traces.at

    callback = DeadUnitCallback(reinit=reinit)
    (alone, expected), (watched, traces) = run("alone"), run("watched", callback)
    assert watched.journal == alone.journal
    assert callback.reviver is not None
    first = callback.reviver.events[0]
    assert first.reinitialised, str(first)
    batch = next(
        number for number, (mine, its) in enumerate(zip(traces, expected, strict=True))
        if mine["weights"] != its["weights"]
    ) - 1  # fmt: skip
    assert batch >= 1
    for number in range(batch + 1):
        differing = [key for key, its in expected[number].items() if traces[number][key] != its]
        assert not differing, (number, differing)
    for mine, its in zip(traces, expected, strict=True):
        assert mine["random state"] == its["random state"]


class Leaves(Callback):
    """Leaves the journal of each process in a file, and how many events there were."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        revivers = [c.reviver for c in trainer.callbacks if isinstance(c, DeadUnitCallback)]
        events = [event.reinitialised for each in revivers for event in each.events]
        torch.save((pl_module.journal, events), self.folder / f"journal-{trainer.global_rank}")


@pytest.mark.parametrize("name", ["at validation", "windows", "manual"])
def test_calls_are_as_without_on_two_processes(tmp_path: Path, name: str) -> None:
    reinit, options = CASES[name]
    manual = "manual" in options

    def run(where: str, *callbacks: Callback) -> list[Any]:
        folder = tmp_path / where
        folder.mkdir()
        strategy = two(find_unused_parameters=True)
        trained(Witness(folder, manual), *callbacks, Leaves(folder), **strategy, **BOTH)
        return [torch.load(folder / f"journal-{rank}", weights_only=False) for rank in (0, 1)]

    alone, watched = run("alone"), run("watched", DeadUnitCallback(reinit=reinit))
    assert [journal for journal, _ in watched] == [journal for journal, _ in alone]
    assert watched[0][1] == watched[1][1]
    assert any(watched[0][1])


CALLS = [0]


@torch.library.custom_op("deadunits_tests::jitter", mutates_args=())
def jitter(x: Tensor) -> Tensor:
    """An operator that was written in Python, and draws from NumPy's generator."""
    CALLS[0] += 1
    return x + 0.01 * float(np.random.rand())


jitter.register_autograd(lambda ctx, gradient: gradient)


def overridable(x: Tensor) -> Tensor:
    """A function that a function mode is asked for."""
    if has_torch_function_unary(x):
        return handle_torch_function(overridable, (x,), x)
    CALLS[0] += 1
    return x + 1


@pytest.mark.parametrize("function", [jitter, overridable], ids=["operator", "function"])
def test_no_operator_of_the_users_is_run_by_a_replay(function: Any) -> None:
    class Own(Mortal):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step([function(batch[0]), *batch[1:]], batch_idx)

    counted = []
    for callbacks in ([], [DeadUnitCallback(reinit=AT_VALIDATION, verbose=False)]):
        CALLS[0] = 0
        np.random.seed(0)
        trained(Own(), *callbacks)
        counted.append((CALLS[0], np.random.rand()))
    assert counted[0] == counted[1]
    assert counted[0][0]
    (ours,) = callbacks
    assert events(ours)  # what comes after it is revived
