"""Small networks, one trap each; they record their own activations on a tape for the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tape = list[tuple[str, Tensor, int]]


class Taped(nn.Module):
    """A network that writes ``(name, activation, unit axis)`` down whenever it fires."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: Tape = []

    def note(self, name: str, activation: Tensor, unit_dim: int) -> Tensor:
        self.tape.append((name, activation.detach().clone(), unit_dim))
        return activation


class Functional(Taped):
    """Every spelling of ReLU that has no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("relu.conv", F.relu(self.conv(x)), 1)
        x = self.note("relu.conv-relu-sub", torch.relu(x - 0.1), 1)
        x = self.note("relu.conv-relu-sub-2", (x - 0.1).relu(), 1)
        x = self.note("relu.conv-relu-sub-3", (x - 0.1).relu_(), 1)
        x = self.note("clamp", (x - 0.05).clamp(min=0), 1)
        x = self.note("clamp-clamp-relu-sub", torch.clamp(x - 0.05, 0), 1)
        x = self.note("clamp_min", (x - 0.01).clamp_min(0), 1)
        x = self.note("relu6", F.relu6(x), 1)
        x = self.note("threshold", F.threshold(x, 0.02, 0.0), 1)
        x = self.note("hardtanh", F.hardtanh(x, 0.0, 4.0), 1)
        x = self.note("hardswish", F.hardswish(self.fc(x.mean((2, 3)))), 1)
        return self.note("relu.fc", F.relu_(x - 0.1), 1)


class ReusedReLU(Taped):
    """One in-place module, three calls, three widths, and its input is gone afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 7, 3)
        self.fc = nn.Linear(7, 9)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("relu.bn", self.relu(self.bn(self.conv1(x))), 1)
        x = self.note("relu.conv2", self.relu(self.conv2(x)), 1)
        return self.note("relu.fc", self.relu(self.fc(x.mean((2, 3)))), 1)


class SquareShapes(Taped):
    """Equal sizes everywhere: only what made a tensor tells which axis its units are on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 1)
        self.fc = nn.Linear(8, 8)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        signal, tokens = self.conv(x), self.fc(x)
        signal = self.note("act.conv", self.act(signal), 1)
        tokens = self.note("act.fc", self.act(tokens), 2)
        swapped = self.note("act.conv-relu-sub", self.act(signal.transpose(1, 2) - 0.1), 2)
        back = self.note("act.conv-relu-sub-2", self.act(swapped.permute(0, 2, 1) - 0.1), 1)
        merged = self.note("act.fc-relu-sub", self.act(tokens.reshape(-1, 8) - 0.1), 1)
        moved = self.note("act.conv-relu-sub-3", self.act(torch.movedim(back, 1, 2) - 0.01), 2)
        return self.note("act.conv-fc", self.act((moved + merged.view(8, 8, 8)).mT - 0.01), 1)


class ChannelsLast(Taped):
    """ConvNeXt's layout: NCHW in the convolution, NHWC in the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.dw = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.up, self.act, self.down = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.dw(x).permute(0, 2, 3, 1))
        hidden = self.note("act", self.act(self.up(hidden)), 3)
        out = self.down(hidden).permute(0, 3, 1, 2) + x
        return self.note("relu", F.relu(out), 1)


