"""What optimizers remember of some weights, and how to make them forget it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_deadunits.reinit.optimizers.adam_steps import StepCorrection, group_of
from lightning_deadunits.reinit.weights import Edit, WeightSlice

# By name, for none of the packages need be installed. Each rank holds the state of some parameters.
_SHARDED = ("ZeroRedundancyOptimizer", "ZeROOptimizer", "OSS")

# State that is a copy of the weights (ASGD's average, Lookahead's slow weights, master weights):
# a fresh weight is all that such a copy may remember, for it is written back into the weights.
# These are beginnings of names, so that plurals are met.
_WEIGHT_COPIES = (
    "slow_",
    "lookahead",
    "master_",
    "old_p",
    "cached_p",
    "ema_p",
    "param_copy",
    "x0",
)

_MOST_HELD = 64
"""A container of more than that is full of something else, and slow to look through."""

_PLAIN = (type(None), bool, int, float, complex, str)


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
                "master weights of DeepSpeed, FSDP and the like; where validation runs an average "
                "of what is trained, judge by training batches: `every_n_train_steps`)"
            )
        reasons = (refusal(optimizer, parameter) for optimizer in self._optimizers)
        return next((reason for reason in reasons if reason), None)

    def caveat(self, parameter: Tensor) -> str | None:
        """Say why fresh weights of a parameter will at first be moved too far, None if not."""
        reasons = (StepCorrection.refusal(each, parameter) for each in self._optimizers)
        return next((reason for reason in reasons if reason), None)

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
                correction = StepCorrection.of(optimizer)
                undo.callback(correction.set, optimizer, correction.fresh)
                correction.restart(optimizer, slices)
            return undo.pop_all().close

    def state_dict(self, names: Mapping[Tensor, str]) -> list[dict[str, Any]]:
        """Take down the weights that count their own steps, one entry per optimizer.

        In the order of the optimizers, for they have no names: so does Lightning's checkpoint.
        """
        return [StepCorrection.of(each).state_dict(names) for each in self._optimizers]

    def load_state_dict(
        self, state: Sequence[Mapping[str, Any]], parameters: Mapping[str, Tensor]
    ) -> None:
        """Resume from :meth:`state_dict`, after the optimizers load theirs.

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
            StepCorrection.of(optimizer).set(optimizer, {})


class TrainerMemory:
    """Follows the optimizers of a training: they are made late, and may be made anew.

    Args:
        saved: What a checkpoint holds of it, see :meth:`state_dict`.
    """

    def __init__(self, saved: Iterable[Any] = ()) -> None:
        self._saved = list(saved)
        self._memory: OptimizerMemory | None = None
        self._optimizers: list[Any] = []
        self._model: Any = None

    def resume(self, trainer: Any, pl_module: Any) -> None:
        """Go on with what a checkpoint holds, or what optimizers did that were replaced since."""
        if self._saved or self._memory is not None:
            try:
                self.of(trainer, pl_module)
            except (TypeError, ValueError) as error:
                warnings.warn(
                    f"Weights re-initialised before are stepped like all others from now on: "
                    f"{error}",
                    stacklevel=2,
                )

    def of(self, trainer: Any, pl_module: Any) -> OptimizerMemory:
        """Return the memory of the Trainer's present optimizers."""
        optimizers = optimizers_of(trainer, pl_module)
        if self._memory is None or self._optimizers != optimizers:
            saved, self._saved = self.state_dict(), []
            self._optimizers, self._memory = optimizers, OptimizerMemory(optimizers)
            if any(saved):
                self._memory.load_state_dict(saved, dict(pl_module.named_parameters()))
        self._model = pl_module
        return self._memory

    def detach(self) -> None:
        """Leave nothing behind on the optimizers; harmless when there is nothing."""
        # A checkpoint may still be written after an exception.
        self._saved = self.state_dict()
        if self._memory is not None:
            self._memory.detach()
        self._memory, self._optimizers, self._model = None, [], None

    def state_dict(self) -> list[Any]:
        """Return tensors and primitives only."""
        if self._memory is None:
            return self._saved
        return self._memory.state_dict({p: name for name, p in self._model.named_parameters()})


# --- of one optimizer ---------------------------------------------------------------------------


def optimizers_inside(optimizer: Any) -> list[Optimizer]:
    """List those of an optimizer and of what it wraps that hold a memory of their own.

    The outermost first; so never a wrapper such as `LightningOptimizer`.

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
    return list(dict.fromkeys(found))


def optimizers_of(trainer: Any, pl_module: Any) -> list[Any]:
    """Return the Trainer's optimizers, and those that a module steps without it knowing."""
    own = [each for each in held_by(pl_module) if isinstance(each, Optimizer)]
    return list(dict.fromkeys((*trainer.optimizers, *own)))


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


def refusal(optimizer: Optimizer, parameter: Tensor) -> str | None:
    """Say why what one optimizer remembers of part of a parameter cannot be reset, None if it can.

    A parameter that the optimizer does not have, or has not stepped yet, has no memory to reset.
    """
    name = type(optimizer).__name__
    if group_of(optimizer, parameter) is None:
        return None
    if isinstance(optimizer, LBFGS):
        return f"{name} remembers all parameters in one flat vector"
    if any(kind.__name__ in _SHARDED for kind in type(optimizer).__mro__):
        return f"{name} holds the state of some parameters on other ranks"
    for key, value in optimizer.state.get(parameter, {}).items():
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


def reset_(optimizers: Iterable[Any], slices: Iterable[WeightSlice]) -> Edit:
    """Set the memory of some weights to what it is of a weight that was never stepped.

    Write the fresh weights first: averages of the weights (ASGD, Lookahead) restart from them.
    Counters of the whole parameter stay, such as Adam's `step`; `StepCorrection` makes up for it.
    One trace remains with SGD: a fresh momentum buffer would take the first gradient whole, ours
    takes `1 - dampening` of it. A parameter that no optimizer has is left.

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
            # `get`: the state is a defaultdict, and an empty entry would hide that nothing was
            # stepped.
            for key, value in optimizer.state.get(each.parameter, {}).items():
                if isinstance(value, Tensor) and not _counts_steps(key, value, each.parameter):
                    part = WeightSlice(value, each.positions)
                    is_copy = _is_copy(key, value, group, each)
                    fresh = each.read(each.parameter) if is_copy else _initial_value(key, group)
                    edit.set(part, fresh)
    edit.apply_()
    return edit


def _is_copy(key: str, value: Tensor, group: Mapping[str, Any], fresh: WeightSlice) -> bool:
    """Tell whether a state is a copy of the weights: by its name, or as the others are close."""
    if key.startswith(_WEIGHT_COPIES) or key == "ax":
        return "momentum" not in key  # such as SlowMo's, which sums gradients up
    # Schedule-free optimizers call their copy `z`, others what they sum gradients up in.
    if key != "z" or value.shape != fresh.parameter.shape:
        return False
    others = fresh.parameter.detach().flatten().index_fill(0, fresh.positions, 0.0)
    copies = value.detach().flatten().index_fill(0, fresh.positions, 0.0)
    return "weight_sum" in group or bool((copies - others).norm() < others.norm() / 2)


def _initial_value(key: str, group: Mapping[str, Any]) -> float:
    """What an optimizer puts into a new state tensor."""
    if key == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    if key == "step_size":
        return float(group.get("lr", 0.0))
    return 0.0
