"""The benchmarks of repair and of a million steps do what they say, quickly.

Run with ``pytest -o addopts= tests/benchmarks/test_repair.py``.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks import fresh_scale, million, repair
from tests.benchmarks.repair import Digits, Run
from tests.benchmarks.slowly_changing import stream


def dead(net: nn.Sequential, x: Tensor) -> list[int]:
    """Count the units of each ReLU that fire on none of the samples."""
    counts = []
    for module in net:
        x = module(x)
        if isinstance(module, nn.ReLU):
            counts.append(int((x.transpose(0, 1).flatten(1) == 0).all(1).sum()))
    return counts


@pytest.mark.parametrize("net", repair.NETS)
@pytest.mark.parametrize("kill", ["biases", "weights"])
def test_seven_of_eight_units_are_killed(net: str, kill: str) -> None:
    torch.manual_seed(0)
    model = Digits(Run(net, "SGD", kill, "killed", 0)).eval()
    model.kill()
    sizes = [len(maker.bias) for maker in repair.makers(model.net)]
    counts = dead(model.net, torch.rand(64, 64))
    assert all(count >= size * 7 // 8 for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize("net", repair.NETS)
def test_redrawn_units_are_as_many_as_asked_for_and_silent(net: str) -> None:
    torch.manual_seed(0)
    model = Digits(Run(net, "Adam", "biases", "random units", 0))
    optimizer = model.configure_optimizers()
    model.training_step([torch.rand(8, 64), torch.randint(0, 10, (8,))], 0).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    relu = next(i for i, module in enumerate(model.net) if isinstance(module, nn.ReLU))
    weights = [p for p in model.net.parameters() if p.ndim > 1]
    before = weights[0].detach().clone()
    repair.redraw_(model, f"net.{relu}", 5, optimizer)
    fresh = (weights[0] != before).flatten(1).any(1)
    assert int(fresh.sum()) == 5
    silent = (weights[1].detach().transpose(0, 1).flatten(1) == 0).all(1)
    assert torch.equal(silent, fresh)
    moment = optimizer.state[weights[0]]["exp_avg"]
    assert not moment[fresh].any()
    assert moment[~fresh].any()


def result(fate: str, kill: str, accuracies: list[float], **more: Any) -> dict[str, Any]:
    run = {"net": "MLP", "optimizer": "SGD", "kill": kill, "fate": fate, "seed": 0}
    return {**run, "accuracies": accuracies, "reinitialised": {}, **more}


def test_gaps_are_to_a_healthy_run_and_to_one_that_learnt_as_long() -> None:
    healthy = [float(epoch) for epoch in range(repair.EPOCHS)]
    results = [result("healthy", "", healthy)]
    results += [result(fate, "biases", [20.0]) for fate in repair.ALL_FATES if fate != "revived"]
    results.append(result("revived", "biases", [25.0], reinitialised={"3": 7, "5": 1}))
    (row,) = repair.table(results)
    assert row["revived minus healthy"]["mean"] == 25 - 29
    # Revived in epoch 3, so it has learnt for 27 of 30; a healthy one has 26.0 after as many.
    assert row["revived minus a fresh start then"]["mean"] == 25 - 26
    assert row["random units minus healthy"]["mean"] == 20 - 29
    assert "revived minus healthy: at least -1.0 in 0 of 1." in repair.said([row])


def test_a_trainer_sees_the_stream_of_the_benchmark() -> None:
    block = next(stream(range(3, 4)))
    for step, (x, y) in enumerate(islice(million.Examples(10_000, 3), 50)):
        assert x.shape == (1, 20)
        assert x[0].tolist() == [*block.slow[:, 0].tolist(), *block.fast[step, :, 0].tolist()]
        assert y.tolist() == [[block.target[step, 0]]]


def test_fresh_weights_have_the_scale_that_is_asked_for() -> None:
    example = torch.rand(8, 64)
    sizes = {}
    for scale in ("as nn.Linear", "matched", "Kaiming"):
        learner = fresh_scale.new_learner("Adam", 2)
        weight = learner.networks.own.weights[0]
        weight[:, : fresh_scale.ALIVE] *= 3.0
        fresh_scale.revive_(learner, scale, example)
        fresh = weight[:, fresh_scale.ALIVE :]
        sizes[scale] = float(fresh.square().mean().sqrt())
        # Live units do not read them; fresh ones may, for they are silent themselves.
        outgoing = learner.networks.own.weights[1][:, : fresh_scale.ALIVE, fresh_scale.ALIVE :]
        assert not outgoing.any()
        learner.networks.forward(example.expand(2, -1, -1))
        fires = learner.networks.activations(0)[..., fresh_scale.ALIVE :] > 0
        assert fires.sum(1).unique().tolist() == [4]
    bound = 64**-0.5 / 3**0.5
    assert sizes["as nn.Linear"] == pytest.approx(bound, rel=0.05)
    assert sizes["matched"] == pytest.approx(3 * bound, rel=0.1)
    assert sizes["Kaiming"] == pytest.approx(6**0.5 * bound, rel=0.05)
