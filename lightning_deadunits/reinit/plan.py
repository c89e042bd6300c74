"""A plan: what an event has written, as data that another process or a resumed training can write.

Weights are named, not held: names, places in row-major order, and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_deadunits.reinit.report import Units
from lightning_deadunits.reinit.weights import Edit, WeightSlice

Write = tuple[str, Tensor, Tensor]
"""Name of a parameter or buffer, places (int64, shape ``(K,)``) and values, on the CPU."""


@dataclass(eq=False)
class Plan:
    """What is written, for which units: tensors and primitives only, for checkpoints hold it.

    Attributes:
        units: The units that are re-initialised.
        writes: What is written where.
        fresh: Where among that weights are fresh, rather than silenced.
    """

    units: Units = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    fresh: list[tuple[str, Tensor]] = field(default_factory=list)

    def edit(self, model: nn.Module) -> Edit:
        """Return the edit that writes it to a model.

        Raises:
            KeyError: If the model has no such parameter or buffer.
        """
        tensors, edit = tensors_of(model), Edit()
        for name, positions, values in self.writes:
            target = tensors[name]
            edit.set(WeightSlice(target, positions.to(target.device)), values)
        return edit

    def lacking(self, model: nn.Module, edit: Edit) -> list[Write]:
        """Return what an edit writes that the plan does not."""
        names = {id(tensor): name for name, tensor in tensors_of(model).items()}
        found = []
        for weights, values in edit.slices():
            name, positions = names[id(weights.parameter)], weights.positions.cpu()
            planned = [places for of, places, _ in self.writes if of == name]
            fresh = ~torch.isin(positions, torch.cat([positions.new_empty(0), *planned]))
            if bool(fresh.any()):
                found.append((name, positions[fresh], values.cpu()[fresh]))
        return found

    def made(self, model: nn.Module) -> list[WeightSlice]:
        """Return which elements of a model's parameters are fresh."""
        tensors = tensors_of(model)
        return [WeightSlice(tensors[n], at.to(tensors[n].device)) for n, at in self.fresh]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
