"""Public architectures, small and randomly initialised: all that is dead inside comes to life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from lightning_deadunits import find_dead_units, reinit_dead_units
from tests.zoo.snapshot import compared

TOKENS = {"vocab_size": 50, "num_attention_heads": 2, "num_hidden_layers": 2}
IMAGE = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 3, 32, 32)}


def text() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 50, (4, 7))}


def both() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": torch.randint(3, 50, (4, 5))}


def resnet() -> nn.Module:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2])
    return hf.ResNetModel(config)


def regnet() -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8}
    return hf.RegNetModel(hf.RegNetConfig(**sizes))


def convnext() -> nn.Module:
    return hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 2], num_stages=2))


def mobilenet() -> nn.Module:
    return hf.MobileNetV2Model(hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32))


def bert() -> nn.Module:
    return hf.BertModel(hf.BertConfig(hidden_size=16, intermediate_size=32, **TOKENS))


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return hf.T5Model(hf.T5Config(vocab_size=50, **sizes))


def opt() -> nn.Module:
    sizes = {"hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16}
    return hf.OPTForCausalLM(hf.OPTConfig(max_position_embeddings=32, **sizes, **TOKENS))


def vit() -> nn.Module:
    return hf.ViTModel(hf.ViTConfig(intermediate_size=32, patch_size=8, **IMAGE))


def swin() -> nn.Module:
    sizes = {"patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    return hf.SwinModel(hf.SwinConfig(image_size=32, window_size=4, **sizes))


def deberta() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "relative_attention": True}
    return hf.DebertaV2Model(hf.DebertaV2Config(**sizes, **TOKENS))


def persimmon() -> nn.Module:
    return hf.PersimmonModel(hf.PersimmonConfig(hidden_size=16, intermediate_size=32, **TOKENS))


def mobilevit() -> nn.Module:
    sizes = {"hidden_sizes": [12, 16, 20], "neck_hidden_sizes": [8, 8, 8, 12, 12, 16, 24]}
    return hf.MobileViTModel(hf.MobileViTConfig(image_size=32, num_attention_heads=2, **sizes))


# Model, example, the module whose bias kills units, the layer they are of: all of the same block.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str, str]] = {
    "ResNet": (
        resnet,
        image,
        "encoder.stages.0.layers.1.layer.0.normalization",
        "encoder.stages.0.layers.1.layer.0.activation",
    ),
    "ResNet, inner 3x3": (
        resnet,
        image,
        "encoder.stages.1.layers.0.layer.1.normalization",
        "encoder.stages.1.layers.0.layer.1.activation",
    ),
    "RegNet, grouped and gated": (
        regnet,
        image,
        "encoder.stages.0.layers.0.layer.1.normalization",
        "encoder.stages.0.layers.0.layer.1.activation",
    ),
    "RegNet, squeeze": (
        regnet,
        image,
        "encoder.stages.0.layers.0.layer.2.attention.0",
        "encoder.stages.0.layers.0.layer.2.attention.1",
    ),
    "ConvNext": (
        convnext,
        image,
        "encoder.stages.0.layers.1.pwconv1",
        "encoder.stages.0.layers.1.act",
    ),
    "MobileNetV2, before depthwise": (
        mobilenet,
        image,
        "layer.2.expand_1x1.normalization",
        "layer.2.expand_1x1.activation",
    ),
    "MobileNetV2, after depthwise": (
        mobilenet,
        image,
        "layer.2.conv_3x3.normalization",
        "layer.2.conv_3x3.activation",
    ),
    "BERT": (
        bert,
        text,
        "encoder.layer.1.intermediate.dense",
        "encoder.layer.1.intermediate.intermediate_act_fn",
    ),
    "T5": (
        t5,
        both,
        "decoder.block.1.layer.2.DenseReluDense.wi",
        "decoder.block.1.layer.2.DenseReluDense.act",
    ),
    "OPT": (opt, text, "model.decoder.layers.0.fc1", "model.decoder.layers.0.activation_fn"),
    "DeBERTa, which drops out positions in training mode": (
        deberta,
        text,
        "encoder.layer.1.intermediate.dense",
        "encoder.layer.1.intermediate.intermediate_act_fn",
    ),
    "Persimmon, squared ReLU": (
        persimmon,
        text,
        "layers.0.mlp.dense_h_to_4h",
        "layers.0.mlp.act",
    ),
    "MobileViT": (
        mobilevit,
        image,
        "encoder.layer.0.layer.0.expand_1x1.normalization",
        "encoder.layer.0.layer.0.expand_1x1.activation",
    ),
    "ViT": (vit, image, "layers.0.mlp.fc1", "layers.0.mlp.activation_fn"),
    "Swin": (
        swin,
        image,
        "encoder.layers.0.blocks.1.mlp.fc1",
        "encoder.layers.0.blocks.1.mlp.activation_fn",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_dead_units_of_public_architectures_come_to_life(name: str) -> None:
    build, batch, killer, layer = CASES[name]
    torch.manual_seed(0)
    model, example = build(), batch()
    with torch.no_grad():
        module = model.get_submodule(killer)
        if module.bias is None:
            module.weight[:2] = 0.0  # T5 has no biases: such a unit is silent, not negative
        else:
            module.bias[:2] = -50.0
    assert {0, 1} <= set(find_dead_units(model, [example]).layers[layer].dead.tolist())
    before = compared(model, example)
    report = reinit_dead_units(model, {layer: [0, 1]}, example)
    assert report.reinitialised == {layer: [0, 1]}, str(report)
    assert all(map(torch.equal, before, compared(model, example)))
    assert not {0, 1} & set(find_dead_units(model, [example]).layers[layer].dead.tolist())


def test_units_of_experts_that_take_sorted_tokens_come_to_life() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 2}
    model = hf.MixtralModel(hf.MixtralConfig(num_local_experts=2, **sizes, **TOKENS))
    layer, experts, example = "layers.0.mlp.experts.act_fn", model.layers[0].mlp.experts, text()
    with torch.no_grad():
        experts.gate_up_proj[:, :2] = 0.0
    before = compared(model, example)
    report = reinit_dead_units(model, {layer: [0, 1]}, example)
    assert report.reinitialised == {layer: [0, 1]}, str(report)
    assert report.made_by[layer] == ["layers.0.mlp.experts.gate_up_proj"]
    assert all(map(torch.equal, before, compared(model, example)))
