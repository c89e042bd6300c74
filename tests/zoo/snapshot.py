"""What a model computes and holds, before and after."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.scan import call


def outputs(model: nn.Module, example: Any, training: bool) -> list[Tensor]:
    model.train(training)
    torch.manual_seed(1)
    out = call(model, example)
    return list(flat(out))


def compared(model: nn.Module, example: Any) -> list[Tensor]:
    """Return outputs in both modes, buffers left as they were."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with torch.no_grad():
        found = outputs(model, example, training=False) + outputs(model, example, training=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return found


def flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from flat(item)


def frozen_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], grads))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
