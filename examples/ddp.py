"""Count over two processes: DDP on the CPU, and one table, printed by rank 0.

Run it with ``python examples/ddp.py``; it takes seconds. Each process sees half of the validation
digits. A unit that fires on the other half only is alive: counts are summed before anything is
judged. The strategy ``ddp`` starts this script once more for the second process.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import torch
from digits import Digits, loaders

from lightning_deadunits import DeadUnitCallback


def main(arguments: list[str] | None = None) -> DeadUnitCallback:
    """Train on two processes and print the table of both.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", type=Path, default=Path("logs/ddp.png"))
    options = parser.parse_args(arguments)

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    torch.set_num_threads(1)
    pl.seed_everything(0)
    callback = DeadUnitCallback(verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=options.processes,
        max_epochs=options.epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), *loaders())

    if trainer.is_global_zero:
        assert callback.report is not None
        print(f"\n{callback.report}")
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        figure = callback.report.plot()
        figure.savefig(options.picture, dpi=80)
        plt.close(figure)
        print(f"\nThe same as a picture: {options.picture}")
    return callback


if __name__ == "__main__":
    main()
    # A process that ends with gloo's threads running may abort (pytorch/pytorch#190489).
    torch.distributed.destroy_process_group()
