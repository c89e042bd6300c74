"""What the end of a validation costs beside a layer of a million units, as in sparse autoencoders.

``python -m tests.benchmarks.latents`` prints, for the hooks that judge, remember, log and write to
TensorBoard, the CPU seconds and the most memory they take at once beside the counts, by the
process's own high-water mark, which is set back before. The counts are int64: 8 MB for a million.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback
from tests.benchmarks.result_file import write_results

TARGETS = {"seconds": 0.5, "megabytes": 100}


def memory(key: str) -> int:
    """Return a figure of this process's memory in bytes: VmRSS is now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


class Wide(LightningModule):
    """Encodes into many latents; a tenth of them can never fire."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.encoder, self.act = nn.Linear(2, latents), nn.ReLU()
        with torch.no_grad():
            self.encoder.bias[: latents // 10] = -100.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.encoder(batch[0]).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.act(self.encoder(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Timed(DeadUnitCallback):
    """Notes what the end of each validation took."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[dict[str, float]] = []

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
        self.before, self.start = memory("VmRSS"), time.process_time()
        super().on_validation_epoch_end(trainer, pl_module)
        self.spent = time.process_time() - self.start

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        start = time.process_time()
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            seconds = self.spent + time.process_time() - start
            megabytes = (memory("VmHWM") - self.before) / 1e6
            self.ends.append({"seconds": round(seconds, 3), "megabytes": round(megabytes, 1)})


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Validate some times and print what each end took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--validations", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    callback, data = Timed(), DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=options.validations, accelerator="cpu", callbacks=[callback],
            logger=TensorBoardLogger(folder), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(Wide(options.latents), data, data)  # fmt: skip
    for end in callback.ends:
        print(end)
    write_results(options.json, latents=options.latents, ends=callback.ends, targets=TARGETS)
    return callback.ends


if __name__ == "__main__":
    main()
