"""One call of a function of torch: what it was given, what it returned, what is known of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.observation.identity import Descent
from lightning_deadunits.observation.lineage.axes import Args, Kwargs, Move
from lightning_deadunits.observation.lineage.axis_rules import keep_same_rank
from lightning_deadunits.observation.lineage.moves import MOVES
from lightning_deadunits.observation.lineage.producers import PRODUCERS, Maker
from lightning_deadunits.observation.lineage.ways import REDUCES_OR_CHOOSES, plain_name, way_of

Piece = int | slice | str | None
"""Which places of an axis were taken, or a word for them; None where nothing was."""


class Invocation(NamedTuple):
    """One call of a function, and one of the tensors that it returned.

    Attributes:
        function: What was called.
        args: What it was given.
        kwargs: What it was given by name.
        out: What it returned.
        piece: Which places of the axis that it cuts are returned here, None if it cuts none.
    """

    function: Callable[..., Any]
    args: Args
    kwargs: Kwargs
    out: Tensor
    piece: Piece = None


class Operand(NamedTuple):
    """An argument of which something is known."""

    tensor: Tensor
    descent: Descent


Given = list[tuple[Tensor, Descent | None]]
"""The tensors that a call was given, and what is known of each."""


class Operands(NamedTuple):
    """What a call was given.

    Attributes:
        given: All tensors.
        data: Those that weights made, or that came of these.
        weights: Those that are weights.
        unknown: Whether there are others.
        negates: Whether the call changes the sign of one of them.
    """

    given: Given
    data: list[Operand]
    weights: list[Operand]
    unknown: bool
    negates: bool


class Rule(NamedTuple):
    """What a function does to units: makes them, if it can tell their axes, else moves them."""

    maker: Maker | None
    move: Move
    moves: bool
    way: str

    @property
    def starts_anew(self) -> bool:
        """Whether weights make the units of its result whatever else it is given."""
        return self.maker is not None and self.maker.mixes and self.maker.kept is None

    def of_result(self, number: int) -> Rule:
        """Return the rule of one of several results: a recurrent layer's states are others."""
        maker = self.maker
        if maker is None or not maker.results[number : number + 1] or not maker.results[number]:
            return self
        axes = maker.states or maker.axes
        return self._replace(maker=maker._replace(axes=axes), way=maker.results[number])


def rule_of(function: Callable[..., Any]) -> Rule:
    """Return the rule of a function."""
    return Rule(
        PRODUCERS.get(function),
        MOVES.get(function, keep_same_rank),
        function in MOVES,
        way_of(function),
    )


def of_two(rule: Rule, call: Invocation) -> Rule:
    """Return the rule of ``torch.max(a, b)``, which reduces nothing: that of ``torch.maximum``."""
    if call.function not in REDUCES_OR_CHOOSES:
        return rule
    other = call.kwargs.get("other", call.args[1] if len(call.args) > 1 else None)
    if not isinstance(other, Tensor):
        return rule
    return Rule(None, keep_same_rank, False, f"{plain_name(call.function)}imum")


def tensors_in(args: Args, kwargs: Kwargs) -> Iterator[Tensor]:
    """Return the tensors among arguments, those in a list or a tuple too."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def units_of(tensor: Tensor, known: Descent) -> int:
    """Return how many units a tensor has."""
    shape = known.sizes or tensor.shape
    return torch.Size([shape[axis] for axis in known.axes or ()]).numel()
