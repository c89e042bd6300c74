"""Dead units in transformers' own Trainer, by a callback of ten lines.

    python examples/transformers_trainer.py

Every evaluation in the course of the training is counted, on however many processes: run it by
``torchrun --nproc-per-node 2`` and counts are summed. What does not train needs no callback:
``with watch_dead_units(trainer.model) as watch: trainer.evaluate()``.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lightning_deadunits import DeadUnitsReport, watch_dead_units


class DeadUnits(TrainerCallback):
    """Counts evaluations; ``reports`` has one for each."""

    def __init__(self, **options: Any) -> None:
        self.options, self.reports = options, list[DeadUnitsReport]()

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Keep the model, free of wrappers."""
        self.model = model

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count from now on, if an evaluation follows."""
        if control.should_evaluate:  # the very next thing that runs
            self.watch = watch_dead_units(self.model, **self.options)
            self.watch.__enter__()

    on_epoch_end = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge what has been counted."""
        self.watch.__exit__(None, None, None)
        self.reports.append(self.watch.report())


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Sequences that count upwards: a small model learns to go on."""

    def __init__(self, samples: int) -> None:
        starts = torch.randint(0, 50, (samples, 1), generator=torch.Generator().manual_seed(0))
        self.tokens = (starts + torch.arange(16)) % 50

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def main() -> list[DeadUnitsReport]:
    """Train a small OPT and print what its last evaluation showed."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=32,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias[:5] = -100.0  # five units of 64 can never fire
    callback = DeadUnits()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, use_cpu=True, num_train_epochs=2, per_device_train_batch_size=16,
            per_device_eval_batch_size=16, eval_strategy="epoch", save_strategy="no",
            report_to=[], disable_tqdm=True, learning_rate=1e-3,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=Tokens(128), eval_dataset=Tokens(64),
            callbacks=[callback],
        )  # fmt: skip
        trainer.train()
    if trainer.is_world_process_zero():
        print(callback.reports[-1])
    return callback.reports


if __name__ == "__main__":
    main()
