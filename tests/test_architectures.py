"""Architectures that nobody here wrote: every activation of each is found, and exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from lightning_deadunits import find_dead_units
from tests.reference import zeros_by_numpy

IMAGES = {"pixel_values": (2, 3, 32, 32)}
TEXT = {"input_ids": (2, 7)}
BOTH_TEXTS = {"input_ids": (2, 7), "decoder_input_ids": (2, 5)}
TINY_TEXT = dict(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, small and randomly initialised.

    Attributes:
        model: Name of the model class.
        config: Name of the configuration class and its options.
        inputs: Names and shapes of what it is called with.
        unit_dim: Axis of the units in its activations, by their number of axes.
    """

    model: str
    config: tuple[str, dict[str, Any]]
    inputs: dict[str, tuple[int, ...]]
    unit_dim: dict[int, int]

    def __str__(self) -> str:
        return self.model

    def build(self) -> nn.Module:
        name, options = self.config
        torch.manual_seed(0)
        model: nn.Module = getattr(hf, self.model)(getattr(hf, name)(**options))
        return model.eval()

    def batch(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randint(1, 50, shape, generator=generator)
            if name.endswith("ids")
            else torch.randn(shape, generator=generator)
            for name, shape in self.inputs.items()
        }


CONV, TOKENS, NHWC = {4: 1}, {3: 2, 2: 1}, {4: 3}
STAGES = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
ARCHITECTURES = [
    Architecture(
        "ResNetModel",
        ("ResNetConfig", dict(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])),
        IMAGES, CONV,
    ),
    Architecture(
        "RegNetModel",
        ("RegNetConfig",
         dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4)),
        IMAGES, CONV,
    ),
    Architecture("ConvNextModel", ("ConvNextConfig", STAGES), IMAGES, NHWC),
    Architecture(
        "MobileNetV2Model",
        ("MobileNetV2Config", dict(depth_multiplier=0.25, image_size=32)),
        IMAGES, CONV,
    ),
    Architecture("BertModel", ("BertConfig", {**TINY, **TINY_TEXT}), TEXT, TOKENS),
    Architecture("AlbertModel", ("AlbertConfig", {**TINY, **TINY_TEXT, "embedding_size": 8}),
                 TEXT, TOKENS),
    Architecture(
        "GPT2Model", ("GPT2Config", dict(n_embd=16, n_layer=2, n_head=2, **TINY_TEXT)),
        TEXT, TOKENS,
    ),
    Architecture(
        "T5Model",
        ("T5Config", dict(vocab_size=50, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8,
                          decoder_start_token_id=0)),
        BOTH_TEXTS, TOKENS,
    ),
    Architecture(
        "OPTModel",
        ("OPTConfig", dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
                           word_embed_proj_dim=16, **TINY_TEXT)),
        TEXT, TOKENS,
    ),
    Architecture("LlamaModel", ("LlamaConfig", {**TINY, **TINY_TEXT}), TEXT, TOKENS),
    Architecture(
        "ViTModel", ("ViTConfig", {**TINY, "image_size": 32, "patch_size": 8}), IMAGES, TOKENS
    ),
    Architecture(
        "SwinModel",
        ("SwinConfig", dict(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=32,
                            patch_size=2, window_size=4)),
        IMAGES, TOKENS,
    ),
    Architecture(
        "SegformerModel",
        ("SegformerConfig", {**STAGES, "num_attention_heads": [1, 2, 2, 2]}),
        IMAGES, TOKENS,
    ),
]  # fmt: skip


def is_activation(module: nn.Module) -> bool:
    """Tell by the class' name: an independent rule, good for these models."""
    name = type(module).__name__.lower()
    leaf = not list(module.children()) and not list(module.parameters())
    return leaf and any(part in name for part in ("relu", "gelu", "silu", "swish"))


@contextmanager
def recording(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Keep every output of every activation module, in the order in which they run."""
    tape: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda _, args, out, name=name: tape.append((name, out.detach().clone()))
        )
        for name, module in model.named_modules()
        if is_activation(module)
    ]
    yield tape
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("atol", [None, 0.0, 0.01], ids=["default", "exact", "loose"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_every_activation_is_found_and_exact(
    architecture: Architecture, atol: float | None
) -> None:
    model = architecture.build()
    batch = architecture.batch(seed=1)
    with recording(model) as tape:
        report = find_dead_units(model, [batch], atol=atol)
    calls: dict[str, list[Tensor]] = {}
    for name, activation in tape:
        calls.setdefault(name, []).append(activation)
    # None of these models has one activation for several sets of weights; ALBERT has one block.
    assert list(report.layers) == list(calls) != []
    for layer, activations in zip(report.layers.values(), calls.values(), strict=True):
        unit_dim = architecture.unit_dim[activations[0].ndim]
        assert layer.unit_dim == unit_dim
        assert layer.num_units == activations[0].shape[unit_dim]
        zeros = sum(zeros_by_numpy(each, unit_dim, layer.atol) for each in activations)
        assert torch.equal(layer.zeros, zeros)
        assert layer.observations == sum(each.numel() for each in activations) // layer.num_units


@pytest.mark.parametrize("architecture", ARCHITECTURES[:6:2], ids=str)
def test_counts_add_up_over_batches(architecture: Architecture) -> None:
    model = architecture.build()
    batches = [architecture.batch(seed) for seed in range(3)]
    together = find_dead_units(model, batches)
    apart = [find_dead_units(model, [batch]) for batch in batches]
    for name, layer in together.layers.items():
        assert torch.equal(layer.zeros, sum(one.layers[name].zeros for one in apart))
        assert layer.observations == sum(one.layers[name].observations for one in apart)
