"""What a model consisted of when a pass was recorded, and whether it still does."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_deadunits.reinit.recording.soundness import sample_of
from lightning_deadunits.reinit.recording.tape import Tape


class Layout:
    """The modules, parameters and buffers of a model, by name, and a few of the weights."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._buffers = dict(model.named_buffers(remove_duplicate=False))
        self._parts = _parts_of(model)
        self._samples = {n: sample_of(p) for n, p in self._parameters.items() if not is_lazy(p)}

    def settle(self, model: nn.Module) -> None:
        """Leave out the buffers that the pass itself has replaced: they are state of its own."""
        now = dict(model.named_buffers(remove_duplicate=False))
        self._buffers = {name: own for name, own in self._buffers.items() if now.get(name) is own}

    def has_other_weights(self, model: nn.Module) -> bool:
        """Tell whether parameters hold others than they did, as where averages are put back."""
        return any(
            self._parameters.get(name) is p
            and name in self._samples
            and not torch.equal(sample_of(p), self._samples[name])
            for name, p in model.named_parameters()
        )

    def has_parts_of(self, model: nn.Module) -> bool:
        """Tell whether a model has the same modules and parameters, others perhaps beside them."""
        parts = _parts_of(model)
        return all(parts.get(name) is own for name, own in self._parts.items())

    def keeps(self, tape: Tape, model: nn.Module) -> bool:
        """Tell whether a replay is still what the model computes; have it use today's buffers.

        It is not where modules or parameters that it used were replaced or renamed, by a fresh head
        or norm, an adapter, or by pruning, which makes ``weight_orig`` of ``weight``; nor where
        parameters were added since, which may read units.
        """
        parts, parameters = _parts_of(model), dict(model.named_parameters(remove_duplicate=False))
        if not parameters.keys() <= self._parameters.keys():
            return False
        used = set(tape.parameters.values())
        names = (*tape.modules, *(name for name, p in self._parameters.items() if p in used))
        if any(parts.get(name) is not self._parts.get(name) for name in names):
            return False
        buffers = dict(model.named_buffers(remove_duplicate=False))
        fresh = {id(old): buffers.get(name) for name, old in self._buffers.items()}
        for index, old in tape.buffers.items():
            buffer = fresh.get(id(old), old)
            if buffer is None or (buffer.shape, buffer.dtype) != (old.shape, old.dtype):
                return False
            tape.buffers[index] = buffer
        return True


def _parts_of(model: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
    modules, parameters = model.named_modules, model.named_parameters
    return {**dict(modules(remove_duplicate=False)), **dict(parameters(remove_duplicate=False))}
