"""Networks with dead units, and which of these can be re-initialised without a disturbance.

Every network is small. ``kill`` makes units dead on all inputs, as a large negative bias does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

FAR = -50.0


@dataclass(frozen=True)
class Case:
    """A network with dead units: those that can be re-initialised, and those that cannot."""

    name: str
    build: Callable[[], nn.Module]
    accepted: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, list[int]] = field(default_factory=dict)
    example: Callable[[], Any] = lambda: torch.randn(8, 3, 8, 8)
    exact: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def units(self) -> dict[str, list[int]]:
        layers = {**self.accepted, **self.refused}
        return {
            name: sorted(self.accepted.get(name, []) + self.refused.get(name, []))
            for name in layers
        }


CASES: list[Case] = []


def case(name: str, **kwargs: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a network."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(name, build, **kwargs))
        return build

    return register


def kill(parameter: Tensor | nn.Module, *units: int) -> None:
    """Make units dead: a bias that nothing gets above."""
    bias = parameter.bias if isinstance(parameter, nn.Module) else parameter
    with torch.no_grad():
        bias[list(units)] = FAR


def seeded() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """A module with a forward given as a function of itself and the input."""

    def __init__(self, forward: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self._run = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)


def conv(inputs: int, outputs: int, size: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **kwargs)


def vectors() -> Tensor:
    return torch.randn(8, 12)


def sequences() -> Tensor:
    return torch.randn(8, 5, 12)


# --- plain ------------------------------------------------------------------------------------


@case("mlp", accepted={"1": [0, 3], "3": [2, 5]}, example=vectors)
def mlp() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    kill(net[0], 0, 3)
    kill(net[2], 2, 5)
    return net


@case("conv-BN-ReLU, in place", accepted={"2": [1, 4], "5": [0]})
def conv_bn_relu() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(conv(8, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 4)),
    )
    kill(net[1], 1, 4)
    kill(net[4], 0)
    return net


@case("ReLU between conv and BN", accepted={"1": [1, 4]})
def conv_relu_bn() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.BatchNorm2d(8), conv(8, 8), nn.ReLU(), conv(8, 2))
    kill(net[0], 1, 4)
    return net


@case("every unit of a layer is dead", accepted={"1": list(range(6))}, example=vectors)
def wholly_dead() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], *range(6))
    return net


@case(
    "functional, in place, result unused", accepted={"relu": [2], "relu-2": [0, 1]}, example=vectors
)
def functional() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        hidden.relu_()
        hidden = self.b(hidden)
        F.relu(hidden, inplace=True)
        return self.c(hidden)

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3))
    kill(net.a, 2)
    kill(net.b, 0, 1)
    return net


@case(
    "conv1d and transposed conv",
    accepted={"1": [0], "3": [4, 5]},
    example=lambda: torch.randn(8, 3, 16),
)
def conv1d_transposed() -> nn.Module:
    net = nn.Sequential(
        *(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 8, 3, groups=2), nn.ReLU()),
        nn.ConvTranspose1d(8, 2, 3, groups=2),
    )
    kill(net[0], 0)
    kill(net[2], 4, 5)
    return net


# --- norms ------------------------------------------------------------------------------------


@case("pre-activation residual", accepted={"b.relu": [3], "b.relu-2": [1], "relu": [2]})
def preactivation() -> nn.Module:
    def block(self: Any, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.b(self.stem(x)))).mean((2, 3)))

    b = Net(block, bn1=nn.BatchNorm2d(8), conv1=conv(8, 8), bn2=nn.BatchNorm2d(8), conv2=conv(8, 8))
    net = Net(forward, stem=conv(3, 8), b=b, bn=nn.BatchNorm2d(8), head=nn.Linear(8, 2))
    kill(b.bn1, 3)
    kill(b.bn2, 1)
    kill(net.bn, 2)
    return net


@case("GroupNorm before the ReLU", accepted={"2": [1, 6]})
def group_norm_before() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 4))
    kill(net[1], 1, 6)
    return net


@case("LayerNorm before the ReLU", accepted={"2": [1, 6]}, example=vectors)
def layer_norm_before() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))
    kill(net[1], 1, 6)
    return net


@case("InstanceNorm before the ReLU", accepted={"2": [1, 6]})
def instance_norm_before() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv(8, 4))
    kill(net[1], 1, 6)
    return net


@case("LayerNorm after the ReLU", refused={"1": [1, 6]}, example=vectors)
def layer_norm_after() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4))
    kill(net[0], 1, 6)
    return net


@case("softmax after the ReLU", refused={"1": [1]}, example=vectors)
def softmax_after() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Softmax(-1), nn.Linear(8, 4))
    kill(net[0], 1)
    return net


# --- streams and joins ------------------------------------------------------------------------


class Basic(nn.Module):
    """The basic block of ResNet, one ReLU module for both."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        other = (conv(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        self.downsample = nn.Sequential(*other) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)


