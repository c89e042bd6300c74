"""What a diagnosis says, and that it says no more than its figures tell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_deadunits import DeadUnitCallback, DeadUnitsReport
from lightning_deadunits.reporting import evidence as evidence_module
from lightning_deadunits.reporting.evidence import Biases, Evidence, Window, thinned
from lightning_deadunits.reporting.history import History
from tests.benchmarks.planted_causes import CAUSES, NETS, Net, trained
from tests.modules import DEAD, Lit, loader
from tests.reporting.made_up import report

MakeTrainer = Callable[..., pl.Trainer]
MANY = range(12)


def windows(*rates: float, weight_decay: float = 0.0, **losses: Any) -> list[Window]:
    """Return windows of ten steps, with one learning rate each."""
    found = [
        Window(10 * n, 10 * (n + 1), rate, rate, rate, weight_decay) for n, rate in enumerate(rates)
    ]
    for n, loss in enumerate(losses.get("losses", ())):
        found[n] = replace(found[n], loss=loss, loss_name="train_loss")
    return found


def lived(*validations: DeadUnitsReport, evidence: Evidence) -> DeadUnitsReport:
    """Record validations at steps 10, 20, ..., each with the windows until then."""
    history = History()
    for n, validation in enumerate(validations, 1):
        until = replace(evidence, windows=evidence.windows[:n])
        completed = history.record(validation, 10 * n, until)
    return completed


def test_a_spike_of_the_learning_rate_is_told_with_its_window_and_the_loss() -> None:
    known = Evidence(windows(0.1, 0.1, 2.0, 0.1, losses=(0.5, 0.25, 9.0, 2.3)))
    found = lived(report(), report(), report(*MANY), report(*MANY), evidence=known)
    assert found.cause == "learning_rate"
    assert found.diagnosis.startswith(
        "Learning rate: 12 of the 12 dead units died between steps 20 and 40, where the learning "
        "rate rose from 0.1 to 2. train_loss went from 0.25 to 2.3 meanwhile."
    )


def test_units_that_die_elsewhere_are_not_blamed_on_a_spike() -> None:
    known = Evidence(windows(0.1, 0.1, 0.1, 0.1, 2.0))
    found = lived(report(), report(*MANY), *[report(*MANY)] * 3, evidence=known)
    assert found.cause == "together"
    assert "between steps 10 and 20. The learning rate was 0.1 there." in found.diagnosis


def test_a_rate_that_only_falls_is_no_spike() -> None:
    known = Evidence(windows(1.0, 1.0, 0.1, 0.01))
    found = lived(report(), report(), report(*MANY), report(*MANY), evidence=known)
    assert found.cause == "together"


def test_weight_decay_is_named_only_where_there_is_some() -> None:
    dying = [report(*range(3 * n)) for n in range(5)]
    without = lived(*dying, evidence=Evidence(windows(*[0.1] * 5)))
    decayed = lived(*dying, evidence=Evidence(windows(*[0.1] * 5, weight_decay=0.05)))
    assert without.cause == decayed.cause == "steadily"
    assert "weight decay" not in without.diagnosis
    assert decayed.diagnosis.endswith("Lower the learning rate or the weight decay (0.05).")


def test_nothing_is_said_of_a_rate_or_a_loss_that_is_not_known() -> None:
    found = lived(report(), report(*MANY), evidence=Evidence([Window(0, 10), Window(10, 20)]))
    assert found.cause == "together"
    assert "learning rate was" not in found.diagnosis
    assert "loss" not in found.diagnosis
    assert "nan" not in found.diagnosis


def test_what_fired_before_training_was_not_born_dead() -> None:
    fired = {"act": torch.ones(20, dtype=torch.bool)}
    known = Evidence(windows(0.1), fired_before=fired)
    found = lived(report(*MANY), evidence=known)
    assert found.cause == "together"
    assert "died between steps 0 and 10" in found.diagnosis


@pytest.mark.parametrize(
    ("fired", "words"),
    [
        ({"act": torch.zeros(20, dtype=torch.bool)}, "fired neither before training nor at any"),
        ({}, "fired at no validation, the first of which was at step 10"),
    ],
)
def test_born_dead_says_what_it_rests_on(fired: dict[str, torch.Tensor], words: str) -> None:
    known = Evidence(windows(0.1, 0.1), fired_before=fired)
    found = lived(report(*MANY), report(*MANY), evidence=known)
    assert found.cause == "initialisation"
    assert found.diagnosis.startswith(f"Dead from the start: 12 of the 12 dead units {words}")


def test_low_initial_biases_are_told_and_excuse_the_inputs() -> None:
    low = Biases(torch.full((20,), -5.0), torch.full((20,), -5.0))
    known = Evidence(windows(0.1), biases={"act": low}, input_shift=8.0)
    found = lived(report(*range(16)), evidence=known)
    assert found.cause == "initialisation"
    assert "The biases of 100% of them began far below zero." in found.diagnosis


def test_shifted_inputs_need_a_first_layer_of_one_sided_units() -> None:
    known = Evidence(windows(0.1), input_shift=8.0)
    assert lived(report(*range(16)), evidence=known).cause == "shifted_inputs"
    assert lived(report(*range(8)), evidence=known).cause == "initialisation"
    normal = replace(known, input_shift=1.0)
    assert lived(report(*range(16)), evidence=normal).cause == "initialisation"


def test_biases_are_blamed_if_those_of_the_dead_fell_and_others_did_not() -> None:
    start, dead = torch.zeros(20), torch.arange(20) < 12
    dying = [report(*range(3 * n)) for n in range(5)]
    for fallen, cause in ((dead, "falling_biases"), (dead | True, "steadily")):
        moved = Biases(start, torch.where(fallen, -0.8, 0.1))
        found = lived(*dying, evidence=Evidence(windows(*[0.3] * 5), biases={"act": moved}))
        assert found.cause == cause
        if cause == "falling_biases":
            assert "of the 12 units that died between steps 10 and 50, 100% have" in found.diagnosis
            assert "in the median by 0.8 times" in found.diagnosis
            assert "The learning rate was 0.3 there." in found.diagnosis


def test_few_dead_units_are_nothing_to_explain() -> None:
    known = Evidence(windows(0.1, 5.0))
    assert lived(report(units=300), report(0, 1, 2, units=300), evidence=known).cause is None


def test_windows_are_joined_where_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "MOST_WINDOWS", 4)
    known = thinned(windows(0.1, 0.2, 9.0, 0.3, 0.4))
    assert [(it.start, it.end) for it in known] == [(0, 10), (10, 30), (30, 50)]
    assert [it.highest_rate for it in known] == [0.1, 9.0, 0.4]
    assert [it.first_rate for it in known] == [0.1, 0.2, 0.3]


# --- in a Trainer -------------------------------------------------------------------------------


def test_a_spike_between_two_validations_is_seen(make_trainer: MakeTrainer) -> None:
    class Spiking(Lit):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            group = self.optimizers().param_groups[0]
            group["lr"] = 5.0 if self.trainer.global_step == 9 else 0.01

    callback = DeadUnitCallback()
    trainer = make_trainer(callbacks=[callback], max_epochs=4)
    trainer.fit(Spiking(kill={10: list(range(6, 16))}), loader(), loader())
    assert callback.report.cause == "learning_rate"
    assert "between steps 7 and 15, where the learning rate rose from 0.01 to 5." in (
        callback.report.diagnosis
    )


def test_the_loss_and_the_rate_are_those_that_were_logged(make_trainer: MakeTrainer) -> None:
    callback = DeadUnitCallback()
    trainer = make_trainer(callbacks=[callback], max_epochs=2)
    trainer.fit(Lit(lr=0.03), loader(), loader())
    window = callback._circumstances._windows[-1]
    assert window.loss == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert (window.loss_name, window.first_rate, window.start, window.end) == (
        "val_loss", 0.03, 3, 7,
    )  # fmt: skip


def test_that_units_were_born_dead_is_known_from_the_sanity_check(
    make_trainer: MakeTrainer,
) -> None:
    known = {}
    for steps in (0, 2):
        callback = DeadUnitCallback(layers="net.act")
        trainer = make_trainer(callbacks=[callback], num_sanity_val_steps=steps, max_epochs=1)
        model = Lit(kill={1: list(range(6, 13))})
        trainer.fit(model, loader(), loader())
        assert callback.report["net.act"].born_dead.sum() == len(DEAD) + 7
        known[steps] = callback.report.cause
    assert known == {0: "initialisation", 2: "falling_biases"}


@pytest.fixture
def quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "name",
    [
        "healthy, SGD", "learning-rate spike, Adam", "initial biases far below zero",
        "biases drift, rate too large", "inputs with a large mean, SGD",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quiet")
def test_a_planted_cause_is_named_and_health_is_not_talked_about(
    net: Net, name: str, tmp_path: Path
) -> None:
    """One seed of each; ten are in ``tests/benchmarks/results/diagnosis.json``."""
    found = trained(net, CAUSES[name], 11, str(tmp_path))
    assert found.cause == CAUSES[name].expected, found.diagnosis
