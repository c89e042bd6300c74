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

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Adam, Adamax, AdamW, Optimizer, RAdam
from torch.utils.hooks import RemovableHandle

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

    Attributes:
        fresh: The weights under correction, by parameter; see :meth:`set`.
    """

    _known: WeakKeyDictionary[Optimizer, StepCorrection] = WeakKeyDictionary()

    def __init__(self) -> None:
        # No reference to the optimizer: it owns the hook, and the hook owns us.
        self.fresh: dict[Tensor, FreshWeights] = {}
        self._handle: RemovableHandle | None = None
        self._calls = 0

    @classmethod
    def of(cls, optimizer: Optimizer) -> StepCorrection:
        """Give the correction of an optimizer, always the same: two would correct twice."""
        return cls._known.setdefault(optimizer, cls())

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

        Those that the optimizer has not stepped yet, or does not have, need no correction.
        """
        if update_rule(optimizer) is None:
            return
        fresh = dict(self.fresh)
        for weights in slices:
            parameter = weights.parameter
            group = group_of(optimizer, parameter)
            step = optimizer.state.get(parameter, {}).get("step")
            if group and step is not None and self.refusal(optimizer, parameter) is None:
                newborn, old = FreshWeights.born(weights, step, group), fresh.get(parameter)
                fresh[parameter] = old.joined_by(newborn) if old else newborn
        self.set(optimizer, fresh)

    def set(self, optimizer: Optimizer, fresh: dict[Tensor, FreshWeights]) -> None:
        """Correct these weights, and hook into the optimizer if there are any."""
        self.fresh = fresh
        if fresh and self._handle is None:
            self._handle = optimizer.register_step_post_hook(self._after_step)
        elif not fresh and self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        rule = update_rule(optimizer) if self.fresh else None
        if rule is None:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                fresh, state = self.fresh.get(parameter), optimizer.state.get(parameter)
                if fresh and state:
                    self.fresh[parameter] = fresh.correct_(rule, state, group)
        self._calls += 1
        if self._calls % _STEPS_BETWEEN_CLEANUPS == 0:
            kept = {p: fresh.without_expired() for p, fresh in self.fresh.items()}
            self.fresh = {p: fresh for p, fresh in kept.items() if len(fresh.event)}

    def state_dict(self, names: Mapping[Tensor, str]) -> dict[str, Any]:
        """Take down what is under correction, by the names of the parameters."""
        known = {p: fresh for p, fresh in self.fresh.items() if p in names}  # else it was replaced
        return {names[parameter]: fresh.state_dict() for parameter, fresh in known.items()}

    def load_state_dict(
        self, optimizer: Optimizer, state: Mapping[str, Any], parameters: Mapping[str, Tensor]
    ) -> None:
        """Resume what :meth:`state_dict` took down, after the optimizer has loaded its state.

        Weights whose steps the optimizer did not count are forgotten, as where it was made anew.

        Raises:
            ValueError: If the state names a parameter that there is not.
        """
        if lost := sorted(state.keys() - parameters.keys()):
            raise ValueError(
                f"Expected `parameters` to hold every parameter of the state, but got none named "
                f"{lost}. Load the correction into the model that it was saved from."
            )
        loaded = {
            parameters[name]: FreshWeights.from_state_dict(entry, parameters[name])
            for name, entry in state.items()
        }
        kept = {}
        for parameter, fresh in {**self.fresh, **loaded}.items():
            step = optimizer.state.get(parameter, {}).get("step")
            if isinstance(step, Tensor) and float(step) == float(fresh.seen):
                kept[parameter] = fresh
        self.set(optimizer, kept)


def group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any] | None:
    """Find the options that a parameter is stepped with, None if another optimizer has it."""
    for group in optimizer.param_groups:
        if any(held is parameter for held in group["params"]):
            return group
    return None