class ResNet(nn.Module):
    """ResNet-18, or narrower."""

    def __init__(self, width: int = 8, blocks: int = 1, stages: int = 2) -> None:
        super().__init__()
        self.conv1 = conv(3, width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        layers: list[nn.Module] = []
        inputs = width
        for stage in range(stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(Basic(inputs, width << stage, stride))
                inputs = width << stage
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


@case(
    "residual",
    accepted={"layers.0.relu": [1, 5], "layers.1.relu": [0, 9], "layers.1.relu-2": [3]},
    refused={"relu": [2]},
)
def residual() -> nn.Module:
    net = ResNet()
    kill(net.bn1, 2)
    kill(net.layers[0].bn1, 1, 5)
    kill(net.layers[1].bn1, 0, 9)
    kill(net.layers[1].bn2, 3)
    return net


@case("inner bottleneck", accepted={"relu": [1], "relu-2": [0, 3]}, refused={"relu-3": [4]})
def bottleneck() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = F.relu(self.bn3(self.conv3(y)) + x)
        return self.conv5(self.conv4(y) + y)

    net = Net(
        forward,
        stem=conv(3, 8),
        conv1=conv(8, 4, 1),
        bn1=nn.BatchNorm2d(4),
        conv2=conv(4, 4),
        bn2=nn.BatchNorm2d(4),
        conv3=conv(4, 8, 1),
        bn3=nn.BatchNorm2d(8),
        conv4=conv(8, 8),
        conv5=conv(8, 3),
    )
    kill(net.bn1, 1)
    kill(net.bn2, 0, 3)
    kill(net.bn3, 4)
    return net


@case("two branches summed", accepted={"relu": [1, 2]}, example=vectors)
def summed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b(x.flip(1))))

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(12, 6), c=nn.Linear(6, 2))
    kill(net.a, 1, 2)
    return net


@case("dense concat", accepted={"relu": [1], "relu-2": [5, 13], "relu-3": [2]})
def dense() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        return self.fc(F.relu(self.bn3(x)).mean((2, 3)))

    net = Net(
        forward,
        stem=conv(3, 8),
        bn1=nn.BatchNorm2d(8),
        conv1=conv(8, 6),
        bn2=nn.BatchNorm2d(14),
        conv2=conv(14, 6),
        bn3=nn.BatchNorm2d(20),
        fc=nn.Linear(20, 2),
    )
    kill(net.bn1, 1)
    kill(net.bn2, 5, 13)
    kill(net.bn3, 2)
    return net


@case("concat of activations", accepted={"relu": [1], "relu-2": [0, 3]})
def concat() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.a(x)), x, F.relu(self.b(x))], 1)
        return self.d(both) + self.c(both)

    net = Net(forward, a=conv(3, 4), b=conv(3, 5), c=conv(12, 2), d=conv(12, 2, 1))
    kill(net.a, 1)
    kill(net.b, 0, 3)
    return net


@case("U-Net skip", accepted={"relu": [2], "relu-2": [1, 7], "relu-3": [0]})
def unet() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        skip = F.relu(self.bn(self.down(x)))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        up = F.interpolate(deep, scale_factor=2, mode="bilinear")
        return self.out(F.relu(self.up(torch.cat([up, skip], 1))))

    net = Net(
        forward,
        down=conv(3, 6),
        bn=nn.BatchNorm2d(6),
        deep=conv(6, 8),
        up=conv(14, 4),
        out=conv(4, 2, 1),
    )
    kill(net.bn, 2)
    kill(net.deep, 1, 7)
    kill(net.up, 0)
    return net


@case("squeeze-excitation", accepted={"relu": [1], "relu-2": [0]})
def squeeze_excitation() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.b(x * gate[:, :, None, None])

    net = Net(
        forward,
        a=conv(3, 8),
        bn=nn.BatchNorm2d(8),
        down=nn.Linear(8, 4),
        up=nn.Linear(4, 8),
        b=conv(8, 2),
    )
    kill(net.bn, 1)
    kill(net.down, 0)
    return net


@case("the output reads it", refused={"1": [0]}, example=vectors)
def output() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 4), nn.ReLU())
    kill(net[0], 0)
    return net


@case("a feature is returned beside the logits", refused={"relu": [2]}, example=vectors)
def returned() -> nn.Module:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.a(x))
        return self.b(hidden), hidden

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 3))
    kill(net.a, 2)
    return net


@case("sparse skip from the input", refused={"relu": [2]}, example=lambda: torch.eye(12)[:8])
def sparse_skip() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) + x.flip(1)[:, :4])

    net = Net(forward, a=nn.Linear(12, 4), b=nn.Linear(4, 2))
    kill(net.a, 2)
    return net


