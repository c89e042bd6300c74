"""Random networks of shared and own modules, called in random order: counts follow the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_deadunits.observation.identity import read_key
from lightning_deadunits.observation.observer import Observer
from tests.observation.kinds import Noting

WIDTH = 5


@dataclass(frozen=True)
class Step:
    """One step of a pass: what is called, on what, whether at all.

    Attributes:
        layer: Which of the layers.
        norm: Which of the norms comes behind, None for none.
        act: Which of the activation modules.
        negative: Whether the layer's units are negated.
        residual: Whether what came before is added to what the layer makes.
        period: It runs if the batch size is no multiple of it.
    """

    layer: int
    norm: int | None
    act: int
    negative: bool
    residual: bool
    period: int


STEPS = st.lists(
    st.builds(
        Step,
        layer=st.integers(0, 2),
        norm=st.none() | st.integers(0, 1),
        act=st.integers(0, 1),
        negative=st.booleans(),
        residual=st.booleans(),
        period=st.integers(2, 5),
    ),
    min_size=1,
    max_size=6,
)


class Random(Noting):
    """A network that runs some steps; what makes the units is followed by name, in plain Python."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(2))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            if len(x) % step.period == 0:
                continue
            h, made_by = self.layers[step.layer](x), [f"layers.{step.layer}"]
            if step.norm is not None:
                h, made_by = self.norms[step.norm](h), [*made_by, f"norms.{step.norm}"]
            if step.negative:
                h, made_by = -h, [*made_by, "neg"]
            if step.residual:
                h, made_by = h + x, [*made_by, "add"]  # an activation is carried along
            x = self.note(self.acts[step.act](h), (1,), f"acts.{step.act}", *made_by)
        return x


@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 9)
)
def test_layers_units_and_counts_are_those_of_the_weights(
    steps: list[Step], sizes: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    net = Random(steps).eval()
    observer = Observer(net)
    with observer.watching(), torch.no_grad():
        for size in sizes:
            with observer.one_pass():
                net(torch.randn(size, WIDTH))
    told = {}
    for key, counts in observer.counts.items():
        call = read_key(key)
        ways = ("neg",) * any("-" in part for part in call.parts) + (call.way,) * bool(call.way)
        told[(call.base, *call.producers, *ways)] = counts
    assert len(told) == len(observer.counts)
    assert set(told) == set(net.truth)
    for made_by, (zeros, seen) in net.truth.items():
        assert torch.equal(told[made_by].zeros, zeros)
        assert seen.tolist() == [told[made_by].observations] * WIDTH