# --- weights that count their own steps --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FreshWeights:
    """Elements of one parameter, and the parameter's step at which each was born.

    Args:
        weights: The elements, ``K`` of them.
        event: Which re-initialisation each belongs to, int64 of shape ``(K,)``.
        births: The parameter's `step` at each re-initialisation, shape ``(E,)``.
        seen: The parameter's `step` when last looked at, shape ``()``: unchanged after a step
            that was skipped (AMP overflow, no gradient), to which no correction is due.
        horizon: Steps after which the correction is lost in rounding.
    """

    weights: WeightSlice
    event: Tensor
    births: Tensor
    seen: Tensor
    horizon: int

    @classmethod
    def born(cls, weights: WeightSlice, step: Tensor, group: Mapping[str, Any]) -> FreshWeights:
        """Let elements count from a step of their parameter, which is copied."""
        birth = step.detach().to(weights.parameter.device, copy=True).reshape(1)
        event = torch.zeros_like(weights.positions)
        # Later the correction, about beta**k / 2 of the update, is lost in rounding.
        slowest = max(float(beta) for beta in group["betas"])
        rounding = math.log(torch.finfo(weights.parameter.dtype).eps)
        horizon = math.ceil(rounding / math.log(slowest)) if slowest > 0 else 1
        return cls(weights, event, birth, step.detach().clone(), horizon)

    def joined_by(self, newborn: FreshWeights) -> FreshWeights:
        """Add elements of the same parameter; one that is in both counts from its last birth."""
        old, new = self.weights.positions, newborn.weights.positions
        keep = ~torch.isin(old, new)
        return FreshWeights(
            WeightSlice(self.weights.parameter, torch.cat((old[keep], new))),
            torch.cat((self.event[keep], newborn.event + len(self.births))),
            torch.cat((self.births, newborn.births)),
            newborn.seen,
            newborn.horizon,
        )

    def without_expired(self) -> FreshWeights:
        """Drop elements past the horizon, which get no correction in any case.

        Waits for the device.
        """
        keep = (self.births + self.horizon >= self.seen)[self.event]
        if bool(keep.all()):
            return self
        births, event = torch.unique(self.births[self.event[keep]], return_inverse=True)
        weights = WeightSlice(self.weights.parameter, self.weights.positions[keep])
        return FreshWeights(weights, event, births, self.seen, self.horizon)

    def correct_(
        self, rule: UpdateRule, state: Mapping[str, Any], group: Mapping[str, Any]
    ) -> FreshWeights:
        """Take back the step that the optimizer made by its own count, make the one that was due.

        Never waits for the device: whether a correction is due is decided there.

        Returns:
            The same elements, with this step seen.
        """
        parameter, step = self.weights.parameter, state["step"]
        # The precision in which the optimizer computes its own bias corrections; mps has no more.
        exact = not group.get("capturable") and parameter.device.type != "mps"
        now = step.to(torch.float64) if exact else step
        age = now - self.births.to(now.dtype)  # as 0-dim, `now` would not lift them to its dtype
        due = (step != self.seen) & (age >= 1) & (age <= self.horizon)
        move = self._moved(rule, state, group, now) - self._moved(rule, state, group, age)
        # Not a product with `due`: at age 0 what is owed is 0 / 0.
        move = torch.where(self._per_element(due), move, 0.0)
        weights = self.weights.read(parameter).to(move.dtype) + move
        self.weights.write_(parameter, weights.to(parameter.dtype))
        return replace(self, seen=step.clone())

    def _moved(
        self, rule: UpdateRule, state: Mapping[str, Any], group: Mapping[str, Any], steps: Tensor
    ) -> Tensor:
        """How far a step takes each element down, if its moments have seen so many steps."""
        dtype = torch.promote_types(self.weights.parameter.dtype, torch.float32)
        moments = {k: self.weights.read(state[k]).to(dtype) for k in MOMENTS if k in state}
        update = rule(moments, group, steps, lambda numbers: self._per_element(numbers.to(dtype)))
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        return update * lr

    def _per_element(self, numbers: Tensor) -> Tensor:
        """Spread numbers per event; a number for all needs none, and as 0-dim leaves the dtype."""
        return numbers.index_select(0, self.event) if numbers.dim() else numbers

    def state_dict(self) -> dict[str, Any]:
        """Take down everything but the parameter, as CPU tensors and primitives."""
        tensors = {"positions": self.weights.positions, "event": self.event}
        tensors |= {"births": self.births, "seen": self.seen}
        return {k: t.to("cpu", copy=True) for k, t in tensors.items()} | {"horizon": self.horizon}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], parameter: Tensor) -> FreshWeights:
        """Bring back what :meth:`state_dict` took down, to the device of the parameter."""
        weights = WeightSlice(parameter, state["positions"].to(parameter.device))
        event, births = state["event"].to(parameter.device), state["births"].to(parameter.device)
        return cls(weights, event, births, state["seen"].clone(), int(state["horizon"]))


