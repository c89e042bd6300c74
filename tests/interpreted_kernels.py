"""Compares the kernels for a device with NumPy, run by Triton's interpreter: no device is needed.

    TRITON_INTERPRET=1 python -m tests.interpreted_kernels

A process of its own, for Triton reads the variable once, when it is imported.
"""

from __future__ import annotations

import random

import torch

from lightning_deadunits.counting import device
from tests.test_counting import DTYPES, ODD, SPECIAL, laid_out, truth

SHAPES = [
    ((7, 3), (1,)), ((300, 17), (1,)), ((5, 3, 200), (1,)), ((40, 2, 130), (1,)),
    ((6, 5, 4, 4), (1,)), ((3, 9, 13, 13), (1,)), ((2, 3, 5, 7), (1, 2)), ((9,), (0,)),
    ((4, 6, 8), (2,)), ((1, 2, 5000), (1,)), ((70, 600), (1,)),
]  # fmt: skip


def main() -> None:
    """Raise at the first difference."""
    torch.manual_seed(0)
    counted = compared()
    # As if the activations were large: many programs, each with many tiles.
    device._TILE, device._PROGRAMS, device._LONG = 32, 6, 16
    device._plan.cache_clear()
    counted += compared()
    print(f"{counted} activations counted as NumPy counts them")


def compared() -> int:
    """Return how many activations the kernels have counted."""
    draw, dense = random.Random(0), 0
    for dtype in DTYPES:
        for shape, dims in SHAPES:
            for atol in (0.0, 1e-3, 0.5):
                kinds = [torch.randn(shape).relu_(), SPECIAL[torch.randint(len(SPECIAL), shape)]]
                kinds.append(ODD[torch.randint(len(ODD), shape)])
                layout = draw.choice(["plain", "strided", "channels_last"])
                values = laid_out(draw.choice(kinds).to(dtype), layout, draw)
                columns = device.columns_on_device(values, dims, atol)
                if columns is None:
                    assert not values.is_contiguous(), "a dense activation was not counted"
                    continue
                dense += 1
                zeros, nonfinite = truth(values, dims, atol)
                case = (dtype, shape, dims, atol, layout)
                assert torch.equal(columns.observations - columns.nonzeros(), zeros), case
                assert int(columns.nonfinite) == nonfinite, case
    return dense


if __name__ == "__main__":
    main()
