"""Weights that no process holds whole: re-initialisation is refused once, all else goes on."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn, optim
from torch.multiprocessing import start_processes

from lightning_deadunits import DeadUnitCallback, reinit_dead_units
from lightning_deadunits.observation.splits import REASON
from tests.mortal import SCHEDULES
from tests.reinit.training import sharded_training
from tests.zoo import kill

pytestmark = pytest.mark.forks

TWO_RANKS = (0, 1)


def _process(rank: int, port: int, folder: Path) -> None:
    """Be one of two processes that ``torchrun`` would have started."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sharded_training.main(folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of :mod:`sharded_training` in two processes, by case, schedule and rank."""
    folder = tmp_path_factory.mktemp("sharded")
    port = find_free_network_port()
    # Forked, as they would take ten seconds to import everything anew.
    start_processes(_process, (port, folder), nprocs=2, start_method="fork")
    return {path.stem: torch.load(path) for path in folder.iterdir()}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", ["FSDP2", "tensor parallel"])
def test_sharded_weights_are_refused_once_with_the_reason(
    results: dict[str, Any], case: str, schedule: str
) -> None:
    first, second = (results[f"{case}, {schedule}, {rank}"] for rank in TWO_RANKS)
    (told,) = first["warnings"]
    assert "will not be re-initialised: the model is sharded" in told
    assert second["warnings"] == []
    assert first["events"] == second["events"] == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_optimizer_that_shards_its_state_is_refused(
    results: dict[str, Any], schedule: str
) -> None:
    for rank in TWO_RANKS:
        result = results[f"ZeRO, {schedule}, {rank}"]
        assert result["events"] == []
        assert "ZeroRedundancyOptimizer holds the state" in result["refused"][0]["relu.bn"][1]


@pytest.mark.parametrize("case", ["FSDP2", "ZeRO"])
def test_counts_stay_exact(results: dict[str, Any], case: str) -> None:
    for rank in TWO_RANKS:
        result = results[f"{case}, at validation, {rank}"]
        assert result["observations"] == [64, 64]
        assert set(result["dead"]["relu.bn"]) >= {1}
        assert set(result["dead"]["relu.b"]) >= {0}
        assert result["unjudged"] == {}


def test_units_that_are_split_between_processes_are_not_judged(results: dict[str, Any]) -> None:
    for rank in TWO_RANKS:
        result = results[f"tensor parallel, at validation, {rank}"]
        assert result["dead"] == {"relu": [1]}
        # What DTensor hands on to the activation is a plain tensor of unknown descent.
        assert result["unjudged"] == {"relu-2": REASON}


class FlatPartition:
    """As DeepSpeed's ZeRO-1 and 2 do: the torch optimizer steps a flat float32 copy of all."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.bit16_groups = [list(group["params"]) for group in optimizer.param_groups]
        for group, params in zip(optimizer.param_groups, self.bit16_groups, strict=True):
            flat = torch.cat([p.detach().float().flatten() for p in params])
            group["params"] = [nn.Parameter(flat)]

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()


class FP16Optimizer(FlatPartition):
    """As apex and DeepSpeed's wrapper without ZeRO: float32 masters of half precision weights."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(p.detach().float().clone()) for p in group["params"]]


@pytest.mark.parametrize("wrapper", [FlatPartition, FP16Optimizer])
def test_weights_that_are_overwritten_from_a_copy_are_refused(wrapper: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], 2)
    before = [p.clone() for p in net.parameters()]
    optimizer = wrapper(optim.Adam(net.parameters()))
    report = reinit_dead_units(net, {"1": [2]}, torch.randn(8, 4), optimizers=[optimizer])
    assert "no optimizer has it" in report.refused["1"][2]
    assert all(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("kind", ["DeepSpeedEngine", "FullyShardedDataParallel"])
def test_what_wraps_the_module_is_seen_where_the_module_shows_nothing(kind: str) -> None:
    wrapper = type(kind, (nn.Module,), {})()
    wrapper.module = nn.Linear(2, 2)
    callback = DeadUnitCallback(reinit=True)
    assert callback.reviver is not None
    with pytest.warns(UserWarning, match=f"will not be re-initialised: .*{kind}"):
        callback.reviver.begin_fit(SimpleNamespace(model=wrapper, is_global_zero=True))
