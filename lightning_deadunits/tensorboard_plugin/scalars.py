"""The run's own loss and learning rate, found among its scalars by their names.

Whatever logger wrote them, TensorBoard's data provider lists them. Which of them is *the* loss is a
guess by name, which the user may overrule.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from lightning_deadunits.tensorboard_plugin.series import drop_orphans
from lightning_deadunits.tensorboard_plugin.source import Source

Kind = Literal["loss", "learning_rate"]
KINDS: tuple[Kind, ...] = ("loss", "learning_rate")

# Ours, and what is neither: a loss is never looked for among them.
_OURS = re.compile(r"(dead_fraction|zero_rate|reinit)/|dead_layers$|hp_metric$|epoch$")
_NAMES: dict[Kind, re.Pattern[str]] = {
    "loss": re.compile(r"loss|nll|cross_?entropy|perplexity|elbo|objective", re.IGNORECASE),
    "learning_rate": re.compile(
        r"(^|[^a-z])lr([^a-z]|$)|learning_?-? ?rate", re.IGNORECASE
    ),  # LearningRateMonitor writes lr-SGD, lr-Adam/pg1
}
_NOT_A_RATE = re.compile(r"momentum|weight_decay", re.IGNORECASE)
_HELD_OUT = re.compile(r"(^|[^a-z])(val|valid|validation|test|eval)([^a-z]|$)", re.IGNORECASE)
_TRAINING = re.compile(r"(^|[^a-z])(train|training)([^a-z]|$)", re.IGNORECASE)


def guess(tags: Collection[str], kind: Kind) -> str | None:
    """Choose the tag that most likely is the loss or the learning rate, None if none looks it.

    Training before held out, every step before every epoch, then the shortest name.

    Example:
        >>> guess(["val_loss", "train_loss_epoch", "train_loss_step", "epoch"], "loss")
        'train_loss_step'
        >>> guess(["lr-Adam-momentum", "lr-Adam", "colr"], "learning_rate")
        'lr-Adam'
    """
    found = [tag for tag in tags if _NAMES[kind].search(tag) and not _OURS.match(tag)]
    if kind == "learning_rate":
        found = [tag for tag in found if not _NOT_A_RATE.search(tag)]
    return min(found, key=_unlikely, default=None)


def _unlikely(tag: str) -> tuple[bool, bool, bool, int, str]:
    words = tag.replace("_", "/")
    held_out, training = _HELD_OUT.search(words), _TRAINING.search(words)
    return (bool(held_out), not training, tag.endswith("epoch"), len(tag), tag)


def curves(source: Source, run: str, wanted: dict[Kind, str | None]) -> dict[str, Any]:
    """Read loss and learning rate of a run.

    Args:
        source: Where to read from.
        run: Name of the run.
        wanted: The tag that the user chose for each kind; None, or one that this run does not
            have, leaves the choice to the names.

    Returns:
        ``tags``, all that may be chosen, and under each kind None or its ``tag``, ``steps`` and
        ``values``, NaN where a value is not finite.
    """
    tags = sorted(tag for tag in source.scalar_tags(run) if not _OURS.match(tag))
    chosen: dict[Kind, str | None] = {}
    for kind in KINDS:
        tag = wanted.get(kind)
        chosen[kind] = tag if tag in tags else guess(tags, kind)
    read = source.scalars(run, {tag for tag in chosen.values() if tag is not None})
    answer: dict[str, Any] = {"tags": tags}
    for kind, tag in chosen.items():
        events = drop_orphans(read.get(tag, [])) if tag is not None else []
        answer[kind] = _curve(tag, events) if events else None
    return answer


def _curve(tag: str | None, events: list[Any]) -> dict[str, Any]:
    return {
        "tag": tag,
        "steps": [event.step for event in events],
        "values": np.array([event.value for event in events], dtype=np.float64),
    }
