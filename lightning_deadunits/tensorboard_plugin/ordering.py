"""In which order a heat map stacks its units."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.history import History

Order = Literal["death", "index", "rate"]
ORDERS: tuple[Order, ...] = get_args(Order)


def unit_order(history: History, order: Order) -> NDArray[np.int64]:
    """Order the units of a layer; ties keep the order of the indices.

    Args:
        history: The layer's life, of ``U`` units.
        order: ``"death"``: the dead first, the longest dead on top, then the living by their
            current rate; ``"rate"``: the highest current rate first; ``"index"``: as they are.

    Returns:
        Unit indices from top to bottom, ``(U,)``.
    """
    indices = np.arange(history.rates.values.shape[1])
    if order == "index":
        return indices
    current = np.nan_to_num(history.rates.values[-1], nan=-1.0)  # the unseen last
    if order == "rate":
        return np.argsort(-current, kind="stable")
    since = np.where(history.dead_now, history.dead_since, len(history.rates.steps))
    # One key, exact in float64: a rate is float32 in [-1, 1], less than the 4 from step to step.
    return np.argsort(4.0 * since - current, kind="stable")


def same_order(wanted: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Arrange units as another run does; those that it does not have follow in their own order.

    Example:
        >>> same_order(np.array([2, 0, 1, 7]), np.array([3, 2, 1, 0]))
        array([2, 0, 1, 3])
    """
    known = wanted[wanted < own.size]
    return np.concatenate([known, own[~np.isin(own, known)]])
