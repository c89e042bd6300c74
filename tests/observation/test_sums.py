"""Counts over many passes are those of each pass, however passes are added up."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits.observation.identity import read_key
from lightning_deadunits.observation.observer import Observer


def net() -> nn.Module:
    """Widths that fill no whole words of eight bytes, and one whose passes do not wait."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 13), nn.ReLU(), nn.Linear(13, 3), nn.ReLU(), nn.Linear(3, 20_003), nn.ReLU()
    )


def zeros_of(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """Count by hand."""
    found = []
    with torch.no_grad():
        for layer in model:
            batch = layer(batch)
            if isinstance(layer, nn.ReLU):
                found.append((batch == 0).sum(0))
    return found


@pytest.mark.parametrize("layers", [2, 4, 6], ids=["one", "narrow", "narrow and wide"])
@pytest.mark.parametrize(
    "sizes",
    [[4] * 50, [4] * 20 + [7] * 20 + [4] * 3, [4, 7] * 5, [300] * 18, [3000] * 3],
    ids=["alike", "a last batch", "in turn", "more than a byte", "more than some"],
)
def test_counts_of_many_passes_are_their_sums(layers: int, sizes: list[int]) -> None:
    model = net()[:layers]
    observer = Observer(model)
    expected: list[Tensor] = [torch.zeros((), dtype=torch.int64)] * (layers // 2)
    generator = torch.Generator().manual_seed(1)
    with observer.watching():
        for number, size in enumerate(sizes):
            batch = torch.randn(size, 5, generator=generator)
            if number == 9:
                batch[0] = torch.inf  # a pass unlike the others
            if number == 30:
                assert observer.counts  # whoever asks in between changes nothing
            # In inference mode by turns: what waits was made in either.
            with torch.inference_mode(number % 3 == 0), observer.one_pass():
                model(batch)
            expected = [a + b for a, b in zip(expected, zeros_of(model, batch), strict=True)]
        counts = list(observer.counts.values())
    for count, zeros in zip(counts, expected, strict=True):
        assert torch.equal(count.zeros, zeros)
        assert count.observations == sum(sizes)


class _Branches(nn.Module):
    """Runs its branches as it is told: passes that are alike, and then are not."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(5, 4 + n) for n in range(3))
        self.fails = False

    def forward(self, x: Tensor, order: list[int]) -> list[Tensor]:
        made = []
        for number in order:
            if self.fails and made:
                raise RuntimeError
            made.append(self.branches[number](x).relu())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(6, 5), (2, 3, 5)], ids=["rows", "positions"])
def test_passes_that_are_copied_and_then_unlike_are_counted_as_they_are(
    dtype: torch.dtype, size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = _Branches().to(dtype)
    observer = Observer(model)
    truth = {n: torch.zeros(4 + n, dtype=torch.int64) for n in range(3)}
    whole = [0, 1, 2]
    orders = [*[whole] * 9, [0, 1], *[whole] * 70, [0, 2, 1], [0, 1, 0], *[[1, 0]] * 5, [], whole]
    with observer.watching():
        for turn, order in enumerate(orders):
            x = torch.randn(size, dtype=dtype)
            model.fails = turn == 7
            with suppress(RuntimeError), observer.one_pass():
                made = model(
                    x.transpose(0, -1).contiguous().transpose(0, -1) if turn == 5 else x, order
                )
            if model.fails:
                continue
            for number, output in zip(order, made, strict=True):
                truth[number] += (output == 0).flatten(0, -2).sum(0)
        assert [read_key(key).producers for key in observer.counts] == [
            (f"branches.{n}",) for n in range(3)
        ]
    for counts, zeros in zip(observer.counts.values(), truth.values(), strict=True):
        assert torch.equal(counts.zeros, zeros)
    assert not any(p.grad is not None for p in model.parameters())


def test_whoever_asks_amid_a_pass_changes_no_count() -> None:
    """As where a checkpoint is saved in a step."""
    torch.manual_seed(0)
    first, second = (
        nn.Sequential(nn.Linear(5, 6), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 4), nn.ReLU()),
    )
    model = nn.Sequential(first, second)
    observer = Observer(model)
    zeros = torch.zeros(6, dtype=torch.int64)
    with observer.watching():
        for turn in range(30):
            with observer.one_pass():
                made = first(torch.randn(7, 5))
                if turn in (10, 11, 20):
                    assert observer.counts
                second(made)
            zeros += (made == 0).sum(0)
        counts = next(iter(observer.counts.values()))
    assert torch.equal(counts.zeros, zeros)
    assert counts.observations == 30 * 7
