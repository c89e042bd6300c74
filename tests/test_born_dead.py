"""A published figure: how likely a network is born dead.

Lu, Shin, Su and Karniadakis (2019), "Dying ReLU and Initialization: Theory and Numerical
Examples": a ReLU network of L layers, the L - 1 hidden ones of width N, with one input, symmetric
weights and zero biases, has a wholly dead layer with a probability of at most
1 - (1 - 2**-N)**(L - 1), and at least that of a Markov chain.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_deadunits import find_dead_units

NETS = 8000
# width: the paper's bounds for ten layers, and what 100 000 nets gave.
BOUNDS = {2: (0.870, 0.925, 0.880), 3: (0.513, 0.699, 0.577), 4: (0.204, 0.441, 0.295)}


class Batch(nn.Module):
    """Many independent networks side by side: network n is group n of grouped convolutions."""

    def __init__(self, nets: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            inputs = nets if index == 0 else nets * width
            conv = nn.Conv1d(inputs, nets * width, 1, groups=nets, bias=False)
            nn.init.normal_(conv.weight)
            layers += [conv, nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("width", BOUNDS)
def test_born_dead_probability_lies_between_the_papers_bounds(width: int) -> None:
    torch.manual_seed(width)
    inputs = torch.tensor([-1.0, -0.3, 0.3, 1.0])
    net = Batch(NETS, width, depth=9).double()
    batch = inputs.double().expand(NETS, -1).T.reshape(4, NETS, 1)
    report = find_dead_units(net, [batch])
    assert len(report.layers) == 9
    cut = torch.zeros(NETS, dtype=torch.bool)
    for layer in report.layers.values():
        dead = torch.zeros(layer.num_units, dtype=torch.bool)
        dead[layer.dead] = True
        cut |= dead.view(NETS, width).all(1)
    share = cut.double().mean().item()
    low, high, simulated = BOUNDS[width]
    assert low <= share <= high
    noise = 4 * math.sqrt(simulated * (1 - simulated) / NETS)
    assert abs(share - simulated) < noise
