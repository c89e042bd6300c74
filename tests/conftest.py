"""One thread and quiet Trainers for every test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first what forks: once Dynamo ran in a CUDA build, no forked process can go backward."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Return a function that makes a Trainer on the CPU which prints nothing."""

    def make(**options: Any) -> pl.Trainer:
        quiet = dict(
            accelerator="cpu",
            default_root_dir=tmp_path,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if options.get("barebones"):
            for name in list(quiet)[3:]:
                quiet.pop(name)
        warnings.filterwarnings("ignore", message=".*(num_workers|many workers|logging interval).*")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        return pl.Trainer(**{**quiet, **options})

    return make
