"""Counts over many passes are those of each pass, however passes are added up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
