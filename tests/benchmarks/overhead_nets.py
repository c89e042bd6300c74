"""The networks whose evaluation pass is timed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel


def conv_blocks() -> tuple[nn.Module, Tensor]:
    """Six Conv-BN-ReLU blocks at (32, 3, 32, 32)."""
    widths = [3, 64, 64, 64, 64, 64, 64]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(32, 3, 32, 32)


def mlp() -> tuple[nn.Module, Tensor]:
    """Six layers of width 512 at batch 256."""
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(256, 512)


def tiny() -> tuple[nn.Module, Tensor]:
    """Three layers of width 64 at batch 32: what windows of training batches are for."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(32, 64)


def resnet18() -> tuple[nn.Module, Tensor]:
    """ResNet-18 as transformers writes it, at (8, 3, 224, 224)."""
    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    return ResNetModel(config), torch.randn(8, 3, 224, 224)


def resnet50() -> tuple[nn.Module, Tensor]:
    """ResNet-50 as transformers writes it, at (128, 3, 224, 224): for a GPU."""
    return ResNetModel(ResNetConfig()), torch.randn(128, 3, 224, 224)


def transformer_mlp() -> tuple[nn.Module, Tensor]:
    """Three MLP blocks of a transformer of width 384, 196 tokens, batch 8."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.LayerNorm(384), nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)]
    return nn.Sequential(*layers), torch.randn(8, 196, 384)


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "conv blocks": conv_blocks,
    "mlp": mlp,
    "tiny": tiny,
    "resnet-18": resnet18,
    "transformer mlp": transformer_mlp,
    "resnet-50": resnet50,
}
ON_CPU = [name for name in NETS if name != "resnet-50"]
