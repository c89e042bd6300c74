"""ZeroActivationRate in anyone's TorchMetrics code."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_deadunits import ZeroActivationRate
from lightning_deadunits.functional import zero_activation_rate
from tests.reference import zeros_by_loops


def test_updates_accumulate_over_batches_of_any_size() -> None:
    metric = ZeroActivationRate(5, unit_dim=-1)
    batches = [torch.randn(n, t, 5).relu() for n, t in ((4, 3), (1, 7), (0, 3))]
    for batch in batches:
        metric.update(batch)
    zeros = sum(zeros_by_loops(batch, -1) for batch in batches)
    assert torch.equal(metric.zeros, zeros)
    assert torch.equal(metric.compute(), (zeros.double() / 19).float())


def test_nothing_seen_is_nan_and_reset_forgets() -> None:
    metric = ZeroActivationRate(3)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute().isnan().all()
    metric.update(torch.zeros(2, 3))
    metric.reset()
    assert metric.zeros.tolist() == [0, 0, 0]


def test_forward_returns_the_rate_of_the_batch() -> None:
    metric, batch = ZeroActivationRate(3), torch.randn(8, 3).relu()
    metric.update(torch.zeros(8, 3))
    assert torch.equal(metric(batch), zero_activation_rate(batch))
    assert metric.observations == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_counts_stay_integers_under_set_dtype(dtype: torch.dtype) -> None:
    metric = ZeroActivationRate(2)
    metric.set_dtype(dtype)
    metric.half()
    for _ in range(3):
        metric.update(torch.zeros(50_000, 2))
    assert metric.zeros.dtype == torch.int64
    assert metric.zeros.tolist() == [150_000, 150_000]


def test_counts_go_beyond_what_float32_holds() -> None:
    metric = ZeroActivationRate(1)
    metric.zeros = torch.tensor([2**24])
    metric.observations = torch.tensor(2**24)
    metric.update(torch.zeros(1, 1))
    assert metric.zeros.tolist() == [2**24 + 1]


def test_inference_mode_first_and_no_grad_later() -> None:
    metric = ZeroActivationRate(2)
    with torch.inference_mode():
        metric.update(torch.zeros(3, 2))
    metric.update(torch.zeros(3, 2))
    assert metric.observations == 6


def test_layers_of_equal_state_in_a_collection() -> None:
    metrics = MetricCollection(
        {"a": ZeroActivationRate(2, unit_dim=1), "b": ZeroActivationRate(2, unit_dim=0)},
        compute_groups=False,
    )
    metrics.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    result = metrics.compute()
    assert result["a"].tolist() == [1.0, 0.5]
    assert result["b"].tolist() == [0.5, 1.0]


def test_it_can_be_saved_loaded_and_plotted() -> None:
    metric = ZeroActivationRate(3)
    metric.persistent(True)
    metric.update(torch.zeros(4, 3))
    other = ZeroActivationRate(3)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.zeros, metric.zeros)
    figure, _ = metric.plot()
    assert figure is not None


@pytest.mark.parametrize("num_units", [0, -1, 2.0, True])
def test_a_wrong_number_of_units_is_refused(num_units: int) -> None:
    with pytest.raises((ValueError, TypeError), match="Expected `num_units` to be an int >= 1"):
        ZeroActivationRate(num_units)


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`num_units` = 3 entries, but got shape \(4, 2\)"):
        ZeroActivationRate(3).update(torch.zeros(4, 2))


class Measured(pl.LightningModule):
    """Has a metric of the training beside its layers, as modules of Lightning do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rate = nn.Linear(4, 3), ZeroActivationRate(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.rate(self(batch))
        self.log("rate", self.rate.compute().mean())


@pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")
def test_it_can_be_scripted_as_every_metric_of_torchmetrics_can() -> None:
    metric = ZeroActivationRate(3)
    metric.update(torch.zeros(2, 3))
    assert torch.equal(torch.jit.script(metric).zeros, metric.zeros)


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_a_module_that_has_one_becomes_torchscript() -> None:
    module = Measured()
    batch = torch.randn(5, 4)
    scripted = module.to_torchscript()
    assert torch.equal(scripted(batch), module(batch))
