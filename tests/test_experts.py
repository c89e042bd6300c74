"""Mixtures of experts of ``transformers``: each expert's units, however its tokens get to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lightning_deadunits import find_dead_units

SIZES = dict(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, hidden_act="relu",
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
MODELS = {
    "Mixtral": ("MixtralModel", "MixtralConfig", dict(num_local_experts=4)),
    "Qwen2Moe": (
        "Qwen2MoeModel",
        "Qwen2MoeConfig",
        dict(num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=20),
    ),
}


def build(name: str, implementation: str) -> nn.Module:
    model, config, options = MODELS[name]
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**SIZES, **options)
    settings._experts_implementation = implementation
    return getattr(transformers, model)._from_config(settings).eval()


def truth_of(model: nn.Module, batches: list[Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Count by what each expert is given: token by token, from the router's own choice."""
    found: dict[str, tuple[Tensor, int]] = {}

    def note(name: str, experts: Any, given: tuple[Any, ...]) -> None:
        hidden, chosen = given[0].reshape(-1, SIZES["hidden_size"]), given[1]
        for token, choices in zip(hidden, chosen.tolist(), strict=True):
            for expert in choices:
                gate = (experts.gate_up_proj[expert] @ token).chunk(2)[0]
                key = f"{name}.gate_up_proj.{expert}"
                zeros, seen = found.get(key, (torch.zeros(len(gate), dtype=torch.int64), 0))
                found[key] = zeros + (gate <= 0), seen + 1

    handles = [
        module.register_forward_pre_hook(lambda m, given, name=name: note(name, m, given))
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_experts_are_counted_by_their_weights(name: str, implementation: str) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, 50, (2, 9), generator=generator) for _ in range(3)]
    # One way of computing gives the truth for all of them: what differs is rounding below zero.
    truth = truth_of(build(name, "eager"), batches)
    report = find_dead_units(build(name, implementation), [{"input_ids": b} for b in batches])
    told = {layer.made_by[0]: layer for layer in report.layers.values() if layer.made_by}
    assert len(truth) == 8
    for key, (zeros, seen) in truth.items():
        assert torch.equal(told[key].zeros, zeros), key
        assert told[key].observations == seen
        assert not told[key].axis_assumed
    assert report.unjudged == {}