@case("pre-activation read elsewhere", refused={"relu": [2]}, example=vectors)
def read_before() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(F.relu(hidden)) + self.c(hidden)

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 3), c=nn.Linear(6, 3))
    kill(net.a, 2)
    return net


# --- channels that move -----------------------------------------------------------------------


@case("grouped", accepted={"1": [0, 5], "3": [2, 11]})
def grouped() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 8), nn.ReLU(), conv(8, 12, groups=4), nn.ReLU(), conv(12, 6, groups=3)),
    )
    kill(net[0], 0, 5)
    kill(net[2], 2, 11)
    return net


@case("depthwise, both sides dead", accepted={"2": [1, 4], "5": [1, 6]})
def depthwise() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(conv(8, 8, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(conv(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
    )
    kill(net[1], 1, 4)
    kill(net[4], 1, 6)
    return net


@case("channel shuffle", accepted={"relu": [1, 6], "relu-2": [3]})
def channel_shuffle() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, 1)
        return self.c(torch.cat([left, F.relu(self.b(right))], 1))

    net = Net(forward, a=conv(3, 8), bn=nn.BatchNorm2d(8), b=conv(4, 4), c=conv(8, 2))
    kill(net.bn, 1, 6)
    kill(net.b, 3)
    return net


@case("shuffled before the ReLU", accepted={"2": [1, 6]})
def shuffled_before() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ChannelShuffle(4), nn.ReLU(), conv(8, 2))
    order = nn.ChannelShuffle(4)(torch.arange(8.0).view(1, 8, 1, 1)).flatten().long()
    kill(net[0], int(order[1]), int(order[6]))
    return net


@case("pixel shuffle, group dead", accepted={"1": [4, 5, 6, 7]}, refused={"1": [0, 9]})
def pixel_shuffle() -> nn.Module:
    net = nn.Sequential(conv(3, 12), nn.ReLU(), nn.PixelShuffle(2), conv(3, 2))
    kill(net[0], 0, 4, 5, 6, 7, 9)
    return net


@case("pixel shuffle before the ReLU", accepted={"2": [1]})
def pixel_shuffle_before() -> nn.Module:
    net = nn.Sequential(conv(3, 12), nn.PixelShuffle(2), nn.ReLU(), conv(3, 2))
    kill(net[0], 4, 5, 6, 7)
    return net


@case("NCHW flatten", accepted={"1": [0, 3]})
def nchw_flatten() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5), nn.ReLU()),
        nn.Linear(5, 2),
    )
    kill(net[0], 0, 3)
    return net


@case("NHWC flatten", accepted={"relu": [0, 3]})
def nhwc_flatten() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).permute(0, 2, 3, 1).reshape(len(x), -1))

    net = Net(forward, a=conv(3, 4), b=nn.Linear(256, 3))
    kill(net.a, 0, 3)
    return net


@case("view and transpose", accepted={"relu": [0, 5]}, example=sequences)
def view_transpose() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        heads = F.relu(self.a(x)).view(n, t, 2, 4).transpose(1, 2)
        return self.b(heads.transpose(1, 2).reshape(n, t, 8))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 0, 5)
    return net


@case("mixer: transposed between layers", accepted={"relu": [0, 5]}, example=sequences)
def mixer() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x.transpose(1, 2)))).transpose(1, 2)

    net = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 5))
    kill(net.a, 0, 5)
    return net


@case("time first", accepted={"relu": [0, 5]}, example=lambda: torch.randn(5, 8, 12))
def time_first() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x.transpose(0, 1))).mean(0))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 5))
    kill(net.a, 0, 5)
    return net


# --- weights in other forms -------------------------------------------------------------------


@case("raw parameters", accepted={"relu": [1, 4], "relu-2": [2], "relu-3": [0]}, example=vectors)
def raw_parameters() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.a, self.a_bias))
        x = F.relu(x @ self.b.t() + self.b_bias)
        x = F.relu(torch.einsum("ni,io->no", x, self.c[1]) + self.c_bias)
        return torch.addmm(self.d_bias, x, self.d)

    shapes = {"a": (8, 12), "b": (6, 8), "c": (2, 6, 5), "d": (5, 2)}
    net = Net(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})
    for name, size in (("a_bias", 8), ("b_bias", 6), ("c_bias", 5), ("d_bias", 2)):
        setattr(net, name, nn.Parameter(torch.zeros(size)))
    kill(net.a_bias, 1, 4)
    kill(net.b_bias, 2)
    kill(net.c_bias, 0)
    return net


@case("stacked experts", accepted={"relu": [1, 9]}, example=vectors)
def experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("nd,edh->neh", x, self.a) + self.a_bias)
        return torch.einsum("neh,eho->no", hidden, self.b)

    net = Net(
        forward,
        a=nn.Parameter(torch.randn(3, 12, 4)),
        a_bias=nn.Parameter(torch.zeros(3, 4)),
        b=nn.Parameter(torch.randn(3, 4, 2)),
    )
    with torch.no_grad():
        net.a_bias[0, 1] = net.a_bias[2, 1] = 10 * FAR
    return net


