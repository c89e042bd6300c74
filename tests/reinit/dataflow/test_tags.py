"""Codes tell units apart, and it is noticed when a model garbles them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_deadunits.reinit.dataflow.tags import CellsLostError, Codebook

SIZES = [1, 2, 3, 30, 70, 71, 5000]


def shown(book: Codebook[int], tensor: Tensor, move: slice | list[int] = slice(None)) -> Tensor:
    """Mark every channel of a tensor, have a model permute samples, and read channel by channel."""
    codes = torch.zeros(tensor.shape[1], dtype=torch.int64)
    codes[: len(book.codes)] = book.codes
    found = torch.zeros_like(codes)
    for number in range(book.passes):
        places = book.read(book.mark(tensor, (1,), codes, number)[move], (1,), number)
        found += 0 if places is None else places.sum(0)
    return found


@pytest.mark.parametrize("cells", [1, 2, 8, 31])
@pytest.mark.parametrize("count", SIZES)
def test_codes_are_distinct_and_of_equal_weight(count: int, cells: int) -> None:
    book = Codebook.of(range(count), cells)
    ones = {bin(code).count("1") for code in book.codes.tolist()}
    assert len(set(book.codes.tolist())) == count
    assert ones == {book.bits // 2}


@pytest.mark.parametrize("count", SIZES[:-1])
def test_every_channel_shows_its_code(count: int) -> None:
    book = Codebook.of(range(count), 8)
    assert torch.equal(shown(book, torch.zeros(8, count)), book.codes)


def test_every_code_is_found_in_a_mixture_of_single_bits() -> None:
    book = Codebook.of_single_bits(range(20), 8)
    assert book.inside(int(book.codes[3] | book.codes[11])) == [3, 11]


@pytest.mark.parametrize("move", [[1, 0, 3, 2, 5, 4, 7, 6], [7, 0, 1, 2, 3, 4, 5, 6]])
def test_a_permuted_batch_is_noticed(move: list[int]) -> None:
    book = Codebook.of(range(4), 8)
    with pytest.raises(CellsLostError):
        [book.inside(code) for code in shown(book, torch.zeros(8, 4), move).tolist()]


def test_a_place_without_samples_is_noticed() -> None:
    book = Codebook.of(range(4), 8)
    with pytest.raises(CellsLostError):
        book.read(torch.full((3,), torch.nan), (), 0)
