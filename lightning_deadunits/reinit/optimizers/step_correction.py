"""Adam's step count, kept apart for weights that were re-initialised.

Adam divides its moments by ``1 - beta**step``, and keeps one `step` for a whole parameter. A weight
whose moments were zeroed at a large `step` would be moved up to 6.6 times too far: enough to kill
a revived unit again. `StepCorrection` adds the difference after each step, so that every
re-initialised weight moves as if the optimizer counted from its re-initialisation.

That must happen after the step, not before: Lightning runs backward inside
`optimizer.step(closure)`, and the gradient is not known earlier.

Exact up to rounding. A bf16 or fp16 parameter is rounded twice a step, after the optimizer's move
and after ours: it can be off by one unit in the last place per step, which is what such a
parameter loses at every step anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_deadunits.reinit.optimizers.fresh_weights import FreshWeights, update_rule
from lightning_deadunits.reinit.optimizers.state import group_of
from lightning_deadunits.reinit.weights import WeightSlice

# Looking for what has expired reads `step`, which waits for the device: rarely, therefore.
_STEPS_BETWEEN_CLEANUPS = 256


class StepCorrection:
    """Moves the re-initialised weights of one optimizer as if their steps counted from zero.

    One optimizer has one: see :meth:`of`. It hooks into the optimizer with the first
    re-initialisation. A weight leaves it when the correction is below the precision of its dtype:
    after some 16 000 steps with ``beta2 = 0.999`` in float32, 5000 in bfloat16.

    For Adam and AdamW (for-loop, foreach, fused, capturable, AMSGrad, maximize, any weight decay),
    RAdam, Adamax, and subclasses that step as they do. Elsewhere :meth:`restart` does nothing;
    :meth:`refusal` says why.
    """

    _known: WeakKeyDictionary[Optimizer, StepCorrection] = WeakKeyDictionary()

    def __init__(self) -> None:
        # No reference to the optimizer: it owns the hook, and the hook owns us.
        self._fresh: dict[Tensor, FreshWeights] = {}
        self._handle: RemovableHandle | None = None
        self._calls = 0

    @classmethod
    def of(cls, optimizer: Optimizer) -> StepCorrection:
        """Give the correction of an optimizer, always the same: two would correct twice."""
        return cls._known.setdefault(optimizer, cls())

    def __len__(self) -> int:
        """Count the parameters with weights under correction."""
        return len(self._fresh)

    @staticmethod
    def refusal(optimizer: Optimizer, parameter: Tensor) -> str | None:
        """Say why a parameter's steps get no correction, though its moments may need one.

        Returns:
            The reason in words; None if it is corrected, or counts no steps.
        """
        group = group_of(optimizer, parameter)
        if group is None or "betas" not in group:
            return None
        if "step" not in optimizer.state.get(parameter, {}):
            return None
        if update_rule(optimizer) is None:
            return f"how {type(optimizer).__name__} uses its step count is not known"
        if parameter.is_complex() or group.get("differentiable"):
            return "complex parameters and differentiable optimizers are not corrected"
        return None

    def restart(self, optimizer: Optimizer, slices: Iterable[WeightSlice]) -> None:
        """Count the steps of some weights from now on; their moments must have been reset.

        Args:
            optimizer: The optimizer that this correction is :meth:`of`.
            slices: The re-initialised weights. Those that the optimizer has not stepped yet, or
                does not have, need no correction.
        """
        for weights in slices:
            parameter = weights.parameter
            group = group_of(optimizer, parameter)
            step = optimizer.state.get(parameter, {}).get("step")
            if group is None or step is None or update_rule(optimizer) is None:
                continue
            if self.refusal(optimizer, parameter) is None:
                newborn, old = FreshWeights.born(weights, step, group), self._fresh.get(parameter)
                self._fresh[parameter] = old.joined_by(newborn) if old else newborn
        self._attach(optimizer)

    def _attach(self, optimizer: Optimizer) -> None:
        if self._fresh and self._handle is None:
            self._handle = optimizer.register_step_post_hook(self._after_step)

    def detach(self) -> None:
        """Remove the hook and forget every weight under correction."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._fresh.clear()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        rule = update_rule(optimizer) if self._fresh else None
        if rule is None:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                fresh, state = self._fresh.get(parameter), optimizer.state.get(parameter)
                if fresh and state:
                    self._fresh[parameter] = fresh.correct_(rule, state, group)
        self._calls += 1
        if self._calls % _STEPS_BETWEEN_CLEANUPS == 0:
            self._drop_expired()

    def _drop_expired(self) -> None:
        kept = {p: fresh.without_expired() for p, fresh in self._fresh.items()}
        self._fresh = {p: fresh for p, fresh in kept.items() if fresh is not None}

    def state_dict(self, names: Mapping[Tensor, str]) -> dict[str, Any]:
        """Take down what is under correction, as tensors and primitives only.

        Args:
            names: Parameters by identity, with the names to write them under.

        Returns:
            A state for :meth:`load_state_dict`; a run resumed from it goes on bit for bit.
        """
        known = {p: fresh for p, fresh in self._fresh.items() if p in names}  # else it was replaced
        return {names[parameter]: fresh.state_dict() for parameter, fresh in known.items()}

    def load_state_dict(
        self, optimizer: Optimizer, state: Mapping[str, Any], parameters: Mapping[str, Tensor]
    ) -> None:
        """Resume what :meth:`state_dict` took down, in place of what is known of its parameters.

        Raises:
            ValueError: If the state names a parameter that there is not.
        """
        if lost := sorted(state.keys() - parameters.keys()):
            raise ValueError(
                f"Expected `parameters` to hold every parameter of the state, but got none named "
                f"{lost}. Load the correction into the model that it was saved from."
            )
        for name, entry in state.items():
            parameter = parameters[name]
            self._fresh[parameter] = FreshWeights.from_state_dict(entry, parameter)
        self._attach(optimizer)

    def drop_outdated(self, optimizer: Optimizer) -> None:
        """Forget weights whose steps this optimizer did not count: it was made anew.

        Args:
            optimizer: The optimizer that this correction is :meth:`of`, after it loaded its state.
        """
        self._restore(
            {
                parameter: fresh
                for parameter, fresh in self._fresh.items()
                if fresh.was_last_seen_at(optimizer.state.get(parameter, {}).get("step"))
            }
        )

    def backup(self) -> Callable[[], None]:
        """Return what brings back the weights that are under correction now."""
        fresh = dict(self._fresh)
        return lambda: self._restore(fresh)

    def _restore(self, fresh: dict[Tensor, FreshWeights]) -> None:
        self._fresh = fresh
        if not fresh:
            self.detach()
