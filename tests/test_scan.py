"""find_dead_units in a notebook: nothing left behind, errors that help, a table and a picture."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import find_dead_units


class Restless(nn.Module):
    """Draws random numbers and changes buffers whenever it runs."""

    def __init__(self, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout())
        self.register_buffer("calls", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(1))
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = torch.randn(2)
        random.random(), np.random.rand()
        out = self.body(x + torch.randn(4))
        if self.error:
            raise self.error("on purpose")
        return out


def state_of(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [(name, value.clone()) for name, value in model.state_dict().items()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.overrides._get_current_function_mode_stack(),
        torch.is_grad_enabled(),
    ]


def assert_equal_states(one: list[Any], two: list[Any]) -> None:
    for (name, before), (_, after) in zip(one.pop(1), two.pop(1), strict=True):
        assert torch.equal(before, after), name
    assert torch.equal(one.pop(2), two.pop(2))
    assert one == two


class Sparse(nn.Module):
    """A sparse buffer that is changed in place, one that is resized."""

    def __init__(self, csr: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        eye = torch.eye(3)
        self.register_buffer("graph", eye.to_sparse_csr() if csr else eye.to_sparse())
        self.register_buffer("queue", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.graph.values().mul_(2) if self.graph.layout == torch.sparse_csr else (
            self.graph._values().mul_(2)
        )
        self.queue.resize_(5).fill_(1)
        return torch.relu(self.fc(x))


@pytest.mark.parametrize("csr", [False, True], ids=["COO", "CSR"])
def test_sparse_and_resized_buffers_are_as_before(csr: bool) -> None:
    model = Sparse(csr)
    find_dead_units(model, [torch.randn(2, 3)])
    assert torch.equal(model.graph.to_dense(), torch.eye(3))
    assert torch.equal(model.queue, torch.zeros(2))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_is_as_before(error: type[BaseException] | None) -> None:
    model = Restless(error)
    model.body[1].eval()  # a mode of its own
    before = state_of(model)
    if error is None:
        find_dead_units(model, [torch.randn(5, 4, generator=torch.Generator())])
    else:
        with pytest.raises(error, match="on purpose"):
            find_dead_units(model, [torch.randn(5, 4, generator=torch.Generator())])
    assert_equal_states(before, state_of(model))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(self.fc(a + b))


def test_batches_are_tensors_tuples_or_mappings() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    net = TwoInputs()
    reports = [find_dead_units(net, [batch]) for batch in ((a, b), [a, b], {"b": b, "a": a})]
    for report in reports:
        assert torch.equal(report.layers["relu"].zeros, reports[0].layers["relu"].zeros)
    assert find_dead_units(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), iter([a])).layers


@pytest.mark.parametrize("batches", [torch.zeros(2, 3), {"x": torch.zeros(2, 3)}])
def test_a_single_batch_is_not_taken_for_many(batches: Any) -> None:
    with pytest.raises(TypeError, match=r"Wrap a single batch in a list"):
        find_dead_units(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), batches)


def test_other_batches_and_none_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(TypeError, match="got the string"):
        find_dead_units(net, ["words"])
    with pytest.raises(ValueError, match="at least one batch"):
        find_dead_units(net, [])


def test_the_models_own_error_comes_through() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find_dead_units(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), [torch.zeros(2, 5)])


def test_patterns_select_and_exclude() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.GELU())
    batch = [torch.randn(2, 3)]
    assert list(find_dead_units(net, batch, layers=["1", "4"]).layers) == ["1", "4"]
    assert list(find_dead_units(net, batch, exclude="[13]").layers) == ["4"]
    with pytest.raises(ValueError, match=r"'conv\*' matches none\. Layers there are: 1, 3, 4"):
        find_dead_units(net, batch, layers="conv*")
    with pytest.raises(ValueError, match="`exclude` to match a layer, but 'head'"):
        find_dead_units(net, batch, exclude="head")


def test_an_activation_is_selected_with_all_layers_that_it_serves() -> None:
    class Twice(TwoInputs):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(torch.relu(super().forward(a, b)[:, :3]), b)

    found = find_dead_units(Twice(), [(torch.randn(2, 3), torch.randn(2, 3))], layers="relu")
    assert list(found.layers) == ["relu", "relu-part0_3-relu"]


@pytest.mark.parametrize(
    ("options", "match"),
    [(dict(dead_threshold=0), "dead_threshold"), (dict(atol=-0.1), "atol"),
     (dict(layers=""), "layers"), (dict(exclude=[]), "exclude")],
)  # fmt: skip
def test_values_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        find_dead_units(nn.ReLU(), [torch.zeros(2, 3)], **options)


def test_a_model_without_an_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="name them in `layers`"):
        find_dead_units(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), [torch.zeros(2, 3)])


def test_a_threshold_below_one_is_another_verdict_on_the_same_rates() -> None:
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[1.0], [-1.0]])
    batch = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    assert find_dead_units(net, [batch], dead_threshold=0.75).layers["1"].dead.tolist() == [1]
    assert find_dead_units(net, [batch]).layers["1"].dead.tolist() == []


def test_a_long_iterable_shows_a_progress_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_deadunits.scan._QUIET_SECONDS", 0.0)

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.randn(2, 3)

    find_dead_units(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), batches())
    assert "dead units" in capsys.readouterr().err


def test_the_table_reads_well() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[:] = 100
        net[0].bias[:2] = -100
        net[2].bias[:] = -100
    text = str(find_dead_units(net, [torch.randn(6, 4)]))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "units", "dead", "zero", "rate", "made", "by"]
    assert lines[2].split()[:4] == ["1", "8", "2", "(25.0%)"]
    assert lines[5].split() == ["total", "11", "5", "(45.5%)"]
    assert "Wholly dead: nothing gets through '3'" in text


def test_the_picture_has_a_strip_per_layer_and_names_the_dead() -> None:
    import matplotlib

    matplotlib.use("Agg")
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[:] = 100
        net[0].bias[:2] = -100
    figure = find_dead_units(net, [torch.randn(6, 4)]).plot()
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts[0] == "2 of 8 dead"
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["1", "3"]


def test_layers_that_get_their_shape_in_the_first_pass_are_counted() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    with torch.no_grad():
        model[0].initialize_parameters(torch.ones(1, 3))
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -9.0, 0.0, 0.0]))
    report = find_dead_units(model, [torch.ones(5, 3)])
    assert report.layers["1"].dead.tolist() == [1]