@case("channels last", accepted={"1": [1, 4]}, example=lambda: torch.randn(8, 3, 8, 8))
def channels_last() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), nn.ReLU(), conv(4, 2))
    kill(net[0], 1, 4)
    return net.to(memory_format=torch.channels_last)


@case("tied weights", refused={"relu": [2]}, example=vectors)
def tied() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.a.weight.t())

    net = Net(forward, a=nn.Linear(12, 6))
    kill(net.a, 2)
    return net


@case("reused reader", refused={"relu": [2]}, example=vectors)
def reused() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) + self.b(torch.tanh(self.c(x)))

    net = Net(forward, a=nn.Linear(12, 6), c=nn.Linear(12, 6), b=nn.Linear(6, 2))
    kill(net.a, 2)
    return net


@case("weight norm", refused={"relu": [2]}, example=vectors)
def weight_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
    net = Net(forward, a=nn.Linear(12, 6), b=normed)
    kill(net.a, 2)
    return net


@case("frozen reader", refused={"1": [2]}, example=vectors)
def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2).requires_grad_(False))
    kill(net[0], 2)
    return net


@case("LSTM reads it", refused={"relu": [2]}, example=sequences)
def lstm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x)))[0])

    net = Net(forward, a=nn.Linear(12, 6), b=nn.LSTM(6, 4, batch_first=True), c=nn.Linear(4, 2))
    kill(net.a, 2)
    return net


# --- transformers, gates, control flow --------------------------------------------------------


@case(
    "transformer encoder",
    accepted={"layers.0.relu": [1, 7], "layers.1.relu": [0]},
    example=sequences,
)
def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2)
    kill(net.layers[0].linear1, 1, 7)
    kill(net.layers[1].linear1, 0)
    return net


@case("GELU MLP", accepted={"1": [1, 7]}, example=sequences)
def gelu_mlp() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4))
    kill(net[0], 1, 7)
    return net


@case("GELU that is almost silent", refused={"1": [1]}, example=sequences)
def gelu_almost() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].bias[1] = -4.0
    return net


@case("gated MLP", accepted={"relu": [1, 7]}, example=sequences)
def gated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(F.relu(self.gate(x)) * self.up(x)) + x

    net = Net(forward, gate=nn.Linear(12, 8), up=nn.Linear(12, 8), down=nn.Linear(8, 12))
    kill(net.gate, 1, 7)
    return net


@case("layer scale and stochastic depth", accepted={"relu": [1, 7]}, example=sequences)
def layer_scale() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.a(x)), 0.5, self.training)
        return x + F.dropout(self.b(hidden) * self.gamma, 0.2, self.training)

    net = Net(
        forward, a=nn.Linear(12, 8), b=nn.Linear(8, 12), gamma=nn.Parameter(torch.full((12,), 0.1))
    )
    kill(net.a, 1, 7)
    return net


@case("dynamic control flow", accepted={"relu": [1, 4], "relu-2": [0]}, example=vectors)
def dynamic() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        branch = self.b if bool(x.sum() > 5) else self.c
        for _ in range(int(x.sum() > 1) + 1):
            x = x * 1.0
        return self.d(F.relu(branch(x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(8, 6), d=nn.Linear(6, 2))
    kill(net.a, 1, 4)
    kill(net.b, 0)
    return net


@case("auxiliary head in training mode only", refused={"relu": [1]}, example=vectors)
def auxiliary() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return (self.b(x), self.aux(x)) if self.training else self.b(x)

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 2), aux=nn.Linear(6, 2))
    kill(net.a, 1)
    return net


@case("recurrent cell by hand", refused={"relu": [1]}, example=sequences)
def recurrent() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            state = F.relu(self.a(x[:, t]) + self.b(state))
        return self.c(state)

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    kill(net.a, 1)
    return net


@case(
    "mapping example",
    accepted={"relu": [1]},
    example=lambda: {"tokens": torch.randint(0, 9, (8, 5)), "scale": torch.rand(8, 1, 1)},
)
def mapping() -> nn.Module:
    def forward(self: Any, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.b(F.relu(self.a(self.embed(tokens) * scale)))}

    net = Net(forward, embed=nn.Embedding(9, 12), a=nn.Linear(12, 6), b=nn.Linear(6, 2))
    kill(net.a, 1)
    return net


# --- traps ------------------------------------------------------------------------------------


@case("norm without weights of its own", accepted={"2": [1]})
def no_affine() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU(), conv(8, 2))
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].bias[1] = 0.0
    return net


