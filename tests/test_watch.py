"""watch_dead_units: counts whatever runs inside of it, in real loops, exactly, and nothing else."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_deadunits import find_dead_units, watch_dead_units
from tests.loops import LOOPS
from tests.modules import DEAD, Net, data
from tests.reference import zeros_by_loops

ROOT = Path(__file__).parent.parent
BATCHES = list(data().tensors[0].split(16))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def same(report: Any, truth: Any) -> None:
    assert list(report.layers) == list(truth.layers)
    for name, layer in truth.layers.items():
        assert torch.equal(report.layers[name].zeros, layer.zeros)
        assert report.layers[name].observations == layer.observations


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_counts_in_a_real_loop_equal_brute_force(tmp_path: Path, loop: str, processes: int) -> None:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.loops", loop, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [torch.load(path) for path in sorted(tmp_path.glob("*.pt"))]
    assert len(results) == processes
    everyone = [torch.cat(noted) for noted in zip(*(r["noted"] for r in results), strict=True)]
    assert [len(noted) for noted in everyone] == [48, 48]  # no sample twice, none left out
    for result in results:
        assert list(result["layers"]) == ["act", "relu"]
        for (zeros, seen, _), noted in zip(result["layers"].values(), everyone, strict=True):
            assert torch.equal(zeros, zeros_by_loops(noted, 1))
            assert seen == 48
        assert 2 in result["layers"]["act"][2]
        assert result["hooks"] == 0


def test_a_report_at_any_time_and_afterwards() -> None:
    model = net()
    with watch_dead_units(model) as watch:
        assert watch.report().layers == {}
        for number, batch in enumerate(BATCHES, 1):
            model(batch)
            assert watch.report().layers["act"].observations == 16 * number
    same(watch.report(), find_dead_units(model, BATCHES))
    assert watch.report().layers["act"].dead.tolist() == DEAD
    assert hooks_of(model) == 0
    model(BATCHES[0])
    assert watch.report().layers["act"].observations == 64


def test_it_adds_up_when_it_is_entered_again() -> None:
    model = net()
    watch = watch_dead_units(model)
    for batch in BATCHES:
        with watch:
            model(batch)
    same(watch.report(), find_dead_units(model, BATCHES))
    with watch, pytest.raises(RuntimeError, match="not entered, but this one is"):
        watch.__enter__()


def test_the_model_is_trained_as_it_always_is() -> None:
    def trained(watched: bool) -> tuple[dict[str, Tensor], Tensor]:
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        watch = watch_dead_units(model)
        if watched:
            watch.__enter__()
        for batch in BATCHES:
            optimizer.zero_grad()
            F.dropout(model(batch), 0.5).square().mean().backward()
            optimizer.step()
        if watched:
            watch.__exit__(None, None, None)
            assert watch.report().layers["act"].observations == 64
        return model.state_dict(), torch.rand(1)

    (plain, number), (watched, same_number) = trained(False), trained(True)
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())
    assert torch.equal(number, same_number)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_backward_computes_anew_is_not_counted(reentrant: bool) -> None:
    model = net()
    with watch_dead_units(model) as watch:
        for batch in BATCHES:
            batch = batch.clone().requires_grad_()
            checkpoint(model, batch, use_reentrant=reentrant).sum().backward()
    same(watch.report(), find_dead_units(model, BATCHES))


def test_another_model_in_the_same_loop_is_not_counted() -> None:
    model, teacher = net(), net()
    with watch_dead_units(model) as watch:
        for batch in BATCHES:
            F.relu(model(batch) - teacher(batch)).mean()
    same(watch.report(), find_dead_units(model, BATCHES))


def test_parts_of_a_model_that_the_loop_calls_by_themselves_count() -> None:
    model = net()
    with watch_dead_units(model) as watch:
        for batch in BATCHES:
            model.act(model.fc1(batch))
    report = watch.report()
    assert report.layers["act"].observations == 64
    truth = zeros_by_loops(F.relu(model.fc1(torch.cat(BATCHES))), 1)
    assert torch.equal(report.layers["act"].zeros, truth)


def test_a_pass_that_raises_leaves_the_next_ones_right() -> None:
    class Fragile(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 3:
                self.fc1(x)
                raise ValueError("on purpose")
            return super().forward(x)

    torch.manual_seed(0)
    model = Fragile()
    with watch_dead_units(model) as watch:
        for batch in BATCHES:
            with pytest.raises(ValueError, match="on purpose"):
                model(batch[:3])
            model(batch)
    same(watch.report(), find_dead_units(net(), BATCHES))


def test_nothing_is_left_after_an_exception() -> None:
    model = net()

    def interrupted() -> None:
        with watch_dead_units(model):
            model(BATCHES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hooks_of(model) == 0
    assert torch.overrides._get_current_function_mode_stack() == []


def test_two_watches_at_once() -> None:
    first, second = net(), net()
    with torch.no_grad():
        second.fc1.bias[7] = -100.0
    with watch_dead_units(first) as one, watch_dead_units(second) as other:
        for batch in BATCHES:
            first(batch)
            second(batch)
    same(one.report(), find_dead_units(first, BATCHES))
    same(other.report(), find_dead_units(second, BATCHES))


@pytest.mark.parametrize("how", ["wrapper", "in place", "part"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_models_count_as_eager_ones(how: str, fullgraph: bool) -> None:
    torch._dynamo.reset()
    model = net()
    truth = find_dead_units(net(), BATCHES)
    called: Any = model
    if how == "wrapper":
        called = torch.compile(model, backend="eager", fullgraph=fullgraph)
    elif how == "in place":
        model.compile(backend="eager", fullgraph=fullgraph)
    else:
        model.act.compile(backend="eager", fullgraph=fullgraph)
    if how == "in place":
        with watch_dead_units(called) as watch:
            for batch in BATCHES:
                called(batch)
        with pytest.raises(RuntimeError, match="which shows no passes"):
            watch.report()
        return
    for _ in range(2):
        with watch_dead_units(called) as watch:
            for batch in BATCHES:
                called(batch)
        report = watch.report()
        for name, layer in truth.layers.items():
            assert torch.equal(report.layers[name].zeros, layer.zeros)
            assert report.layers[name].observations == 64


def test_a_compiled_function_that_the_watch_was_not_given_is_refused() -> None:
    torch._dynamo.reset()
    model = net()
    called = torch.compile(model, backend="eager")
    with watch_dead_units(model) as watch:
        for batch in BATCHES:
            called(batch)
    with pytest.raises(RuntimeError, match=r"Watch what `torch\.compile` returned"):
        watch.report()


def test_bad_arguments_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="'encoder' can match none"):
        watch_dead_units(net(), layers="encoder")
    with pytest.raises(ValueError, match="dead_threshold"):
        watch_dead_units(net(), dead_threshold=0.0)
    with pytest.raises(ValueError, match="atol"):
        watch_dead_units(net(), atol=-1.0)


def test_a_model_without_an_activation_is_a_warning() -> None:
    model = nn.Sequential(nn.Linear(8, 2), nn.Tanh())
    with watch_dead_units(model) as watch:
        model(BATCHES[0])
    with pytest.warns(UserWarning, match="Expected a model with an activation"):
        assert watch.report().layers == {}


def test_a_watched_model_can_be_copied_averaged_and_saved_whole() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(5, 3)
    with watch_dead_units(net) as watch:
        net(x)
        copies = [copy.deepcopy(net), torch.optim.swa_utils.AveragedModel(net).module]
        torch.save(net, file := io.BytesIO())
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
        for each in copies:
            assert torch.equal(each(x), net(x))
        report = watch.report()
    assert report["1"].observations == 4 * 5  # none of the copies' passes


def test_what_is_watched_grows_with_no_pass_and_keeps_no_input_alive() -> None:
    class Joining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(8, 4), nn.ReLU()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.act(self.fc(torch.cat((x, y), 1)))

    model, inputs, sizes = Joining(), [], []
    with watch_dead_units(model) as watch:
        for _ in range(40):
            x = torch.randn(2, 4)
            inputs.append(weakref.ref(x))
            model(x, x)
            del x
            sizes.append(len(pickle.dumps(watch._observer._small)))
        assert watch.report()["act"].observations == 80
    assert sum(reference() is not None for reference in inputs) == 0
    assert len(set(sizes[5:])) == 1
