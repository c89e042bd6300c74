"""On a CUDA device: counts equal the CPU's, in a Trainer, under graphs, and with revival.

Skipped only where there is no device. ``python -m tests.benchmarks.gpu`` has the costs.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, ReinitConfig, ZeroActivationRate, find_dead_units
from lightning_deadunits.counting import count_columns, count_values, device
from tests.modules import DEAD, Lit, data, loader
from tests.reference import zeros_by_numpy
from tests.test_counting import DTYPES, ODD, SPECIAL, laid_out, truth

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MakeTrainer = Callable[..., pl.Trainer]


@pytest.fixture
def on_gpu(make_trainer: MakeTrainer) -> MakeTrainer:
    return lambda **options: make_trainer(accelerator="gpu", devices=1, **options)


def test_the_kernels_are_there() -> None:
    assert device.kernels() is not None


@pytest.mark.parametrize("with_kernels", [True, False], ids=["triton", "plain torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_on_the_device_are_those_of_numpy(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, with_kernels: bool
) -> None:
    if not with_kernels:
        monkeypatch.setattr(device, "kernels", lambda: None)
    draw = random.Random(0)
    torch.manual_seed(0)
    for turn in range(80):
        ndim = draw.choice([1, 2, 2, 3, 4, 5])
        shape = [draw.choice([1, 2, 3, 8, 17, 300 if ndim < 3 else 9]) for _ in range(ndim)]
        dims = tuple(sorted(draw.sample(range(ndim), 2 if ndim > 2 and turn % 4 == 0 else 1)))
        kinds = [torch.randn(shape).relu_(), SPECIAL[torch.randint(len(SPECIAL), shape)]]
        kinds.append(ODD[torch.randint(len(ODD), shape)])
        layout = draw.choice(["plain", "strided", "expanded", "permuted", "channels_last"])
        values = laid_out(draw.choice(kinds).to(dtype), layout, draw)
        atol = draw.choice([0.0, 1e-3, 0.5])
        zeros, nonfinite = count_values(values.cuda(), dims, atol)
        expected, odd = truth(values, dims, atol)
        assert torch.equal(zeros.cpu(), expected), (shape, dims, atol, layout)
        assert int(nonfinite) == odd


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(32, 64, 56, 56), (16, 256, 14, 14), (64, 2048, 7, 7), (4096, 1000), (3, 5)]
)
def test_activations_of_real_size(shape: tuple[int, ...], channels_last: bool) -> None:
    values = torch.randn(shape, device="cuda").relu_()
    if channels_last and len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    columns = count_columns(values, (1,), 0.0)
    assert isinstance(columns, device.DeviceColumns)
    zeros = columns.observations - columns.nonzeros().cpu()
    assert torch.equal(zeros, zeros_by_numpy(values.cpu(), 1))


def test_a_scan_on_the_device_equals_one_on_the_cpu() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 12), nn.GELU()
    )
    with torch.no_grad():
        for parameter in net.parameters():  # sums are exact in any order: both compute the same
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
        net[0].bias[2] = -1000
    batches = [torch.randint(-2, 3, (5, 3, 8, 8)).float() for _ in range(3)]
    on_cpu = find_dead_units(net, batches)
    on_device = find_dead_units(net.cuda(), [batch.cuda() for batch in batches])
    for name, layer in on_cpu.layers.items():
        assert torch.equal(layer.zeros, on_device.layers[name].zeros)
        assert layer.observations == on_device.layers[name].observations
    assert on_device.layers["1"].dead.tolist() == [2]


def test_the_metric_on_the_device() -> None:
    metric = ZeroActivationRate(num_units=4).cuda()
    values = torch.randn(10, 4, 3).relu_()
    metric.update(values.cuda())
    assert torch.equal(metric.zeros.cpu(), zeros_by_numpy(values, 1))


class Noting(Lit):
    """Keeps what the first layer put out in validation."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self.outputs = [*getattr(self, "outputs", []), self.net.fc1(batch[0]).relu().cpu()]
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "16-true"])
def test_a_fit_in_every_precision(on_gpu: MakeTrainer, precision: str) -> None:
    model, callback = Noting(), DeadUnitCallback(layers="net.act")
    trainer = on_gpu(callbacks=[callback], precision=precision, max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*watches no longer.*")
        trainer.fit(model, loader(), loader())
    layer = callback.report.layers["net.act"]
    assert set(DEAD) <= set(layer.dead.tolist())
    assert torch.equal(layer.zeros, zeros_by_numpy(torch.cat(model.outputs), 1))


@pytest.mark.parametrize(
    "options",
    [dict(), dict(capturable=True), dict(fused=True)],
    ids=["plain", "capturable", "fused"],
)
@pytest.mark.parametrize("every", [None, 2], ids=["at validation", "by windows"])
def test_units_are_revived(on_gpu: MakeTrainer, options: dict[str, Any], every: int | None) -> None:
    class Optimised(Lit):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3, **options)

    callback = DeadUnitCallback(reinit=ReinitConfig(patience=1, every_n_train_steps=every))
    trainer = on_gpu(callbacks=[callback], max_epochs=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not re-initialised.*")
        model = Optimised()
        trainer.fit(model, loader(), loader())
    revived = [event.reinitialised for event in callback.reviver.events]
    assert revived[0]["net.act"] == DEAD
    assert callback.report.layers["net.act"].dead.tolist() == []
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_what_is_replayed_by_a_cuda_graph_is_told_not_miscounted() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU()).cuda()
    batch = torch.randn(32, 8, device="cuda")
    # In eval mode, as it will run: in the other one torch calls the module itself.
    first = nn.Sequential(net[0], net[1]).eval()
    net[0] = torch.cuda.make_graphed_callables(first, (batch,))
    net[1] = nn.Identity()
    expected = net(batch)
    with pytest.warns(UserWarning, match=r"0\.1.*did not run"):
        report = find_dead_units(net, [batch])
    assert list(report.layers) == ["3"]
    assert torch.equal(net(batch), expected)