@case("experts by hard routing", accepted={"relu": [1], "relu-2": [1]}, example=vectors)
def routed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(1)
        out = x.new_zeros(len(x), 4)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows = (chosen == expert).nonzero().flatten()
            out = out.index_add(0, rows, down(F.relu(up(x[rows]))))
        return out

    net = Net(
        forward,
        router=nn.Linear(12, 2),
        up=nn.ModuleList(nn.Linear(12, 6) for _ in range(2)),
        down=nn.ModuleList(nn.Linear(6, 4) for _ in range(2)),
    )
    for layer in net.up:
        kill(layer, 1)
    return net


@case("one activation, two calls", accepted={"relu": [1], "relu-2": [1]}, example=vectors)
def twice() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(F.relu(hidden)) + self.c(F.relu(hidden))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 2), c=nn.Linear(8, 2))
    kill(net.a, 1)
    return net


@case("maxout, a pair dead", accepted={"relu": [2, 3]}, refused={"relu": [5]}, example=vectors)
def maxout() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).view(len(x), 4, 2).amax(2))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(4, 2))
    kill(net.a, 2, 3, 5)
    return net


@case("attention reads it", refused={"relu": [1]}, example=sequences)
def attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(hidden, hidden, hidden)[0]

    net = Net(forward, a=nn.Linear(12, 8), b=nn.MultiheadAttention(8, 2, batch_first=True))
    kill(net.a, 1)
    return net


@case("pruned reader", refused={"1": [1]}, example=vectors)
def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.utils.prune.random_unstructured(net[2], "weight", 0.3)
    kill(net[0], 1)
    return net


@case("the choice of the largest", refused={"relu": [1]}, example=vectors)
def top_k() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        values, indices = hidden.topk(3, 1)
        return self.b(torch.zeros_like(hidden).scatter(1, indices, values))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 2))
    kill(net.a, 1)
    return net


# --- an attack: blocks that were met outside, and what once went wrong --------------------------


def raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def nodes() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 12), torch.rand(6, 6)


def edges() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 12), torch.randint(0, 6, (2, 20))


@case("graph convolution", accepted={"relu": [1]}, example=nodes)
def graph_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ (F.relu(adjacency @ (x @ self.a) + self.a_bias) @ self.b)

    net = Net(forward, a=raw(12, 8), a_bias=raw(8), b=raw(8, 3))
    with torch.no_grad():
        net.a_bias[1] = 10 * FAR
    return net


@case("graph convolution that reads neighbours, too", accepted={"relu": [1]}, example=nodes)
def graph_sage() -> nn.Module:
    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(torch.cat([hidden, adjacency @ hidden], 1))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(16, 2))
    kill(net.a, 1)
    return net


@case("messages along edges", accepted={"relu": [1], "relu-2": [4]}, example=edges)
def message_passing() -> nn.Module:
    def forward(self: Any, x: Tensor, edge: Tensor) -> Tensor:
        message = F.relu(self.a(torch.cat([x[edge[0]], x[edge[1]]], 1)))
        largest = x.new_zeros(6, 8).scatter_reduce(
            0, edge[1][:, None].expand(-1, 8), message, "amax"
        )
        return self.c(F.relu(self.b(torch.cat([x, largest], 1))))

    net = Net(forward, a=nn.Linear(24, 8), b=nn.Linear(20, 6), c=nn.Linear(6, 2))
    kill(net.a, 1)
    kill(net.b, 4)
    return net


@case("graph attention", refused={"relu": [1]}, example=nodes)
def graph_attention() -> nn.Module:
    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = self.a(x)
        scores = self.left(hidden) + self.right(hidden).t() + adjacency
        return self.b(F.relu(scores.softmax(1) @ hidden + self.bias))

    net = Net(
        forward,
        a=nn.Linear(12, 8),
        left=nn.Linear(8, 1),
        right=nn.Linear(8, 1),
        b=nn.Linear(8, 2),
        bias=nn.Parameter(torch.zeros(8)),
    )
    kill(net.bias, 1)
    return net


@case("soft mixture of experts in one einsum", accepted={"relu": [1, 13]}, example=vectors)
def soft_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        hidden = F.relu(torch.einsum("bi,eih->beh", x, self.a) + self.bias)
        return torch.einsum("be,beh,eho->bo", gate, hidden, self.b)

    net = Net(forward, gate=nn.Linear(12, 3), a=raw(3, 12, 6), bias=raw(3, 6), b=raw(3, 6, 4))
    with torch.no_grad():
        net.bias[0, 1] = net.bias[2, 1] = 10 * FAR
    return net


@case(
    "experts by baddbmm",
    accepted={"relu": [2]},
    example=lambda: torch.randn(3, 6, 12),
)
def batched_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.baddbmm(self.a_bias, x, self.a))
        return torch.baddbmm(self.b_bias, hidden, self.b)

    net = Net(forward, a=raw(3, 12, 8), a_bias=raw(3, 1, 8), b=raw(3, 8, 4), b_bias=raw(3, 1, 4))
    with torch.no_grad():
        net.a_bias[:, 0, 2] = 10 * FAR
    return net


