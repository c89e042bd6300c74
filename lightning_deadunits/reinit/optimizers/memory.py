"""All that a training run's optimizers remember of re-initialised weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from lightning_deadunits.reinit.optimizers.state import (
    group_of,
    memory_of,
    optimizers_inside,
    refusal,
    reset_,
)
from lightning_deadunits.reinit.optimizers.step_correction import StepCorrection
from lightning_deadunits.reinit.weights import WeightSlice


class OptimizerMemory:
    """Makes several optimizers forget weights, and step them as if they were new.

    Args:
        optimizers: Optimizers or wrappers of them (`LightningOptimizer`); none is fine too.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward()
        >>> _ = optimizer.step()
        >>> undo = OptimizerMemory([optimizer]).forget_([WeightSlice.along(weight, {0: [1]})])
        >>> optimizer.state[weight]["exp_avg"].tolist()[1]
        [0.0, 0.0]
        >>> undo()
        >>> optimizer.state[weight]["exp_avg"].tolist()[1]
        [0.10000000149011612, 0.10000000149011612]
    """

    def __init__(self, optimizers: Iterable[Any] = ()) -> None:
        self._optimizers = [each for outer in optimizers for each in optimizers_inside(outer)]

    def refusal(self, parameter: Tensor) -> str | None:
        """Say why part of a parameter cannot be forgotten, None if it can."""
        if self._optimizers and all(group_of(o, parameter) is None for o in self._optimizers):
            return (
                "no optimizer has it: it is not trained, or only a copy of it is (the flat or "
                "master weights of DeepSpeed, FSDP and the like)"
            )
        reasons = (refusal(optimizer, parameter) for optimizer in self._optimizers)
        return next((reason for reason in reasons if reason), None)

    def caveat(self, parameter: Tensor) -> str | None:
        """Say why fresh weights of a parameter will at first be moved too far, None if not."""
        reasons = (StepCorrection.refusal(each, parameter) for each in self._optimizers)
        return next((reason for reason in reasons if reason), None)

    def tensors(self, parameter: Tensor) -> Iterator[Tensor]:
        """Yield the state tensors that :meth:`forget_` writes to, for a backup of their slices."""
        yield from memory_of(self._optimizers, parameter)

    def forget_(self, slices: Sequence[WeightSlice]) -> Callable[[], None]:
        """Forget some weights and count their steps anew; write the fresh weights first.

        Returns:
            What takes it back, bit for bit, as long as no optimizer has stepped.

        Raises:
            ValueError: If a state cannot be reset in part, with the reason; then none is touched.
        """
        with ExitStack() as undo:
            undo.callback(reset_(self._optimizers, slices).undo_)
            for optimizer in self._optimizers:
                undo.callback(StepCorrection.of(optimizer).backup())
                StepCorrection.of(optimizer).restart(optimizer, slices)
            return undo.pop_all().close

    def state_dict(self, names: Mapping[Tensor, str]) -> list[dict[str, Any]]:
        """Take down the weights that count their own steps, one entry per optimizer.

        In the order of the optimizers, for they have no names: so does Lightning's checkpoint.
        """
        return [StepCorrection.of(each).state_dict(names) for each in self._optimizers]

    def drop_outdated(self) -> None:
        """Forget resumed weights of optimizers that were made anew and never stepped them."""
        for optimizer in self._optimizers:
            StepCorrection.of(optimizer).drop_outdated(optimizer)

    def load_state_dict(
        self, state: Sequence[Mapping[str, Any]], parameters: Mapping[str, Tensor]
    ) -> None:
        """Resume from :meth:`state_dict`; before or after the optimizers load theirs.

        Raises:
            ValueError: If optimizers or parameters are not those of the state.
        """
        if len(state) != len(self._optimizers):
            raise ValueError(
                f"Expected `state` to have one entry for each of {len(self._optimizers)} "
                f"optimizers, but got {len(state)}. Resume with the optimizers it was saved with."
            )
        for optimizer, entry in zip(self._optimizers, state, strict=True):
            StepCorrection.of(optimizer).load_state_dict(optimizer, entry, parameters)

    def detach(self) -> None:
        """Remove every hook from the optimizers; fresh weights count with the others then."""
        for optimizer in self._optimizers:
            StepCorrection.of(optimizer).detach()
