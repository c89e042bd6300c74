"""A slice of a weight is read and written at its own elements only."""

import pytest
import torch

from lightning_deadunits.reinit.weights import WeightSlice

WEIGHT = torch.nn.Parameter(torch.arange(4.0 * 3 * 2 * 2).reshape(4, 3, 2, 2))


def test_rows_columns_and_blocks_are_the_products_of_their_indices():
    for where in ({0: [3, 1]}, {1: [2]}, {0: [2, 3], 1: [0, 1]}, {}, {3: [1]}):
        mask = torch.ones_like(WEIGHT, dtype=torch.bool)
        for axis, indices in where.items():
            along = torch.zeros(WEIGHT.shape[axis], dtype=torch.bool)
            along[indices] = True
            mask &= along.reshape([-1 if d == axis else 1 for d in range(4)])
        expected = WEIGHT[mask]
        assert torch.equal(WeightSlice.along(WEIGHT, where).read(WEIGHT), expected)
        of_mask = WeightSlice(WEIGHT, mask.flatten().nonzero().squeeze(1))
        assert torch.equal(of_mask.read(WEIGHT), expected)


def test_repeated_indices_count_once():
    assert WeightSlice.along(WEIGHT, {0: torch.tensor([1, 1])}).positions.numel() == 12


def test_writing_reaches_the_same_elements_in_any_memory_format():
    rows = WeightSlice.along(WEIGHT, {0: [1], 1: [0, 2]})
    strided = WEIGHT.detach().clone(memory_format=torch.channels_last)
    rows.write_(strided, -rows.read(strided))
    dense = WEIGHT.detach().clone()
    dense[1, [0, 2]] *= -1
    assert torch.equal(strided, dense)


def test_writing_works_with_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        WeightSlice.along(WEIGHT, {0: [0]}).write_(WEIGHT.detach().clone(), 0.0)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("where", [{0: [4]}, {0: [-1]}, {1: torch.tensor([3])}])
def test_an_index_outside_the_weight_is_an_error(where):
    with pytest.raises(ValueError, match=r"Expected indices along axis \d to be in \[0, "):
        WeightSlice.along(WEIGHT, where)


def test_an_axis_outside_the_weight_is_an_error():
    with pytest.raises(ValueError, match="Expected `where` to name axes below 4, but got"):
        WeightSlice.along(WEIGHT, {4: [0]})
