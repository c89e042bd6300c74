"""How far Adam and its kin move a weight, given how many steps its moments have seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Adamax, AdamW, Optimizer, RAdam

# The state that the rules read, all of the parameter's shape.
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf")

# Numbers per event -> numbers per element, in the dtype of the moments.
Spread = Callable[[Tensor], Tensor]

# (moments by name, options of the group, steps seen, spread) -> what `lr` is multiplied with.
UpdateRule = Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor, Spread], Tensor]


def adam_update(
    moments: Mapping[str, Tensor], group: Mapping[str, Any], steps: Tensor, spread: Spread
) -> Tensor:
    """Compute Adam's update before the learning rate, AMSGrad's included.

    Kingma & Ba 2015, "Adam: a method for stochastic optimization". Weight decay has no part in
    it: coupled, it is in the moments already; decoupled, it does not depend on the steps.

    Args:
        moments: `exp_avg` and `exp_avg_sq` (or `max_exp_avg_sq`), each of shape ``(K,)``.
        group: The options of the parameter group.
        steps: Steps that the moments have seen, shape ``()`` or ``(E,)``.
        spread: Takes numbers of the shape of `steps` to shape ``(K,)`` or ``()``.

    Returns:
        The update, shape ``(K,)``; the weight moves by `-lr` times it.
    """
    first, second = _bias_corrections(group, steps)
    square = moments.get("max_exp_avg_sq", moments["exp_avg_sq"])
    denominator = square.sqrt() / spread(second.sqrt()) + group["eps"]
    update: Tensor = moments["exp_avg"] / spread(first) / denominator
    return update


def radam_update(
    moments: Mapping[str, Tensor], group: Mapping[str, Any], steps: Tensor, spread: Spread
) -> Tensor:
    """Compute RAdam's update; arguments and result as for :func:`adam_update`.

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
    adaptive = scale / (moments["exp_avg_sq"].sqrt() + group["eps"])
    plain = spread(1.0 - tractable.to(steps))
    update: Tensor = moments["exp_avg"] / spread(first) * (adaptive + plain)
    return update


def adamax_update(
    moments: Mapping[str, Tensor], group: Mapping[str, Any], steps: Tensor, spread: Spread
) -> Tensor:
    """Compute Adamax's update; arguments and result as for :func:`adam_update`.

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

    Args:
        optimizer: The optimizer.

    Returns:
        The rule, None if the steps need or allow no correction.
    """
    # `Optimizer.__init__` wraps the `step` of each class that it meets.
    steps = inspect.unwrap(type(optimizer).step)
    for kind, rule in _RULES:
        if isinstance(optimizer, kind) and inspect.unwrap(kind.step) is steps:
            return rule
    return None
