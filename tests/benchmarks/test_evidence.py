"""The cases hold what they promise, and the scripts measure: quick, and without any peer.

Run with ``pytest -o addopts= tests/benchmarks``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.benchmarks import benefit, correctness, event, overhead, scale
from tests.benchmarks.known_cases import CASES, made, rank_of_two
from tests.benchmarks.peers import Ours
from tests.benchmarks.ranks import collectives
from tests.benchmarks.two_ranks import verdict_of_rank_0


@pytest.fixture
def activations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Keep what ReLU returns, whoever calls it."""
    kept: list[Tensor] = []
    relu = torch.nn.functional.relu

    def keeping(values: Tensor, inplace: bool = False) -> Tensor:
        kept.append(relu(values))
        return kept[-1]

    monkeypatch.setattr(torch.nn.functional, "relu", keeping)
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield kept
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.parametrize("name", CASES)
def test_the_truth_of_a_case_is_true(name: str, activations: list[Tensor]) -> None:
    case = made(CASES[name])
    with torch.no_grad():
        for batch in case.batches:
            case.model(batch)
    calls = len(case.truth)
    for call, truth in enumerate(case.truth):
        fired = torch.cat(activations[call::calls]) > 0
        axis = fired.ndim - 1 if case.channels_last else 1
        if case.stacked:
            fired = torch.stack([own > 0 for own in activations]).movedim(1, -1).flatten(-2)
            axis = fired.ndim - 1
        alive = fired.movedim(axis, 0).flatten(1).any(1)
        assert float((~alive).double().mean()) == truth


def test_two_ranks_differ_and_share_the_dead(activations: list[Tensor]) -> None:
    dead = []
    for rank in range(2):
        case = made(rank_of_two, rank)
        activations.clear()
        for batch in case.batches:
            case.model(batch)
        dead.append(~(torch.cat(activations) > 0).any(0))
    assert [float(own.double().mean()) for own in dead] == [0.1875, 0.1875]
    assert float((dead[0] & dead[1]).double().mean()) == 0.125


def test_this_package_is_right_in_every_case(tmp_path: Path) -> None:
    path = tmp_path / "correctness.json"
    cases = correctness.main(["--one-process", "--json", str(path)])
    assert [
        name for name, case in cases.items() if not case["answers"][Ours.package]["right"]
    ] == []
    assert json.loads(path.read_text())["cases"].keys() == cases.keys()


def test_this_package_is_right_on_two_ranks() -> None:
    assert verdict_of_rank_0(Ours) == [0.125]


def test_a_missing_peer_is_shown_as_missing() -> None:
    cases = {"a case": {"truth": (0.0,), "answers": {Ours.package: correctness.scored([0], (0,))}}}
    assert "| a case | 0 | **0** | not installed |" in correctness.table(cases)


def test_overhead_prints_a_ratio_per_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "overhead.json"
    tools = ["floor", Ours.package]
    overhead.main(["--nets", "mlp", "--pairs", "3", "--tools", *tools, "--json", str(path)])
    measured = json.loads(path.read_text())["ratios"]["mlp"]
    assert all(0.5 < measured[tool]["ratio"] < 5 for tool in tools)
    assert "| pass | plain | floor | lightning-deadunits | target |" in capsys.readouterr().out


def test_what_is_kept_does_not_grow_with_the_number_of_batches() -> None:
    held = {scale.epoch_cost(batches, 1)["bytes_held"] for batches in (1, 2, 9)}
    assert held == {4 * (256 + 2) * 8}


def test_collectives_depend_neither_on_the_layers_nor_on_the_processes() -> None:
    assert collectives(1, layers=2) == {"all_reduce": 0, "all_gather_object": 0}
    assert collectives(2, layers=2) == collectives(2, layers=20)
    assert collectives(2, layers=2) == {"all_reduce": 1, "all_gather_object": 0}


def test_scale_draws_a_panel_per_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    for axis in ("LAYERS", "UNITS", "BATCH", "BATCHES", "EVERY", "VALIDATIONS"):
        monkeypatch.setattr(scale, axis, [1, 2])
    picture = tmp_path / "scale.png"
    results = scale.main(["--pairs", "1", "--ranks", "1", "--picture", str(picture)])
    sizes = ["layers", "units", "batch size", "batches"]
    assert list(results) == [*sizes, "every_n_batches", "validations", "processes"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_event_revives_all_of_fifty_units_by_few_replays() -> None:
    measured = event.rounds(1)  # which raises unless all of them are revived
    assert measured["event"]["replays"] == 6
    assert measured["recording"]["replays"] == 0


def test_the_benefit_is_drawn_from_the_committed_results(tmp_path: Path) -> None:
    benefit.main(["--pictures", str(tmp_path)])
    pictures = [path.read_bytes() for path in tmp_path.glob("*.png")]
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