# --- how far Adam and its kin move a weight -----------------------------------------------------


# The state that the rules read, all of the parameter's shape.
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf")

# Numbers of shape `()` or one per event, `(E,)` -> of shape `()` or `(K,)`, in the moments' dtype.
Spread = Callable[[Tensor], Tensor]

# (moments by name, each `(K,)`, options of the group, steps that they have seen, spread) -> what
# `lr` is multiplied with and the weights move down by, `(K,)`.
UpdateRule = Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor, Spread], Tensor]


def adam_update(
    moments: Mapping[str, Tensor], group: Mapping[str, Any], steps: Tensor, spread: Spread
) -> Tensor:
    """Compute Adam's update before the learning rate, AMSGrad's included.

    Kingma & Ba 2015, "Adam: a method for stochastic optimization". Weight decay has no part in
    it: coupled, it is in the moments already; decoupled, it does not depend on the steps.
    """
    first, second = _bias_corrections(group, steps)
    square = moments.get("max_exp_avg_sq", moments["exp_avg_sq"])
    denominator: Tensor = square.sqrt() / spread(second.sqrt()) + group["eps"]
    return moments["exp_avg"] / spread(first) / denominator


def radam_update(
    moments: Mapping[str, Tensor], group: Mapping[str, Any], steps: Tensor, spread: Spread
) -> Tensor:
    """Compute RAdam's update.

    Liu et al. 2020, "On the variance of the adaptive learning rate and beyond".
    """
    beta2 = group["betas"][1]
    first, second = _bias_corrections(group, steps)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * steps * beta2**steps / second
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    # Too few steps for an estimate of the variance: plain momentum.
    tractable = length > 5
    scale = spread(torch.where(tractable, (rectified * second).sqrt(), 0.0))
    adaptive: Tensor = scale / (moments["exp_avg_sq"].sqrt() + group["eps"])
    plain = spread(1.0 - tractable.to(steps))
    return moments["exp_avg"] / spread(first) * (adaptive + plain)


def adamax_update(
    moments: Mapping[str, Tensor], group: Mapping[str, Any], steps: Tensor, spread: Spread
) -> Tensor:
    """Compute Adamax's update.

    Kingma & Ba 2015, section 7.1. Its infinity norm needs no bias correction.
    """
    first, _ = _bias_corrections(group, steps)
    return moments["exp_avg"] / spread(first) / moments["exp_inf"]


def _bias_corrections(group: Mapping[str, Any], steps: Tensor) -> tuple[Tensor, Tensor]:
    beta1, beta2 = group["betas"]
    return 1 - beta1**steps, 1 - beta2**steps


_RULES: tuple[tuple[type[Optimizer], UpdateRule], ...] = (
    (Adam, adam_update),
    (AdamW, adam_update),
    (RAdam, radam_update),
    (Adamax, adamax_update),
)


def update_rule(optimizer: Optimizer) -> UpdateRule | None:
    """Find the rule by which an optimizer corrects the bias of its moments.

    A subclass counts if it steps as its parent does. NAdam has none: its update reads the
    gradient beside the moments. Nor do optimizers from elsewhere: their formula is unknown.

    Returns:
        The rule, None if the steps need or allow no correction.
    """
    # `Optimizer.__init__` wraps the `step` of each class that it meets.
    steps = inspect.unwrap(type(optimizer).step)
    for kind, rule in _RULES:
        if isinstance(optimizer, kind) and inspect.unwrap(kind.step) is steps:
            return rule
    return None
