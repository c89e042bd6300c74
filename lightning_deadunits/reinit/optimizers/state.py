"""The optimizer's memory of some weights, and how to make it forget them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_deadunits.reinit.weights import Edit, WeightSlice

# By name, for none of the packages need be installed. Each rank holds the state of some parameters.
_SHARDED = ("ZeroRedundancyOptimizer", "ZeROOptimizer", "OSS")

# State that is a copy of the weights (ASGD's average, Lookahead's slow weights, master weights):
# a fresh weight is all that such a copy may remember, for it is written back into the weights.
# These are beginnings of names, so that plurals are met.
_WEIGHT_COPIES = ("slow_", "lookahead_slow", "master_", "old_p", "cached_p", "ema_p", "param_copy")

_MOST_HELD = 64
"""A container of more than that is full of something else, and slow to look through."""

_PLAIN = (type(None), bool, int, float, complex, str)


def optimizers_inside(optimizer: Any) -> list[Optimizer]:
    """List an optimizer and those that it wraps, the outermost first.

    Args:
        optimizer: A `torch.optim.Optimizer`, or a wrapper of one such as `LightningOptimizer`.

    Returns:
        Those that hold a memory of their own, so never Lightning's wrapper.

    Raises:
        TypeError: If there is no optimizer inside.
    """
    found: list[Optimizer] = []
    waiting, met = [optimizer], set()
    while waiting:
        outer = waiting.pop(0)
        met.add(id(outer))
        inner = [each for each in held_by(outer) if id(each) not in met]
        # LightningOptimizer passes for the class that it wraps: its state is the wrapped one's.
        if isinstance(outer, Optimizer) and all(
            getattr(each, "state", None) is not outer.state for each in inner
        ):
            found.append(outer)
        waiting += inner
    if not found:
        raise TypeError(
            f"Expected `optimizer` to be a torch.optim.Optimizer, but got {type(optimizer)}."
        )
    return list({id(each): each for each in found}.values())


def held_by(outer: Any) -> list[Any]:
    """Find what a wrapper wraps, whatever it calls it: one optimizer, or several in a container."""
    found: list[Any] = []
    for value in getattr(outer, "__dict__", {}).values():
        inside = value.values() if isinstance(value, dict) else value
        each_of = inside if isinstance(value, (list, tuple, dict)) else [value]
        found += [each for each in islice(each_of, _MOST_HELD) if _is_optimizer(each)]
    return found


def _is_optimizer(value: Any) -> bool:
    # Wrappers need not be torch's, as those of DeepSpeed are not.
    return isinstance(value, Optimizer) or (
        not isinstance(value, type) and hasattr(value, "param_groups") and hasattr(value, "step")
    )


def group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any] | None:
    """Find the options that a parameter is stepped with, None if another optimizer has it."""
    for group in optimizer.param_groups:
        if any(held is parameter for held in group["params"]):
            return group
    return None


def refusal(optimizer: Any, parameter: Tensor) -> str | None:
    """Say why the memory of part of a parameter cannot be reset.

    A parameter that the optimizer does not have, or has not stepped yet, has no memory to reset.

    Returns:
        The reason in words, None if there is none.
    """
    for inside in optimizers_inside(optimizer):
        name = type(inside).__name__
        if group_of(inside, parameter) is None:
            continue
        if isinstance(inside, LBFGS):
            return f"{name} remembers all parameters in one flat vector"
        if any(kind.__name__ in _SHARDED for kind in type(inside).__mro__):
            return f"{name} holds the state of some parameters on other ranks"
        for key, value in inside.state.get(parameter, {}).items():
            if reason := _why_not(key, value, parameter):
                return f"{name}'s state `{key}` {reason}"
    return None


def _why_not(key: str, value: object, parameter: Tensor) -> str | None:
    """Say why one entry of the state cannot be reset in part, None if it can."""
    if not isinstance(value, Tensor):
        return None if isinstance(value, _PLAIN) else f"is a {type(value).__name__}"
    if _counts_steps(key, value, parameter):
        return None
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(value).__name__}, whose elements may be quantised or elsewhere"
    if value.device != parameter.device:
        return f"is on {value.device}, away from the parameter"
    if value.shape != parameter.shape:
        return (
            f"has shape {tuple(value.shape)}, not the parameter's {tuple(parameter.shape)}: "
            "one element of it serves several weights"
        )
    if not (value.is_floating_point() or value.is_complex()) or value.is_sparse:
        return f"is quantised or sparse ({value.dtype}, {value.layout})"
    return None


def _counts_steps(key: str, value: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor is one number for the whole parameter, such as Adam's step."""
    return key == "step" or (value.numel() == 1 and value.shape != parameter.shape)


def memory_of(optimizers: Iterable[Any], parameter: Tensor) -> Iterator[Tensor]:
    """Yield every state tensor of the parameter's shape: what :func:`reset_` writes to.

    Yields:
        The tensors themselves, so that a caller can back up its slices of them.
    """
    for optimizer in optimizers:
        for inside in optimizers_inside(optimizer):
            for _, tensor in _memory(inside, parameter):
                yield tensor


def _memory(optimizer: Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    # `get`: the state is a defaultdict, and an empty entry would hide that nothing was stepped.
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and not _counts_steps(key, value, parameter):
            yield key, value


def reset_(optimizers: Iterable[Any], slices: Iterable[WeightSlice]) -> Edit:
    """Set the memory of some weights to what it is of a weight that was never stepped.

    Write the fresh weights first: averages of the weights (ASGD, Lookahead) restart from them.
    Counters of the whole parameter stay, such as Adam's `step`; `StepCorrection` makes up for it.
    One trace remains with SGD: a fresh momentum buffer would take the first gradient whole, ours
    takes `1 - dampening` of it.

    Args:
        optimizers: As for :func:`optimizers_inside`. A parameter that none of them has is left.
        slices: The re-initialised weights.

    Returns:
        What was written, which can be taken back.

    Raises:
        ValueError: If a state cannot be reset in part, with the reason; then none is touched.
    """
    inside = [each for optimizer in optimizers for each in optimizers_inside(optimizer)]
    slices = list(slices)
    for each in slices:
        for optimizer in inside:
            if reason := refusal(optimizer, each.parameter):
                raise ValueError(f"Expected state that can be reset in part, but {reason}.")
    edit = Edit()
    for each in slices:
        for optimizer in inside:
            group = group_of(optimizer, each.parameter) or {}
            for key, tensor in _memory(optimizer, each.parameter):
                part = WeightSlice(tensor, each.positions)
                edit.set(part, _initial_value(key, group, each))
    edit.apply_()
    return edit


def _initial_value(key: str, group: Mapping[str, Any], weights: WeightSlice) -> Tensor | float:
    """What an optimizer puts into a new state tensor."""
    if _copies_weights(key, group):
        return weights.read(weights.parameter)
    if key == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    if key == "step_size":
        return float(group.get("lr", 0.0))
    return 0.0


def _copies_weights(key: str, group: Mapping[str, Any]) -> bool:
    if key == "z" and "weight_sum" in group:  # schedule-free optimizers
        return True
    return key == "ax" or key.startswith(_WEIGHT_COPIES)