class Unbatched(Taped):
    """Inputs without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("relu.conv", F.relu(self.conv(x)), 0)
        return self.note("relu.fc", F.relu(self.fc(x.mean((1, 2)))), 0)


class RawParameters(Taped):
    """No layer module at all: matmul, einsum, ``F.linear`` and ``F.conv2d`` on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 6))
        self.b = nn.Parameter(torch.randn(6, 6))
        self.kernel = nn.Parameter(torch.randn(6, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("relu.a", F.relu(x @ self.a), 2)
        x = self.note("relu.b-sub", F.relu(torch.einsum("bti,oi->bto", x, self.b) - 1), 2)
        x = self.note("relu.a-sub", F.relu(self.a @ x.mT - 1), 1)
        x = self.note("relu.b", F.relu(F.linear(x.mT, self.b)), 2)
        return self.note("relu.kernel", F.relu(F.conv2d(x.unsqueeze(1), self.kernel)), 1)


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x * (x > 0)


class LoudReLU(nn.ReLU):
    """A subclass with a forward of its own, that no function gives away."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.1, x, torch.zeros_like(x))


class CustomActivations(Taped):
    """A subclass of ReLU and an activation that PyTorch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.loud = nn.Linear(5, 6), LoudReLU()
        self.fc2, self.square = nn.Linear(6, 7), SquaredReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("loud", self.loud(self.fc1(x)), 1)
        return self.note("square", self.square(self.fc2(x)), 1)


class Mixed(Taped):
    """Views, concatenation, channel shuffle, pixel shuffle, dropout, pooling, indexing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.drop, self.pool, self.shuffle = nn.Dropout2d(), nn.MaxPool2d(2), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.note("relu.a-b", F.relu(self.drop(x)), 1)
        x = self.note("relu.a-b-permute3_4-relu-sub", F.relu(self.pool(x) - 0.1), 1)
        first, second = x[:, :6].chunk(2, 1)
        halves = "relu.a-b-neg-part0_6.0_3-part0_6.3_-permute3_4-relu-sub"
        x = self.note(halves, F.relu(first - second), 1)
        x = self.note(
            f"{halves}-2",
            F.relu(torch.stack([x, x - 0.5]) - 0.1),
            2,
        )
        x = self.note(f"{halves}-3", F.relu(x[1] - 0.1), 1)
        return self.note("relu.b", F.relu(self.shuffle(self.b(F.pad(x, (0, 0, 0, 0, 0, 1))))), 1)


class Flattened(Taped):
    """NCHW and NHWC flattened: the features are the units then."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        first = self.note("relu", F.relu(x.flatten(1)), 1)
        second = self.note("relu-sub", F.relu(x.permute(0, 2, 3, 1).flatten(1) - 0.1), 1)
        return first + second


class Branching(Taped):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        layer, name = (self.b, "relu.b") if len(x) % 2 else (self.a, "relu.a")
        return self.note(name, F.relu(layer(x)), 1)


@dataclass(frozen=True)
class Case:
    """A network and the inputs it is called with.

    Attributes:
        name: Readable id of the test.
        make: Builds the network.
        shapes: Shapes of the inputs, one call each.
    """

    name: str
    make: Callable[[], Taped]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return self.name

    def build(self) -> tuple[Taped, list[Any]]:
        """Return the network in eval mode, with units that fire, sleep and are dead."""
        torch.manual_seed(0)
        net = self.make().eval()
        return net, [torch.randn(shape) for shape in self.shapes]


CASES = [
    Case("functional calls and methods", Functional, ((4, 3, 8, 8), (2, 3, 8, 8))),
    Case("one in-place ReLU called three times", ReusedReLU, ((4, 3, 8, 8), (1, 3, 8, 8))),
    Case("equal sizes on every axis", SquareShapes, ((8, 8, 8), (8, 8, 8))),
    Case("NHWC inside NCHW", ChannelsLast, ((2, 4, 5, 5), (3, 4, 7, 6))),
    Case("no batch axis", Unbatched, ((3, 6, 6), (3, 5, 9))),
    Case("raw parameters", RawParameters, ((3, 6, 6), (5, 6, 6))),
    Case("custom activations", CustomActivations, ((4, 5), (7, 5))),
    Case("views, concat and shuffles", Mixed, ((2, 4, 6, 6), (3, 4, 4, 8))),
    Case("flattened features", Flattened, ((4, 2, 5, 5), (3, 2, 5, 5))),
    Case("control flow by data", Branching, ((4, 5), (6, 5), (3, 5))),
    Case("an empty batch among others", ReusedReLU, ((0, 3, 8, 8), (2, 3, 8, 8))),
]
