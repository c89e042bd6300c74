"""Windows of training batches, whatever the Trainer does with the batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import DeadUnitCallback, ReinitConfig
from tests.mortal import EVERY_TWO_STEPS, Mortal, data, events, trained


class Leaving(Mortal):
    """Skips the rest of an epoch at its second batch, as a module may, and watches the watchers."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 1 else None

    def on_train_epoch_start(self) -> None:
        assert torch._C._len_torch_function_stack() == 0
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())


def test_a_batch_that_is_skipped_is_no_part_of_a_window() -> None:
    model, callback = Leaving(mortal=False), DeadUnitCallback(reinit=EVERY_TWO_STEPS)
    trained(model, callback, max_epochs=6)
    model.on_train_epoch_start()
    assert events(callback) == [{"relu.bn": [1], "relu.b": [0]}]


@pytest.mark.filterwarnings("ignore:.*num_workers.*")
def test_units_are_revived_on_a_stream_of_single_samples() -> None:
    class Single(Mortal):
        def __init__(self) -> None:
            super().__init__(mortal=False)
            self.bn = torch.nn.Identity()
            with torch.no_grad():
                self.a.weight[1] = 0.0

    dataset = data().dataset
    assert isinstance(dataset, TensorDataset)
    loader = DataLoader(dataset, batch_size=1)
    callback = DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=1, patience=4))
    trained(Single(), callback, max_epochs=1, loaders=(loader, data()))
    assert 1 in {unit for event in events(callback) for unit in event.get("relu.a", [])}
