"""The kernel for host memory counts exactly: any values, layout, precision and size of piece."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_deadunits.counting import count_values, host
from lightning_deadunits.counting.scratch import Scratch
from tests.reference import zeros_by_numpy

SPECIAL = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-3, -1e-3, 3e38, 1.0, -1.0])
ODD = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, 2.0])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def truth(values: Tensor, unit_dims: tuple[int, ...], atol: float) -> tuple[Tensor, int]:
    others = [dim for dim in range(values.ndim) if dim not in unit_dims]
    flat = values.permute(*unit_dims, *others).flatten(0, len(unit_dims) - 1)
    # The bound is rounded to the precision of the values, as torch rounds a number beside them.
    bound = float(torch.tensor(atol, dtype=values.dtype))
    return zeros_by_numpy(flat, 0, bound), int((~torch.isfinite(values)).sum())


def laid_out(values: Tensor, layout: str, draw: random.Random) -> Tensor:
    if layout == "strided":
        return torch.stack([values, values], -1)[..., 0]
    if layout == "expanded":
        return values[:1].expand(values.shape)
    if layout == "permuted":
        return values.permute(*draw.sample(range(values.ndim), values.ndim))
    if layout == "channels_last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values


@pytest.mark.parametrize("piece", [host.PIECE, 1 << 8], ids=["whole", "in pieces"])
@pytest.mark.parametrize("atol", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_those_of_numpy(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, atol: float, piece: int
) -> None:
    monkeypatch.setattr(host, "PIECE", piece)
    monkeypatch.setattr(host, "SCRATCH", Scratch())
    draw = random.Random(0)
    for turn in range(60):
        ndim = draw.choice([1, 2, 2, 3, 4, 5])
        sizes = [1, 2, 3, 8, 17, 300 if ndim < 3 else 9]
        shape = [draw.choice(sizes) for _ in range(ndim)]
        dims = tuple(sorted(draw.sample(range(ndim), 2 if ndim > 2 and turn % 4 == 0 else 1)))
        kinds = [torch.randn(shape).relu_(), SPECIAL[torch.randint(len(SPECIAL), shape)]]
        kinds.append(ODD[torch.randint(len(ODD), shape)])
        layout = draw.choice(["plain", "plain", "strided", "expanded", "permuted", "channels_last"])
        values = laid_out(draw.choice(kinds).to(dtype), layout, draw)
        with torch.inference_mode(draw.random() < 0.3):  # scratch memory serves in every mode
            zeros, nonfinite = count_values(values, dims, atol)
        expected, odd = truth(values, dims, atol)
        assert torch.equal(zeros, expected), (shape, dims, layout)
        assert zeros.dtype == torch.int64
        assert nonfinite == odd


@pytest.mark.parametrize(
    ("shape", "unit_dim"),
    [((70_001, 3), 1), ((3, 2, 70_000), 1), ((1_000_003, 1), 1), ((1, 1, 17_000_000), 1)],
)
def test_more_values_than_a_byte_or_a_float_can_count(
    shape: tuple[int, ...], unit_dim: int
) -> None:
    values = torch.zeros(shape)
    values.view(-1)[::7] = 1.0
    zeros, _ = count_values(values, (unit_dim,), 0.0)
    assert torch.equal(zeros, zeros_by_numpy(values, unit_dim))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    values = torch.randn(300, 7, 5).relu_()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        zeros, _ = count_values(values, (1,), 0.0)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(zeros, zeros_by_numpy(values, 1))


def test_autocast_does_not_matter() -> None:
    values = torch.randn(8, 7, 49).relu_()
    with torch.autocast("cpu", torch.bfloat16):
        zeros, _ = count_values(values, (1,), 0.0)
    assert torch.equal(zeros, zeros_by_numpy(values, 1))


def test_threads_do_not_share_their_scratch_memory() -> None:
    batches = [torch.randn(64, 16, 33).relu_() for _ in range(64)]
    with ThreadPoolExecutor(4) as pool:
        counted = list(pool.map(lambda batch: count_values(batch, (1,), 0.0)[0], batches))
    for zeros, batch in zip(counted, batches, strict=True):
        assert torch.equal(zeros, zeros_by_numpy(batch, 1))


def test_a_gradient_is_neither_needed_nor_kept() -> None:
    values = torch.randn(4, 6, requires_grad=True).relu()
    zeros, _ = count_values(values, (1,), 0.0)
    assert not zeros.requires_grad
    values.sum().backward()


def test_the_kernels_for_a_device_count_as_numpy_does() -> None:
    # Older ones' interpreters fail with NumPy 2.4; on a device it makes no difference.
    pytest.importorskip("triton", minversion="3.8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreted_kernels"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100
