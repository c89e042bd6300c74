"""Look through a model of Hugging Face transformers: one call, whatever its batches look like.

Run it with ``python examples/transformers_model.py``; it takes seconds, prints a table and draws
it. The model is a small OPT with random weights, so nothing is downloaded. Some of its units are
silenced by hand, more of them in early layers, as Voita, Ferrando and Nalmpantis (2023, "Neurons
in Large Language Models: Dead, N-gram, Positional") found them in trained ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from lightning_deadunits import DeadUnitsReport, find_dead_units

VOCABULARY = 200


def model() -> OPTForCausalLM:
    """Return a four-layer OPT in which 64, 32, 16 and 8 of 256 units per layer are dead."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    opt = OPTForCausalLM(config)
    for index, layer in enumerate(opt.model.decoder.layers):
        with torch.no_grad():
            layer.fc1.bias[: 64 >> index] = -100.0
    return opt


def batches(number: int) -> list[dict[str, Tensor]]:
    """Return batches of 8 sequences of up to 48 tokens, padded as a tokenizer pads them."""
    made = []
    for _ in range(number):
        lengths = torch.randint(8, 49, (8, 1))
        attention_mask = (torch.arange(48) < lengths).long()
        input_ids = torch.randint(2, VOCABULARY, (8, 48)) * attention_mask
        made.append({"input_ids": input_ids, "attention_mask": attention_mask})
    return made


def main(arguments: list[str] | None = None) -> DeadUnitsReport:
    """Print the table and draw it.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20, help="how many to look at")
    parser.add_argument("--picture", type=Path, default=Path("logs/transformers_model.png"))
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    report = find_dead_units(model(), batches(options.batches))
    print(report)

    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure = report.plot()
    figure.savefig(options.picture, dpi=80)
    plt.close(figure)
    print(f"\nThe same as a picture: {options.picture}")
    return report


if __name__ == "__main__":
    main()
