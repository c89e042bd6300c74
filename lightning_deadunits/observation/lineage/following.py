"""Follows the units of a pass: which axes index them, which weights make them, on which way.

Shape alone cannot tell: ``(8, 16, 16)`` is a batch of 1-d signals with 16 channels, or of
sequences of 16 tokens with 16 features. What produced the tensor can.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.hidden_attributes import seen_through
from lightning_deadunits.observation.identity import (
    WEIGHT,
    Descent,
    Producer,
    added,
    joined,
    negated,
    part_of,
)
from lightning_deadunits.observation.lineage.axes import Args, Axes, Kwargs
from lightning_deadunits.observation.lineage.axis_rules import places_of
from lightning_deadunits.observation.lineage.call import (
    Given,
    Invocation,
    Operand,
    Operands,
    Rule,
    of_two,
    rule_of,
    tensors_in,
    units_of,
)
from lightning_deadunits.observation.lineage.carrying import carry
from lightning_deadunits.observation.lineage.gates import ZEROS, makes_zero
from lightning_deadunits.observation.lineage.joining import differ
from lightning_deadunits.observation.lineage.joints import cut_out, of_recurrent_layers
from lightning_deadunits.observation.lineage.making import made_by
from lightning_deadunits.observation.lineage.moves import OPAQUE
from lightning_deadunits.observation.lineage.parts import part_of_units
from lightning_deadunits.observation.lineage.ways import (
    JOINS,
    OVERWRITES,
    ROW_WRITES,
    SCRAMBLES,
    WRITES,
    axis_of,
    is_in_place,
    negated_by,
    pieces_of,
)
from lightning_deadunits.observation.lineage.weights import follow_weights
from lightning_deadunits.observation.site import Site

ATTRIBUTE = "_deadunits_descent"
_ZERO = "_deadunits_zero"


class Lineage:
    """Remembers where the units of the tensors of one forward pass come from.

    In an attribute of each tensor, which Dynamo can trace; tensors that leave a compiled region
    carry it on.

    Attributes:
        sites: What activations of units of one descent are, by name and the descent's identity,
            for whom works it out; None where nothing can be kept.
    """

    sites: dict[tuple[str, int], Site] | None = None

    def descent(self, tensor: Any) -> Descent | None:
        """Return where the units of a tensor come from, None if nothing is known of it."""
        known: Descent | None = getattr(tensor, ATTRIBUTE, None)
        if known is None and (named := getattr(tensor, WEIGHT, None)) is not None:
            return Descent(None, (Producer(*named),), weight=True)
        return known

    def remember(self, tensor: Tensor, descent: Descent, made: bool) -> None:
        """Remember where the units of a tensor come from: weights made them, or they were moved."""
        setattr(tensor, ATTRIBUTE, descent)

    def lose(self, tensor: Tensor) -> None:
        """Know nothing of a tensor any more, which was written to."""
        if getattr(tensor, ATTRIBUTE, None) is not None:
            setattr(tensor, ATTRIBUTE, None)  # Dynamo would put a `delattr` into the graph

    def guess(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes that a tensor of unknown descent is likely to have."""
        return None

    # --- what rules may ask -------------------------------------------------------------------

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor, () if it is known to have none, None if unknown."""
        descent = self.descent(tensor)
        return None if descent is None or descent.sizes else descent.axes

    def is_weight(self, tensor: Any) -> bool:
        """Tell whether a tensor is a parameter, or computed from parameters alone."""
        descent = self.descent(tensor)
        return descent is not None and descent.weight

    def is_zero(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is known to hold nothing but zeros."""
        return getattr(tensor, _ZERO, False)

    # --- one call -----------------------------------------------------------------------------

    def follow(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any) -> Any:
        """Take note of one call: work out where the units of what it returned come from.

        Returns:
            The call, if the same was met before, by whom remembers calls; else None.
        """
        if isinstance(out, Tensor):
            rule = rule_of(function)
            if self._is_lost(args) and not rule.starts_anew:
                return None
            self._follow_result(function, rule, args, kwargs, out)
            if function in ZEROS and makes_zero(function, args):
                setattr(out, _ZERO, True)
            self.note_written(function, args, kwargs, out)
        elif out is None and function in WRITES:
            self._write(args)
        return None

    def follow_parts(
        self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any
    ) -> Any:
        """Take note of the parts of a tensor that a call returned in a tuple.

        Returns:
            The parts, as views of what was returned: Dynamo can mark these only.
        """
        source = args[0] if args else None
        known = self.descent(source) if type(source) is Tensor and not source.is_nested else None
        if source is None or known is None or type(out) is not tuple:
            return out
        axis = (axis_of(function, args, kwargs) or 0) % source.ndim
        along = known.joint is not None and known.joint.axis == axis
        # Places of samples are not asked for: their number may be symbolic, and would be fixed.
        pieces: list[Any] = [slice(None)] * len(out)
        if along or axis in (known.axes or ()) or known.sizes:
            pieces = pieces_of(function, args, kwargs, out)
        rule, views = rule_of(function), []
        for piece, part in zip(pieces, out, strict=True):
            view = part.view_as(part)
            self._follow(rule, Invocation(function, args, kwargs, view, piece))
            views.append(view)
        return tuple(views)

    def note_written(
        self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Tensor
    ) -> None:
        """Know of what a call wrote what is known of its result: for Dynamo they are two."""
        written = args[0] if args and is_in_place(function, kwargs) else None
        target = kwargs.get("out", written)
        if not isinstance(target, Tensor):
            return
        known = self.descent(out)
        if known is None or target.ndim != out.ndim:  # Dynamo knows its shape of before
            self.lose(target)
        else:
            self.remember(target, known, made=False)

    def _is_lost(self, args: Args) -> bool:
        """Tell whether units were given that nobody saw moved; see through what can be."""
        for place, value in enumerate(args):
            if isinstance(value, Tensor) and self.descent(value) is None:
                known = seen_through(place)
                if known is not None and not known.weight:
                    return True
                if known is not None:
                    self.remember(value, known, made=False)
        return False

    def recall(self, tensor: Any) -> tuple[Descent | None, tuple[list[str], ...]]:
        """Return where the units of a tensor come from, and its lists of calls."""
        known = self.descent(tensor)
        return known, () if known is None else known.calls

    def activated(
        self, known: Descent, calls: tuple[list[str], ...], out: Tensor, way: str
    ) -> Descent:
        """Note that units have passed an activation.

        Args:
            known: Where they come from.
            calls: The lists of calls of the values that they are made of.
            out: What the activation returned.
            way: The activation's name.

        Returns:
            Where they come from now, without the lists.
        """
        after = passed(known, way)
        self.remember(out, after._replace(calls=calls), made=False)
        return after

    def _follow(self, rule: Rule, call: Invocation) -> None:
        """Take note of one result of a call."""
        function, out = call.function, call.out
        if not (out.is_floating_point() or out.is_complex() or out.dtype == torch.bool):
            return  # places and numbers of things are no units
        if function in OPAQUE or self._ranks_units(call):
            self.lose(out)
            return
        if function in OVERWRITES:
            self.lose(out)
            call = call._replace(args=call.args[1:])
        if "out" in call.kwargs:
            kwargs = {key: value for key, value in call.kwargs.items() if key != "out"}
            call = call._replace(kwargs=kwargs)
        rule = of_two(rule, call)
        if rule.maker is not None:
            made = made_by(self, rule.maker, call)
            if made is not None:
                if made.joint is not None:
                    made = made._replace(joint=None)
                if rule.way and rule.way in rule.maker.results:
                    made = of_recurrent_layers(call, rule.way, made)
                self.remember(out, made, made=not made.weight)
                return
        operands = self._operands(rule, call)
        weights = operands.weights
        descent = None
        if operands.data:
            descent = carry(self, call, rule, operands)
        elif weights:
            descent = follow_weights(self, call, rule, weights, unknown=operands.unknown)
        if descent is not None:
            self.remember(out, descent, made=False)
        if operands.data or not weights:
            return
        if len(weights) < len(list(tensors_in(call.args, call.kwargs))):
            self._blend(out)

    def _operands(self, rule: Rule, call: Invocation) -> Operands:
        """Return what a call was given, by what is known of it."""
        function, args, kwargs = call.function, call.args, call.kwargs
        # What else a move is given is an index, or a shape to take after.
        alone = rule.moves and len(args) > 0 and function not in JOINS
        tensors = tensors_in(args[:1], {}) if alone else tensors_in(args, kwargs)
        minus = negated_by(function, args, kwargs) if rule.way or not rule.moves else None
        given: Given = []
        data: list[Operand] = []
        weights: list[Operand] = []
        for tensor in tensors:
            known = self.descent(tensor)
            if known is not None and known.weight:
                weights.append(Operand(tensor, known))
            elif known is not None:
                if tensor is minus:
                    known = known._replace(producers=negated(known.producers))
                data.append(Operand(tensor, known))
            given.append((tensor, known))
        return Operands(
            given, data, weights, len(data) + len(weights) < len(given), minus is not None
        )

    def _ranks_units(self, call: Invocation) -> bool:
        """Tell whether a call sorts the units of a sample, or takes others of each sample."""
        function, source = call.function, call.args[0] if call.args else None
        if function not in SCRAMBLES or function in ROW_WRITES or not isinstance(source, Tensor):
            return False
        axes, axis = self.axes(source), axis_of(function, call.args, call.kwargs)
        return bool(axes) and axis is not None and axis % source.ndim in (axes or ())

    def _blend(self, out: Tensor) -> None:
        """Note of weights that they were computed from something else, too."""
        known = self.descent(out)
        if known is not None and known.weight and not known.blended:
            self.remember(out, known._replace(blended=True), made=False)

    def row(self, source: Tensor, out: Tensor) -> int | None:
        """Return which row of stacked weights a view is, None if that cannot be told."""
        return None

    def chosen_by(self, places: list[tuple[Any, int]]) -> tuple[str, bool] | None:
        """Return what lists of places choose, None if that cannot be told."""
        return None

    def _write(self, args: Args) -> None:
        """``target[...] = value``: the units of the value are the target's from now on."""
        target, index, value = args[0], args[1], args[-1]
        known = self.descent(value) if isinstance(value, Tensor) else None
        if known is None or known.weight or not known.axes or known.sizes:
            return
        if not isinstance(target, Tensor) or self._is_written_back(target, index, value, known):
            return
        home = places_of(target, index)
        # Aligned at the end, as values are broadcast into what they are written to.
        places = [axis + len(home) - value.ndim for axis in known.axes]
        found = [home[place] if place >= 0 else None for place in places]
        axes = tuple([axis for axis in found if axis is not None])
        if len(axes) < len(found) or any(
            target.shape[axis] != value.shape[own]
            for axis, own in zip(axes, known.axes, strict=True)
        ):
            self._take_in(target, known)
        else:
            self._hold(target, known, axes)
        self._take_in(target._base, known)

    def _hold(self, target: Tensor, known: Descent, axes: Axes) -> None:
        """Know that units were written into all places of a tensor, or into some rows of it."""
        before, own = self.descent(target), known._replace(axes=axes)
        if known.members is not None:
            own = own._replace(members=None, mixed=True)
        if before is not None and not before.weight and before.axes == axes:
            mixed = differ([before, own])
            own = added([before, own], axes)
            own = own._replace(mixed=own.mixed or mixed)
        self.remember(target, own._replace(joint=None), made=False)

    def _is_written_back(self, target: Tensor, index: Any, value: Tensor, known: Descent) -> bool:
        """Tell whether some of a tensor's own units are put where they were."""
        before = self.descent(target)
        if before is None or before.weight or not before.axes:
            return False
        call = Invocation(Tensor.__getitem__, (target, index), {}, value)
        cut = cut_out(call, rule_of(Tensor.__getitem__), before, Operand(target, before))
        if cut is None and units_of(value, known) == units_of(target, before):
            return False  # of all units, which is worked out below
        part = part_of_units(call, before, target)
        expected = part_of(before.producers, part) if cut is None else cut.producers
        return known.producers == expected

    def _follow_result(
        self, function: Callable[..., Any], rule: Rule, args: Args, kwargs: Kwargs, out: Tensor
    ) -> None:
        """Take note of one result; what was done in the memory of a view was done to its base."""
        in_view = bool(args) and out is args[0] and out._base is not None
        before = self.descent(out) if in_view else None
        self._follow(rule, Invocation(function, args, kwargs, out))
        if not in_view:
            return
        after = self.descent(out)
        if before is None or (after is not None and after.producers != before.producers):
            self._take_in(out._base, after)

    def _take_in(self, target: Any, fresh: Descent | None) -> None:
        """Note that units or rows of others were written over some of a tensor's own."""
        known = None if target is None else self.descent(target)
        if known is None or known.weight or known.mixed or known.members is not None:
            return
        if fresh is not None and fresh.producers != known.producers:
            self.remember(target, known._replace(mixed=True, joint=None), made=False)


def passed(known: Descent, way: str) -> Descent:
    """Return the descent of units that have passed an activation."""
    return known._replace(activated=True, way=joined(known.way, (way,)), gate=0, joint=None)


@contextmanager
def mark_weights(named: Mapping[Tensor, Producer]) -> Iterator[None]:
    """Have parameters tell their names for a while, where Dynamo traces and no table is read.

    By plain tuples: whoever pickles a parameter meanwhile must not need this package to load it.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    # Those that another observer has marked are its own to clear: one records while one counts.
    fresh = {weight: own for weight, own in named.items() if not hasattr(weight, WEIGHT)}
    for weight, own in fresh.items():
        setattr(weight, WEIGHT, (False, own.order, own.name))
    try:
        yield
    finally:
        for weight in fresh:
            if hasattr(weight, WEIGHT):
                delattr(weight, WEIGHT)
