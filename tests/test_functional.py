"""The maths of one activation, on any shape, dtype, layout and stride."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes
from torch import Tensor

from lightning_deadunits.counting import count_values, host
from lightning_deadunits.counting.values import _count_at_once
from lightning_deadunits.functional import rates, zero_activation_rate, zero_counts
from tests.reference import zeros_by_loops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, float("nan"), float("inf"), float("-inf"), 0.25]


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Draw an activation with zeros, NaNs, infinities, in any order of strides, and a unit axis."""
    shape = draw(array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    order = draw(st.permutations(range(len(shape))))
    step = draw(st.sampled_from([1, 2]))
    stored = [shape[axis] for axis in order]
    stored[-1] *= step
    palette = torch.tensor(SPECIAL if dtype.is_floating_point else [0, 1, 2, 0, 0], dtype=dtype)
    index = torch.randint(len(palette), stored, generator=generator)
    values = palette[index][..., ::step].permute([order.index(a) for a in range(len(shape))])
    return values, draw(st.integers(-len(shape), len(shape) - 1))


@settings(max_examples=300, deadline=None)
@given(activations(), st.sampled_from([0.0, 0.25, 1.0]))
def test_counts_equal_brute_force(drawn: tuple[Tensor, int], atol: float) -> None:
    activation, unit_dim = drawn
    zeros, seen = zero_counts(activation, unit_dim, atol)
    assert torch.equal(zeros, zeros_by_loops(activation, unit_dim, atol))
    assert seen * activation.shape[unit_dim] == activation.numel()


@settings(max_examples=100, deadline=None)
@given(activations(), st.integers(1, 9))
def test_pieces_of_any_size_add_up(drawn: tuple[Tensor, int], piece: int) -> None:
    activation, unit_dim = drawn
    axis = unit_dim % activation.ndim
    before = host.PIECE
    host.PIECE = piece
    try:
        zeros, nonfinite = count_values(activation, (axis,), 0.0)
    finally:
        host.PIECE = before
    truth, bad = _count_at_once(activation, (axis,), 0.0)
    assert torch.equal(zeros, truth)
    assert nonfinite == bad == (~activation.double().isfinite()).sum()


def test_several_axes_index_units_together() -> None:
    activation = torch.randn(3, 4, 5, 6).relu()
    zeros, _ = count_values(activation, (1, 3), 0.0)
    assert torch.equal(zeros, (activation == 0).sum((0, 2)).flatten())


def test_the_rate_is_the_share_of_zeros() -> None:
    activation = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert torch.equal(zero_activation_rate(activation), torch.tensor([1.0, 0.5, 0.5]))
    assert zero_activation_rate(torch.zeros(0, 3)).isnan().all()


def test_a_unit_that_fired_once_in_a_billion_has_a_rate_below_one() -> None:
    seen = torch.tensor(2**31)
    assert rates(torch.tensor([2**31 - 1]), seen)[0] < 1
    assert rates(torch.tensor([2**31]), seen)[0] == 1


@pytest.mark.parametrize("unit_dim", [2, -3])
def test_a_wrong_axis_is_refused(unit_dim: int) -> None:
    with pytest.raises(ValueError, match=r"`unit_dim` to be an axis.*\(2, 3\).*got -?\d"):
        zero_counts(torch.zeros(2, 3), unit_dim)


@pytest.mark.parametrize("atol", [-1.0, float("nan"), float("inf")])
def test_a_wrong_atol_is_refused(atol: float) -> None:
    with pytest.raises(ValueError, match="`atol`"):
        zero_activation_rate(torch.zeros(2, 3), atol=atol)


def test_what_is_no_real_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="real tensor"):
        zero_counts(torch.zeros(2, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="got the list"):
        zero_counts([[0.0]])  # type: ignore[arg-type]


def test_gradients_are_left_alone() -> None:
    activation = torch.randn(4, 3, requires_grad=True).relu()
    assert not zero_activation_rate(activation, atol=0.1).requires_grad