def test_a_graph_that_is_captured_under_observation_is_told() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU()).cuda()
    batch = torch.randn(32, 8, device="cuda")

    class Capturing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head, self.graph = net, nn.ReLU(), torch.cuda.CUDAGraph()

        def forward(self, x: Tensor) -> Tensor:
            with torch.cuda.graph(self.graph):
                self.out = self.net(x)
            self.graph.replay()
            return self.head(self.out)

    net(batch)
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match=r"net\.1.*CUDA graph"):
        report = find_dead_units(Capturing(), [batch])
    assert "net.1" not in report.layers


def test_compiled_equals_eager() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU()).cuda()
    with torch.no_grad():
        net[0].bias[1] = -100
    batch = torch.randint(-2, 3, (4, 3, 9, 9), device="cuda").float()
    eager = find_dead_units(net, [batch])
    torch._dynamo.reset()
    compiled = find_dead_units(torch.compile(net), [batch])
    assert eager.layers["1"].dead.tolist() == compiled.layers["1"].dead.tolist() == [1]
    assert torch.equal(eager.layers["1"].zeros, compiled.layers["1"].zeros)


def test_nccl_sums_on_the_device(on_gpu: MakeTrainer, tmp_path: Path) -> None:
    callback = DeadUnitCallback(every_n_train_steps=2, reinit=ReinitConfig(patience=1))
    trainer = on_gpu(callbacks=[callback], strategy="ddp", max_epochs=2)
    trainer.fit(Lit(), loader(), loader())
    assert torch.distributed.get_backend() == "nccl"
    assert callback.window_report.layers["net.act"].observations == 32
    assert callback.report.layers["net.act"].dead.tolist() == []
    torch.distributed.destroy_process_group()


def test_nothing_waits_for_the_device_while_it_counts() -> None:
    values = torch.randn(64, 32, device="cuda").relu_()
    count_columns(values, (1,), 0.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        count_columns(F.relu(values), (1,), 0.0)
        count_values(values[:, ::2], (1,), 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_data_of_the_cpu_and_of_the_device_in_one_pass() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 3).cuda()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x)).cuda()))

    report = find_dead_units(Split(), [(batch,) for batch in data().tensors[0].split(16)])
    assert len(report.layers) == 2
    assert {layer.observations for layer in report.layers.values()} == {64}
