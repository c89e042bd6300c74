"""Dead latents of sparse autoencoders: ReLU, TopK and JumpReLU, over windows of tokens.

    python examples/sparse_autoencoder.py

A latent is dead that fired for none of the tokens of a window: windows of training batches, no
validation. After each step the decoder's columns are divided by their norms, as is usual. A latent
that is given a new life has its column set to zero first, so the norm is bounded from below:
without that bound the next step would divide zero by zero. Latents of TopK are found, but refused a
new life: what makes them cannot be traced through the choice of the largest. The picture has the
firing rates on a logarithmic axis, with a bar of their own for latents that never fired.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback, DeadUnitsReport, ReinitConfig

TOKENS, INPUTS, LATENTS, BATCH = 8192, 16, 64, 256


class TopK(nn.Module):
    """Keeps the k largest latents of every token, if they are positive."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape ``(N, LATENTS)``."""
        kept = x.topk(8, dim=-1)
        return torch.zeros_like(x).scatter(-1, kept.indices, kept.values.clamp(min=0))


class JumpReLU(nn.Module):
    """Passes what is above a threshold, unchanged (a fixed one, for brevity)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape ``(N, LATENTS)``."""
        return x * (x > 0.1)


class SparseAutoencoder(LightningModule):
    """One hidden layer of latents; a quarter of them is born dead."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(INPUTS, LATENTS), nn.Linear(LATENTS, INPUTS)
        self.activation = activation
        with torch.no_grad():
            self.encoder.bias[: LATENTS // 4] = -100.0
        self.normalise_decoder()

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct inputs of shape ``(N, INPUTS)``."""
        decoded: Tensor = self.decoder(self.activation(self.encoder(x)))
        return decoded

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the error of the reconstruction."""
        error: Tensor = (self(batch[0]) - batch[0]).square().mean()
        return error

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Normalise after each step."""
        self.normalise_decoder()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Divide columns by their norms; one of zeros stays what it is until it has learned."""
        norms = self.decoder.weight.norm(dim=0, keepdim=True)
        self.decoder.weight.div_(norms.clamp(min=1e-8))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def tokens() -> DataLoader[Any]:
    """Return activations of a model one would look into; here sparse sums of fixed directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(LATENTS, INPUTS, generator=generator)
    strengths = torch.rand(TOKENS, LATENTS, generator=generator)
    active = torch.rand(TOKENS, LATENTS, generator=generator) < 0.05
    return DataLoader(TensorDataset((strengths * active) @ directions), batch_size=BATCH)


def train(activation: nn.Module) -> tuple[SparseAutoencoder, DeadUnitCallback]:
    """Train one; a latent is due after two windows, of 4096 tokens each."""
    seed_everything(0, verbose=False)
    model = SparseAutoencoder(activation)
    windows = ReinitConfig(every_n_train_steps=16, patience=2, max_per_unit=1)
    callback = DeadUnitCallback(layers="activation", reinit=windows)
    Trainer(
        max_epochs=6, accelerator="cpu", callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, tokens())  # fmt: skip
    return model, callback


def draw(reports: dict[str, DeadUnitsReport], path: Path) -> None:
    """Draw how often latents fire."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, len(reports), figsize=(10, 3), layout="constrained", sharey=True)
    for axis, (name, report) in zip(axes, reports.items(), strict=True):
        layer = report.layers["activation"]
        rates = 1 - layer.zero_rate.numpy()
        least = 1 / layer.observations  # the smallest rate that a window can show
        edges = np.geomspace(least, 1, 25)
        axis.hist(rates[rates > 0].clip(least, 1), bins=edges, color="#4c72b0")
        axis.bar(least / 2, (rates == 0).sum(), width=least / 3, color="#d1335b")
        axis.set(xscale="log", title=name, xlabel="firing rate (red: never fired)")
    axes[0].set_ylabel("latents")
    figure.savefig(path)


def main(arguments: list[str]) -> dict[str, DeadUnitsReport]:
    """Train all three, have the callback say what became of their latents, and draw."""
    folder = Path(arguments[0] if arguments else "logs")
    folder.mkdir(parents=True, exist_ok=True)
    reports = {}
    for activation in (nn.ReLU(), TopK(), JumpReLU()):
        print(f"\n{type(activation).__name__}", flush=True)  # table and events: the callback's
        model, callback = train(activation)
        assert callback.report is not None
        assert torch.isfinite(model.decoder.weight).all()
        reports[type(activation).__name__] = callback.report
    draw(reports, folder / "firing_rates.png")
    return reports


if __name__ == "__main__":
    main(sys.argv[1:])