@case("bilinear", accepted={"relu": [1], "relu-2": [2]}, example=vectors)
def bilinear() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)), x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Bilinear(8, 12, 4), c=nn.Linear(4, 2))
    kill(net.a, 1)
    kill(net.b, 2)
    return net


@case("bilinear pooling", accepted={"relu": [1, 3]}, example=lambda: torch.randn(8, 3, 6, 6))
def bilinear_pooling() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x)).flatten(2)
        return self.b((hidden @ hidden.transpose(1, 2)).flatten(1))

    net = Net(forward, a=conv(3, 5), b=nn.Linear(25, 3))
    kill(net.a, 1, 3)
    return net


@case("tensordot, mv and dots in einsum", accepted={"relu": [1, 5]}, example=sequences)
def tensordot() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.tensordot(x, self.a, dims=([2], [0])) + self.a_bias)
        single = torch.mv(hidden[:, 0], self.c) + torch.inner(hidden[:, 1], self.d)
        both = torch.tensordot(hidden, self.b, dims=1) + torch.einsum("...i,io", hidden, self.e)
        return both + single[:, None, None]

    net = Net(forward, a=raw(12, 8), a_bias=raw(8), b=raw(8, 3), c=raw(8), d=raw(8), e=raw(8, 3))
    with torch.no_grad():
        net.a_bias[[1, 5]] = 10 * FAR
    return net


@case("weights cast and scaled at run time", accepted={"relu": [1, 5]}, example=vectors)
def cast_weights() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, bias = (p.to(torch.float64) for p in (self.a.weight, self.a.bias))
        return F.relu(F.linear(x.double(), a, bias)) @ (self.b * 0.3).double().t()[:, :2]

    net = Net(forward, a=nn.Linear(12, 8), b=raw(3, 8))
    kill(net.a, 1, 5)
    return net


@case("a weight that is computed", refused={"relu": [1]}, example=vectors)
def noisy_weight() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.mean + self.spread * 0.1)

    net = Net(forward, a=nn.Linear(12, 8), mean=raw(3, 8), spread=raw(3, 8))
    kill(net.a, 1)
    return net


@case("slices of one weight that cross", accepted={"relu": [1, 5]}, example=vectors)
def fused_slices() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.a.chunk(2, 0)
        hidden = F.relu(F.linear(x, first, self.a_bias[:8]))
        gate = torch.sigmoid(F.linear(x, second, self.a_bias[8:]))
        return (hidden * gate) @ self.b.T[:8] + hidden @ self.b.permute(1, 0)[8:]

    net = Net(forward, a=raw(16, 12), a_bias=raw(16), b=raw(3, 16))
    with torch.no_grad():
        net.a_bias[[1, 5]] = 10 * FAR
    return net


@case("a factor per channel before a LayerNorm", accepted={"relu": [1, 6]}, example=vectors)
def factor_before_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.norm(F.relu(self.a(x)) * self.factor))

    net = Net(forward, a=nn.Linear(12, 8), factor=raw(8), norm=nn.LayerNorm(8), b=nn.Linear(8, 3))
    kill(net.a, 1, 6)
    return net


@case("multiplied, then summed", accepted={"relu": [1, 6]}, example=vectors)
def multiply_sum() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return (F.relu(self.a(x))[:, None] * self.b).sum(-1)

    net = Net(forward, a=nn.Linear(12, 8), b=raw(3, 8))
    kill(net.a, 1, 6)
    return net


@case("summed with permuted channels", accepted={"relu": [1, 5]}, example=vectors)
def permuted_sum() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b(x).flip(1)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(12, 8), c=nn.Linear(8, 2))
    kill(net.a, 1, 5)
    return net


@case(
    "FiLM conditioning",
    accepted={"relu": [1], "relu-2": [3]},
    example=lambda: (torch.randn(8, 3, 8, 8), torch.randn(8, 5)),
)
def film() -> nn.Module:
    def forward(self: Any, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(F.relu(self.a(condition))).chunk(2, 1)
        hidden = self.norm(self.b(x)) * scale[:, :, None, None] + shift[:, :, None, None]
        return self.c(F.relu(hidden))

    net = Net(
        forward,
        a=nn.Linear(5, 6),
        film=nn.Linear(6, 16),
        b=conv(3, 8),
        norm=nn.BatchNorm2d(8, affine=False),
        c=conv(8, 2),
    )
    kill(net.a, 1)
    with torch.no_grad():
        net.film.bias[8 + 3] = 10 * FAR
    return net


@case("norm without weights after the ReLU", accepted={"1": [1, 5]})
def plain_norm_after() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.InstanceNorm2d(8), conv(8, 4))
    kill(net[0], 1, 5)
    return net


@case("GroupNorm of single channels after the ReLU", accepted={"1": [1, 5]})
def single_groups_after() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.GroupNorm(8, 8), conv(8, 4))
    kill(net[0], 1, 5)
    return net


@case("always below zero after a LayerNorm", accepted={"2": [0]}, example=vectors)
def below_zero() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    kill(net[0], 0)
    return net


@case("rolled batch", accepted={"relu": [1, 5], "relu-2": [0]}, example=vectors)
def rolled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x)[[1, 0, 3, 2, 5, 4, 7, 6]])
        return self.c(F.relu(self.b(hidden.roll(3, 0))))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
    kill(net.a, 1, 5)
    kill(net.b, 0)
    return net


@case("marks that torch.where drops", accepted={"relu": [1, 5]}, example=vectors)
def where() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(torch.nan_to_num(torch.where(hidden > 0, hidden, torch.zeros_like(hidden))))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1, 5)
    return net


@case("a model that checks its values", accepted={"relu": [1]}, example=vectors)
def checked() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        if not hidden.isfinite().all():
            raise ValueError("not finite")
        return self.b(hidden)

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("a model that cannot stand a change", refused={"relu": [1]}, example=vectors)
def unchangeable() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        if float(hidden[:, 1].sum()) != 0.0:
            raise ValueError("not silent")
        return self.b(hidden)

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("inside vmap", refused={"relu": [1]}, example=vectors)
def vmapped() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.b(row))(F.relu(self.a(x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("a penalty that is a number", refused={"relu": [1]}, example=vectors)
def penalty() -> nn.Module:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.a(x))
        return self.b(hidden), hidden.abs().mean()

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("dropout of a parameter, in training mode only", accepted={"relu": [1]}, example=vectors)
def parameter_dropout() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x + (F.dropout(self.position, 0.5) if self.training else self.position)
        return self.b(F.relu(self.a(x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3), position=raw(12))
    kill(net.a, 1)
    return net


@case("embedding", accepted={"1": [2]}, example=lambda: torch.randint(0, 20, (8, 5)))
def embedding() -> nn.Module:
    net = nn.Sequential(nn.Embedding(20, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[:, 2] = FAR
    return net


@case(
    "split and chained",
    accepted={"relu": [1, 9], "relu-2": [1], "relu-4": [3]},
    refused={"relu-3": [2]},
)
def res2net() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        parts = F.relu(self.a(x)).split(4, 1)
        found = [parts[0]]
        for number, layer in enumerate(self.chain):
            last = parts[number + 1] if number == 0 else found[-1] + parts[number + 1]
            found.append(F.relu(layer(last)))
        return self.b(torch.cat(found, 1))

    chain = nn.ModuleList(conv(4, 4) for _ in range(3))
    net = Net(forward, a=conv(3, 16), chain=chain, b=conv(16, 2))
    kill(net.a, 1, 9)
    for layer, unit in zip(chain, (1, 2, 3), strict=True):
        kill(layer, unit)
    return net


@case("pyramid with lateral sums", accepted={"relu": [1], "relu-2": [2], "relu-3": [0]})
def pyramid() -> nn.Module:
    def forward(self: Any, x: Tensor) -> list[Tensor]:
        low = F.relu(self.a(x))
        high = F.relu(self.b(low))
        top = self.lateral_b(high)
        mid = self.lateral_a(low) + F.interpolate(top, size=low.shape[-2:], mode="nearest")
        return [self.head(F.relu(self.out(mid))), self.high(top)]

    net = Net(
        forward,
        a=conv(3, 4),
        b=conv(4, 6, stride=2),
        lateral_a=conv(4, 5, 1),
        lateral_b=conv(6, 5, 1),
        out=conv(5, 5),
        head=conv(5, 2),
        high=conv(5, 2),
    )
    kill(net.a, 1)
    kill(net.b, 2)
    kill(net.out, 0)
    return net


@case(
    "gated dilated convolutions",
    accepted={"block.relu": [1], "relu": [3]},
    example=lambda: torch.randn(8, 4, 20),
)
def wavenet() -> nn.Module:
    def block(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (4, 0))
        hidden = F.relu(self.a(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.out(hidden), self.skip(hidden)

    def forward(self: Any, x: Tensor) -> Tensor:
        x, skip = self.block(self.stem(x))
        return self.head(x) + self.c(F.relu(self.b(skip)))

    dilated = {"dilation": 2}
    inner = Net(
        block,
        a=nn.Conv1d(6, 6, 3, **dilated),
        gate=nn.Conv1d(6, 6, 3, **dilated),
        out=nn.Conv1d(6, 6, 1),
        skip=nn.Conv1d(6, 5, 1),
    )
    net = Net(
        forward,
        stem=nn.Conv1d(4, 6, 1),
        block=inner,
        head=nn.Conv1d(6, 2, 1),
        b=nn.Conv1d(5, 5, 1),
        c=nn.Conv1d(5, 2, 1),
    )
    kill(inner.a, 1)
    kill(net.b, 3)
    return net


@case(
    "shifted windows, merged",
    accepted={"relu": [1, 8], "relu-2": [3]},
    example=lambda: torch.randn(4, 8, 8, 12),
)
def windows() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n = len(x)
        y = torch.roll(self.norm(x), (-2, -2), (1, 2)).view(n, 2, 4, 2, 4, 12)
        y = self.b(F.relu(self.a(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12))))
        y = y.view(n, 2, 2, 4, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, 12)
        x = x + torch.roll(y, (2, 2), (1, 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.d(F.relu(self.c(torch.cat(corners, -1))))

    net = Net(
        forward,
        norm=nn.LayerNorm(12),
        a=nn.Linear(12, 16),
        b=nn.Linear(16, 12),
        c=nn.Linear(48, 10),
        d=nn.Linear(10, 2),
    )
    kill(net.a, 1, 8)
    kill(net.c, 3)
    return net


@case(
    "points, then their maximum",
    accepted={"relu": [2], "relu-2": [7], "relu-3": [0]},
    example=sequences,
)
def pointnet() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        each = F.relu(self.a(x))
        whole = F.relu(self.b(each)).max(1, keepdim=True).values.expand(-1, x.shape[1], -1)
        return self.d(F.relu(self.c(torch.cat([whole, each], -1))))

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 8), c=nn.Linear(14, 4), d=nn.Linear(4, 2))
    kill(net.a, 2)
    kill(net.b, 7)
    kill(net.c, 0)
    return net


@case(
    "masked positions",
    accepted={"relu": [1], "relu-2": [2]},
    example=lambda: (torch.randn(8, 5, 12), torch.rand(8, 5) > 0.3),
)
def masked() -> nn.Module:
    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        inside = F.relu(self.a(x))[mask]
        whole = x.new_zeros(*x.shape[:2], 6)
        whole[mask] = F.relu(self.b(inside))
        return self.c(whole.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
    kill(net.a, 1)
    kill(net.b, 2)
    return net


@case("space to depth by slices", accepted={"relu": [0, 2]})
def space_to_depth() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.b(torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1))

    net = Net(forward, a=conv(3, 4), b=conv(16, 2))
    kill(net.a, 0, 2)
    return net


@case("patches unfolded", accepted={"relu": [1]})
def unfolded() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.unfold(F.relu(self.a(x)), 3, padding=1).transpose(1, 2))

    net = Net(forward, a=conv(3, 4), b=nn.Linear(36, 3))
    kill(net.a, 1)
    return net


@case("twins that share an encoder", refused={"a.1": [1], "a.1-2": [1]}, example=vectors)
def twins() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.a(x), self.a(x.flip(1)))

    net = Net(forward, a=nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)))
    kill(net.a[0], 1)
    return net


@case("values and their negatives", refused={"relu": [1]})
def both_signs() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(F.relu(torch.cat([hidden, -hidden], 1)))

    net = Net(forward, a=conv(3, 4), b=conv(8, 2))
    kill(net.a, 1)
    return net


@case("highway", refused={"relu": [1]}, example=vectors)
def highway() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return self.b(gate * F.relu(self.a(x)) + (1 - gate) * x)

    net = Net(forward, a=nn.Linear(12, 12), gate=nn.Linear(12, 12), b=nn.Linear(12, 2))
    kill(net.a, 1)
    return net


@case("LayerNorm written by hand, before the ReLU", accepted={"relu": [1, 4]}, example=vectors)
def norm_by_hand() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        hidden = hidden - hidden.mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(F.relu(hidden * self.scale + self.shift))

    ones, zeros = (nn.Parameter(make(8)) for make in (torch.ones, torch.zeros))
    net = Net(forward, a=nn.Linear(12, 8), scale=ones, shift=zeros, b=nn.Linear(8, 3))
    kill(net.shift, 1)
    kill(net.a, 4)
    return net


@case("BatchNorm written by hand", accepted={"2": [1, 3], "4": [2]})
def batch_norm_by_hand() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True) if self.training else self.mean
        centred = x - mean
        spread = centred.pow(2).mean((0, 2, 3), keepdim=True) if self.training else self.variance
        return centred * torch.rsqrt(spread + 1e-5) * self.scale + self.shift

    norm = Net(forward)
    for name, value in (("mean", 0.0), ("variance", 1.0)):
        norm.register_buffer(name, torch.full((1, 8, 1, 1), value))
    norm.scale = nn.Parameter(torch.ones(8, 1, 1))
    norm.shift = nn.Parameter(torch.zeros(8, 1, 1))
    net = nn.Sequential(conv(3, 8), norm, nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))
    kill(norm.shift, 1, 3)
    kill(net[3], 2)
    return net
