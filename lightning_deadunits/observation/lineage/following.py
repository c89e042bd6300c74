"""Follows the units of a pass: which axes index them, which weights make them, on which way.

Shape alone cannot tell: ``(8, 16, 16)`` is a batch of 1-d signals with 16 channels, or of
sequences of 16 tokens with 16 features. What produced the tensor can.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.hidden_attributes import seen_through
from lightning_deadunits.observation.identity import (
    WEIGHT,
    ZERO,
    Descent,
    Members,
    Producer,
    across,
    added,
    joined,
    negated,
    part_of,
    share_units,
)
from lightning_deadunits.observation.lineage.axes import Args, Axes, Folded, Kwargs, Move
from lightning_deadunits.observation.lineage.axis_rules import (
    carried,
    consumes,
    groups_of,
    is_odd,
    items_of,
    keep_same_rank,
    places_of,
    reduce,
    reorders,
    spread_over,
)
from lightning_deadunits.observation.lineage.gates import (
    COMPARISONS,
    WHERE,
    ZEROS,
    gate_after,
    makes_zero,
)
from lightning_deadunits.observation.lineage.moves import MOVES, OPAQUE, PERMUTATIONS
from lightning_deadunits.observation.lineage.producers import PRODUCERS, Maker, summed_axes
from lightning_deadunits.observation.lineage.ways import (
    CHOICES,
    FACTORS,
    JOINS,
    OVERWRITES,
    PIECES,
    REPEATS,
    ROW_ADDITIONS,
    ROW_WRITES,
    SCRAMBLES,
    WRITES,
    axis_of,
    negated_by,
    plain_name,
    turned,
    way_of,
)
from lightning_deadunits.observation.site import Site

_SELECTS = {torch.index_select, Tensor.index_select, torch.select, Tensor.select}
_NARROWS = {torch.narrow, Tensor.narrow}
_KEEP_ROWS = {
    *(Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten, Tensor.unflatten),
    *(torch.unflatten, Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze),
    *(torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.split_with_sizes),
    *(Tensor.__getitem__, Tensor.select, torch.select, Tensor.narrow, torch.narrow),
}
"""Moves that leave the first axes as they are, if their sizes stay."""
ATTRIBUTE = "_deadunits_descent"
_ZERO = "_deadunits_zero"
STATES = "states"
Piece = int | slice | str | None
"""Which places of an axis were taken, or a word for them; None where nothing was."""


class _Rule(NamedTuple):
    """What a function does to units: makes them, if it can tell their axes, else moves them."""

    maker: Maker | None
    move: Move
    moves: bool
    way: str

    @property
    def starts_anew(self) -> bool:
        """Whether weights make the units of its result whatever else it is given."""
        return self.maker is not None and self.maker.mixes and self.maker.kept is None

    def of_result(self, number: int) -> _Rule:
        """Return the rule of one of several results: a recurrent layer's states are others."""
        if number == 0 or self.maker is None or self.maker.states is None:
            return self
        return self._replace(maker=self.maker._replace(axes=self.maker.states), way=STATES)


def rule_of(function: Callable[..., Any]) -> _Rule:
    """Return the rule of a function."""
    return _Rule(
        PRODUCERS.get(function),
        MOVES.get(function, keep_same_rank),
        function in MOVES,
        way_of(function),
    )


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
        if hasattr(tensor, ATTRIBUTE):
            delattr(tensor, ATTRIBUTE)

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
        elif out is None and function in WRITES:
            self._write(args)
        return None

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

    def _follow(
        self,
        function: Callable[..., Any],
        rule: _Rule,
        args: Args,
        kwargs: Kwargs,
        out: Tensor,
        piece: Piece,
    ) -> None:
        if not (out.is_floating_point() or out.is_complex() or out.dtype == torch.bool):
            return  # places and numbers of things are no units
        if function in OPAQUE or self._ranks_units(function, args, kwargs):
            self.lose(out)
            return
        if function in OVERWRITES:
            self.lose(out)
            args = args[1:]
        if "out" in kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        if rule.maker is not None:
            made = self._made(rule.maker, args, kwargs, out)
            if made is not None:
                if rule.way == STATES and len(made.axes or ()) > 1:
                    made = made._replace(way=(STATES,))  # of all layers, not of the last one
                self.remember(out, made, made=not made.weight)
                return
        data: list[tuple[Tensor, Descent]] = []
        weights: list[tuple[Tensor, Descent]] = []
        unknown = False
        minus = negated_by(function, args, kwargs) if rule.way or not rule.moves else None
        if rule.moves and args and function not in JOINS:
            # What else is given is an index, or a shape to take after.
            given: Iterable[Tensor] = _tensors(args[:1], {})
        else:
            given = _tensors(args, kwargs)
        for tensor in given:
            known = self.descent(tensor)
            if known is not None and tensor is minus and not known.weight:
                known = known._replace(producers=negated(known.producers))
            if known is None:
                unknown = True
            elif known.weight:
                weights.append((tensor, known))
            else:
                data.append((tensor, known))
        if not data:
            self._follow_weights(function, rule, weights, unknown, args, kwargs, out, piece)
            if weights and len(weights) < len(list(_tensors(args, kwargs))):
                self._blend(out)
            return
        source, known = _like(data, out)
        units = Folded(known.sizes, known.axes or ())
        moved = carried(rule.move, units, source, args, kwargs, out)
        if known.axes is None or moved is None:
            return
        if weights and moved.sizes and not rule.moves:
            beside = weights[0][0]
            last = range(-1, -1 - min(beside.ndim, out.ndim), -1)
            touched = [axis % out.ndim for axis in last if beside.shape[axis] > 1]
            moved = spread_over(moved, tuple(out.shape), touched)
        sizes, axes = moved
        if not sizes and not rule.moves:
            axes = _spread(axes, data, source, out)
        if weights and function in FACTORS and not sizes:
            axes = tuple(sorted((*axes, *_brought(weights[0][0], source, out))))
        chosen = _joining(data) if len(data) > 1 else [known]
        descent = _together(chosen, axes) if len(chosen) > 1 else chosen[0]._replace(axes=axes)
        if descent.sizes != sizes:
            descent = descent._replace(sizes=sizes)
        if len(data) > 1 and not rule.moves and descent.calls:
            descent = descent._replace(calls=([],))  # a sum has values of its own
        if function in JOINS:
            descent = _ordered(descent, [self.descent(own) for own in _tensors(args, kwargs)])
        if (len(chosen) > 1 or unknown or weights) and self._mixes_rows(
            function, args, chosen, source, known, axes, out
        ):
            if function is torch.stack and not descent.mixed:
                dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
                descent = descent._replace(stacked=dim % out.ndim)
            descent = descent._replace(mixed=True)
        elif known.stacked is not None:
            descent = _still_stacked(
                function, descent, rule.move, known.stacked, source, args, kwargs, out
            )
        if not sizes and self._pads(function, args, kwargs, known, source, out):
            descent = descent._replace(padded=True)
        if weights and not rule.moves and function not in COMPARISONS:
            descent = _with_weights(function, descent, *weights[0], out)
        word = rule.way
        if rule.move in PERMUTATIONS and len(axes) > 1 and not known.sizes:
            if reorders(rule.move, known.axes, source, args, kwargs, out):
                word = _permuted([source.shape[axis] for axis in known.axes], descent.way)
        elif word == "permute":
            groups = args[1] if len(args) > 1 else kwargs["groups"]
            word = _permuted([groups, _units_of(source, known) // groups], descent.way)
        elif word == "roll":
            word = turned(function, args, kwargs, known.axes)
        if word:
            descent = descent._replace(way=joined(descent.way, (word,)))
            if rule.way == "roll" and descent.members is not None:
                descent = descent._replace(members=None, mixed=True)
        if rule.moves:
            if function in CHOICES:
                places = _chosen_units(function, args, kwargs, () if sizes else known.axes)
                piece = self.word_for(places) if places else None
                if places and piece is None:
                    descent = descent._replace(mixed=True)  # in a graph: which is not known
            descent = _moved(function, descent, known, source, args, kwargs, out, piece)
        if descent.members is not None and function in SCRAMBLES:
            descent = descent._replace(members=None, mixed=True)
        if function in ROW_ADDITIONS and self._is_partial(args[0]):
            descent = descent._replace(partial=True)
        gate = gate_after(function, known.gate, len(args) > 0 and source is args[0])
        if gate != descent.gate:
            descent = descent._replace(gate=gate)
        self.remember(out, descent, made=False)

    def _made(self, maker: Maker, args: Args, kwargs: Kwargs, out: Tensor) -> Descent | None:
        """Return the descent of what a function makes by weights, None if it makes nothing here."""
        kept = None if maker.kept is None else maker.kept(self, args, kwargs, out)
        found = maker.axes(self, args, kwargs, out) if kept is None else kept
        if found is None:
            return None
        sizes, axes = found if isinstance(found, Folded) else Folded((), found)
        given = maker.weights(args, kwargs)
        known = [own for own in (self.descent(tensor) for tensor in given) if own is not None]
        weights = [own for own in known if own.weight and kept is None]
        if maker.weighs_first and given and not self._may_be_weight(given[0]):
            weights = []  # a bias alone makes nothing
        if maker.mixes and weights and len(weights) == len(list(_tensors(args, kwargs))):
            return _of_weights(weights)  # such as LoRA's product of two parameters
        producers = weights[0].producers if weights else ()
        if weights and weights[0].turned != maker.columns(self, args, kwargs):
            producers = across(producers)
        for own in weights[1:]:
            if own.producers != weights[0].producers:  # its module's own bias is no other producer
                producers = joined(producers, _beside(own))
        levels: tuple[int, ...] = ()
        for own in weights:
            levels = joined(levels, own.levels)
        members = next((own.members for own in weights if own.members is not None), None)
        if maker.grouped is not None and members is None:
            members = maker.grouped(args, kwargs)
            if members is not None and weights:
                names = tuple([own.name for own in weights[0].producers])
                members = members._replace(names=names)
        if not maker.mixes:
            return self._normalised(args, kwargs, axes, producers, out)
        if not weights:
            # Weights that are computed from data (a hypernetwork), or two activations.
            carriers = [own for own in known if own.axes]
            if kept is not None:
                source = next(own for own in given if self.axes(own))
                is_sum = carriers[0].stacked in summed_axes(args, kwargs, source)
                return _rows_mixed(carriers[0], axes, is_sum=is_sum)
            if maker.spatial and given:
                folded = _by_sample(given[0], self.descent(given[0]), out)
                if folded is not None:
                    sizes, axes = folded
                elif _is_grouped(args, kwargs) or self._is_folded(given[0]):
                    return Descent(None, ())  # samples may be folded into the channels
            if len(carriers) > 1:
                both = added(carriers, axes)
                return both._replace(activated=False, calls=([],), sizes=sizes)
            if carriers and maker.by_data(self, args, kwargs, out):
                way = ("matmul",) if carriers[0].activated else ()
                return Descent(axes, carriers[0].producers, way, ([],), sizes=sizes)
        made = Descent(
            *(axes, producers, (), ([],)),
            members=members,
            levels=levels,
            mixed=any(own.mixed for own in weights) and bool(maker.kept),
            sizes=sizes,
        )
        addend = None if maker.addend is None else maker.addend(args, kwargs)
        beside = self.descent(addend) if isinstance(addend, Tensor) else None
        if beside is None or beside.weight or not beside.axes or beside.sizes or sizes:
            return made
        both = _together([beside, made], axes)  # what data have made is added, as in h + x @ w
        return both._replace(way=joined(both.way, ("add",)), calls=([],))

    def _ranks_units(self, function: Callable[..., Any], args: Args, kwargs: Kwargs) -> bool:
        """Tell whether a call sorts the units of a sample, or takes others of each sample."""
        source = args[0] if args else None
        if function not in SCRAMBLES or function in ROW_WRITES or not isinstance(source, Tensor):
            return False
        axes, axis = self.axes(source), axis_of(function, args, kwargs)
        return bool(axes) and axis is not None and axis % source.ndim in (axes or ())

    def _is_folded(self, weight: Tensor) -> bool:
        """Tell whether weights that data made have units and samples on one axis."""
        known = self.descent(weight)
        return known is not None and not known.weight and bool(known.sizes)

    def _may_be_weight(self, tensor: Tensor) -> bool:
        """Tell whether a factor may be weights: of those that are computed, a graph shows none."""
        known = self.descent(tensor)
        return torch.compiler.is_compiling() if known is None else known.weight

    def _normalised(
        self, args: Args, kwargs: Kwargs, axes: Axes, producers: tuple[Producer, ...], out: Tensor
    ) -> Descent:
        source = self.descent(args[0] if args else kwargs["input"])
        given = [self.descent(tensor) for tensor in _tensors(args, kwargs)]
        weights = [own for own in given if own is not None and own.weight]
        if len(weights) == len(given):
            return _of_weights(weights)  # weights that are standardised
        if source is None or source.weight:
            return Descent(axes, producers, (), ([],))
        if not source.producers:
            producers = ()  # nobody knows what makes them, and a norm does not tell
        if source.sizes:
            units = Folded(source.sizes, source.axes or ())
            if producers:
                units = spread_over(units, tuple(out.shape), axes)
            source, axes = source._replace(sizes=units.sizes), units.axes
        if not producers:  # no scale and shift of its own
            return source._replace(axes=axes, activated=False)
        if source.summed or source.mixed:
            return Descent(axes, producers, (), ([],), sizes=source.sizes)
        return source._replace(
            axes=axes,
            producers=joined(source.producers, producers),
            activated=False,
            padded=False,  # scale and shift make the rest of the units, too
        )

    def _follow_weights(
        self,
        function: Callable[..., Any],
        rule: _Rule,
        weights: list[tuple[Tensor, Descent]],
        unknown: bool,
        args: Args,
        kwargs: Kwargs,
        out: Tensor,
        piece: Piece,
    ) -> None:
        """Take note of what is computed from weights alone: a view, a row, a norm of them."""
        if not weights:
            return
        if function in REPEATS:
            if _is_tiled(weights[0][0], out):  # else they are the same units again
                self.remember(out, weights[0][1]._replace(mixed=True), made=False)
            return
        if function not in JOINS:
            weights = [(weight, _copied(weight, own, out)) for weight, own in weights]
        source, known = weights[0]
        if function in CHOICES and args and source is args[0]:
            dim, index = _choice(function, args, kwargs)
            if isinstance(index, tuple) and all(_is_all(item) for item in index[1:]):
                index = index[0]
            if isinstance(index, Tensor) and index.ndim and not index.is_floating_point():
                if dim == 0 and source.ndim > 2 and index.dtype != torch.bool:
                    # An index from the end is one; a router's -1, given elsewhere, is none.
                    rows = index if function in _SELECTS else index.remainder(source.shape[0])
                    names = tuple([own.name for own in known.producers])
                    apart = len(names) == source.shape[0] > 1  # a stack of as many tensors
                    chosen = Members(source.shape[0], rows, ends=False, names=names, apart=apart)
                    self.remember(out, known._replace(members=chosen), made=False)
                elif dim:  # of what the weights read, a part
                    self.remember(out, known, made=False)
                return
            if isinstance(index, Tensor):
                piece = self.row(source, out)
            elif isinstance(index, list):
                piece = self.word_for([index])
            else:
                piece = _part_of_weights(dim, index, source.shape)
            if piece is None:
                return
        elif unknown and not any(tensor.shape == out.shape for tensor, _ in weights):
            return  # data and a parameter: a position embedding, say
        elif function in PIECES and isinstance(piece, (int, slice)):
            piece = _part_of_weights(axis_of(function, args, kwargs) or 0, piece, source.shape)
        if function is torch.stack and (stacked := _rows_stacked(args, weights)) is not None:
            self.remember(out, stacked, made=False)
            return
        if function in JOINS and len(weights) > 1:
            weights = _in_order(weights)
        descent = _of_weights([own for _, own in weights])
        if source is negated_by(function, args, kwargs):
            descent = descent._replace(producers=negated(descent.producers))
        if rule.way == "roll":
            word = turned(function, args, kwargs, range(source.ndim))
            descent = descent._replace(producers=part_of(descent.producers, word))
        if rule.move in PERMUTATIONS and is_odd(rule.move, source, args, kwargs, out):
            descent = descent._replace(turned=not descent.turned)
        if piece is not None and piece != "":
            named = tuple(p._replace(name=f"{p.name}.{piece}") for p in descent.producers)
            descent = descent._replace(producers=named)
        self.remember(out, descent, made=False)

    def _blend(self, out: Tensor) -> None:
        """Note of weights that they were computed from something else, too."""
        known = self.descent(out)
        if known is not None and known.weight and not known.blended:
            self.remember(out, known._replace(blended=True), made=False)

    def _mixes_rows(
        self,
        function: Callable[..., Any],
        args: Args,
        chosen: list[Descent],
        source: Tensor,
        known: Descent,
        axes: Axes,
        out: Tensor,
    ) -> bool:
        """Tell whether a result has rows of one layer beside rows of another one."""
        if function in ROW_WRITES:
            return _differ(chosen) and (function not in ROW_ADDITIONS or self._is_partial(args[0]))
        if function in JOINS:
            if _units_of(source, known) != _units_of(out, known._replace(axes=axes)):
                return False  # units are joined, not rows
            return _differ(chosen) or any(
                tensor.numel() and self._is_none_of_a_layer(tensor) and not self.is_zero(tensor)
                for tensor in _tensors(args, {})
            )
        if function in WHERE:
            branches = [self.descent(branch) for branch in args[1:3] if isinstance(branch, Tensor)]
            return _differ([own for own in branches if own is not None and own.gate != ZERO])
        return False

    def _is_none_of_a_layer(self, tensor: Tensor) -> bool:
        known = self.descent(tensor)
        return known is None or known.weight

    def _pads(
        self,
        function: Callable[..., Any],
        args: Args,
        kwargs: Kwargs,
        known: Descent,
        source: Tensor,
        out: Tensor,
    ) -> bool:
        """Tell whether a result has zeros, or raw inputs, beside the units of a layer."""
        if function is F.pad:
            mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
            return mode == "constant" and _units_of(out, known) > _units_of(source, known)
        if function not in JOINS or function is torch.stack:
            return False
        return _units_of(source, known) < _units_of(out, known) and any(
            tensor.numel() and self.descent(tensor) is None for tensor in _tensors(args, {})
        )

    def _is_partial(self, target: Any) -> bool:
        """Tell whether a tensor was all zeros, but for what was added to some of its rows."""
        known = self.descent(target)
        return known is None or known.partial or known.gate == ZERO

    def row(self, source: Tensor, out: Tensor) -> int | None:
        """Return which row of stacked weights a view is, None if that cannot be told."""
        return None

    def word_for(self, places: list[Any]) -> str | None:
        """Return a word for the units that lists of places choose, None if that cannot be told."""
        return None

    def _write(self, args: Args) -> None:
        """``target[...] = value``: the units of the value are the target's from now on."""
        target, value = args[0], args[-1]
        known = self.descent(value) if isinstance(value, Tensor) else None
        if known is None or known.weight or not known.axes or known.sizes:
            return
        if not isinstance(target, Tensor):
            return
        home = places_of(target, args[1])
        # Aligned at the end, as values are broadcast into what they are written to.
        places = [axis + len(home) - value.ndim for axis in known.axes]
        found = [home[place] if place >= 0 else None for place in places]
        axes = tuple([axis for axis in found if axis is not None])
        before = self.descent(target)
        if len(axes) < len(found) or any(
            target.shape[axis] != value.shape[own]
            for axis, own in zip(axes, known.axes, strict=True)
        ):
            if before is None or known.producers != self._of_part(target, before, args[1]):
                self._take_in(target, known)
            return
        own = known._replace(axes=axes)
        if known.members is not None:
            own = own._replace(members=None, mixed=True)
        if before is not None and not before.weight and before.axes == axes:
            mixed = _differ([before, own])
            own = added([before, own], axes)
            own = own._replace(mixed=own.mixed or mixed)
        self.remember(target, own, made=False)

    def _of_part(self, target: Tensor, known: Descent, index: Any) -> tuple[Producer, ...]:
        """Return what makes the units that an index chooses: these may be written back."""
        part = _part(Tensor.__getitem__, known, target, (target, index), {}, None)
        return part_of(known.producers, part)

    def _follow_result(
        self, function: Callable[..., Any], rule: _Rule, args: Args, kwargs: Kwargs, out: Tensor
    ) -> None:
        """Take note of one result; what was done in the memory of a view was done to its base."""
        in_view = bool(args) and out is args[0] and out._base is not None
        before = self.descent(out) if in_view else None
        self._follow(function, rule, args, kwargs, out, None)
        if not in_view:
            return
        after = self.descent(out)
        if before is None or (after is not None and after.producers != before.producers):
            self._take_in(out._base, after)

    def _take_in(self, target: Any, fresh: Descent | None) -> None:
        """Note that units or rows of others were written over some of a tensor's own."""
        known = self.descent(target)
        if known is None or known.weight or known.mixed or known.members is not None:
            return
        if fresh is not None and fresh.producers != known.producers:
            self.remember(target, known._replace(mixed=True), made=False)


def passed(known: Descent, way: str) -> Descent:
    """Return the descent of units that have passed an activation."""
    return known._replace(activated=True, way=joined(known.way, (way,)), gate=0)


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


def _tensors(args: Args, kwargs: Kwargs) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def _beside(weights: Descent) -> tuple[Producer, ...]:
    """Return producers that join what others make, value by value."""
    return tuple([own._replace(joined=True) for own in weights.producers])


def _of_weights(weights: list[Descent]) -> Descent:
    """Return the descent of what is computed from several weights."""
    producers = weights[0].producers
    for own in weights[1:]:
        producers = joined(producers, own.producers)
    members = next((own.members for own in weights if own.members is not None), None)
    levels: tuple[int, ...] = ()
    for own in weights:
        levels = joined(levels, own.levels)
    return Descent(
        *(None, producers),
        weight=True,
        members=members,
        levels=levels,
        mixed=any(own.mixed for own in weights),
        turned=weights[0].turned,
        unsure=any(own.unsure for own in weights),
        blended=any(own.blended for own in weights),
    )


def _rows_mixed(known: Descent, axes: Axes, *, is_sum: bool) -> Descent:
    """Return the descent of units whose samples or positions were mixed, as by a graph's edges.

    Args:
        known: What is known of them.
        axes: Their axes in the result.
        is_sum: Whether those that were mixed are the layers of a stack, all of them each time.
    """
    return known._replace(
        axes=axes,
        way=joined(known.way, ("matmul",)),
        calls=([],),
        activated=False,
        members=None,
        mixed=(known.mixed and not is_sum) or known.members is not None,
        summed=known.summed or is_sum,
        stacked=None,
    )


def _ordered(descent: Descent, joining: list[Descent | None]) -> Descent:
    """Have units that are joined in another order than the model's, or with others, tell so.

    They would be taken for those of ``cat([a, b])``, which stand elsewhere in ``cat([b, a])``.
    """
    places = [
        (own.producers[0].order, own.producers[0].name, own.producers[0].part)
        if own is not None and own.producers and own.activated == descent.activated
        else None  # nobody knows what makes it, or it is carried along
        for own in joining
    ]
    fresh = [place for place in places if place is not None]
    if len(fresh) == len(places) and fresh == sorted(fresh):
        return descent
    ranks = ["x" if place is None else str(sorted(fresh).index(place)) for place in places]
    return descent._replace(way=joined(descent.way, (f"cat{'_'.join(ranks)}",)))


def _rows_stacked(args: Args, weights: list[tuple[Tensor, Descent]]) -> Descent | None:
    """Return the descent of weights of which each row, a sample, has one of few; else None.

    As ``torch.stack([experts[k] for k in chosen])`` has: what is there several times is no member
    of an ensemble.
    """
    distinct: list[tuple[Producer, ...]] = []
    rows: list[int] = []
    for _, own in weights:
        if own.producers not in distinct:
            distinct.append(own.producers)
        rows.append(distinct.index(own.producers))
    alone = all(len(producers) == 1 for producers in distinct)
    if len(args) > 1 or len(rows) == len(distinct) or not alone or len(rows) < len(args[0]):
        return None
    joint = _of_weights([own for _, own in weights])
    names = tuple([producers[0].name for producers in distinct])
    which = torch.tensor(rows, device=weights[0][0].device)
    return joint._replace(
        members=Members(len(distinct), which, ends=False, names=names, apart=True)
    )


def _in_order(weights: list[tuple[Tensor, Descent]]) -> list[tuple[Tensor, Descent]]:
    """Have weights that stand in another order than the model's tell their places."""
    first = [own.producers[0] for _, own in weights if own.producers]
    places = [(producer.order, producer.name) for producer in first]
    if places == sorted(places):
        return weights
    return [
        (tensor, own._replace(producers=part_of(own.producers, str(place))))
        for place, (tensor, own) in enumerate(weights)
    ]


def _like(data: list[tuple[Tensor, Descent]], out: Tensor) -> tuple[Tensor, Descent]:
    """Return the argument that the result takes after.

    One with a unit axis and the result's own shape, else the first that has a unit axis, else one
    that is known to have none.
    """
    best = data[0]
    for tensor, known in data:
        if known.axes and tensor.shape == out.shape:
            return tensor, known
        if known.axes and not best[1].axes:
            best = (tensor, known)
    return best


def _spread(axes: Axes, data: list[tuple[Tensor, Descent]], source: Tensor, out: Tensor) -> Axes:
    """Return the unit axes of a result, those too over which its source is spread.

    Each pair is a unit in ``a[:, :, None] * b[:, None, :]``.
    """
    shift = out.ndim - source.ndim
    found = set(axes)
    for tensor, own in data:
        before = out.ndim - tensor.ndim
        for axis in () if tensor is source or own.sizes or own.gate == ZERO else own.axes or ():
            at = axis + before
            alone = at < shift or source.shape[at - shift] == 1
            if alone and at >= 0 and tensor.shape[axis] == out.shape[at] > 1:
                found.add(at)
    return tuple(sorted(found)) if len(found) > len(axes) else axes


def _permuted(sizes: list[int], way: tuple[str, ...]) -> str:
    """Return the word for units that were shuffled: twice is not once."""
    word = f"permute{'_'.join([str(size) for size in sizes])}"
    while word in way:
        word += "_again"
    return word


def _still_stacked(
    function: Callable[..., Any],
    descent: Descent,
    move: Move,
    axis: int,
    source: Tensor,
    args: Args,
    kwargs: Kwargs,
    out: Tensor,
) -> Descent:
    """Have rows of several layers be known by their axis for longer, or be summed over it."""
    if out.shape == source.shape and move is keep_same_rank:
        return descent._replace(stacked=axis)
    if move is reduce and not move((axis,), source, args, kwargs, out):
        way = joined(descent.way, (plain_name(function),))  # the least of them is not the greatest
        return descent._replace(mixed=False, summed=True, stacked=None, way=way)
    return descent._replace(stacked=None)


def _joining(data: list[tuple[Tensor, Descent]]) -> list[Descent]:
    """Return the descents of those arguments whose units come together in the result."""
    joining = [known for _, known in data if known.axes and known.gate != ZERO]
    return joining or [data[0][1]]


def _together(chosen: list[Descent], axes: Axes) -> Descent:
    """Return the descent of several tensors' units, which come together in one."""
    if not any(own.gate != 0 for own in chosen) or not _differ(chosen):
        return added(chosen, axes)
    # A gate makes the units as well as what makes the values that it keeps, though these have
    # passed an activation and the gate has not.
    fresh = added([own._replace(activated=False) for own in chosen], axes)
    summed = any(own.summed or not share_units(chosen[0], own) for own in chosen)
    activated = all(own.activated or own.gate != 0 for own in chosen)
    return fresh._replace(activated=activated, summed=summed)


def _moved(
    function: Callable[..., Any],
    descent: Descent,
    known: Descent,
    source: Tensor,
    args: Args,
    kwargs: Kwargs,
    out: Tensor,
    piece: Piece,
) -> Descent:
    """Return a descent whose tensor was cut or moved: a part of the units, or of the samples."""
    if function in JOINS:
        return descent
    if descent.members is not None:
        rows = descent.members.rows.ndim
        keeps = function in _KEEP_ROWS and not (len(args) > 1 and _is_list(args[1]))
        if not keeps or out.shape[:rows] != source.shape[:rows]:
            descent = descent._replace(members=None, mixed=True)
    units, left = _units_of(source, known), _units_of(out, descent)
    if function in PIECES or function in CHOICES:
        if left < units or (piece is not None and function in CHOICES):
            taken = piece is not None and function in CHOICES
            part = str(piece) if taken else _part(function, known, source, args, kwargs, piece)
            # Cropped, mostly to what was there before it was padded.
            return descent._replace(producers=part_of(descent.producers, part), padded=False)
        if out.numel() < source.numel():
            # Other samples or positions of the same units: what is activated of these from now on
            # says nothing of the others.
            return descent._replace(calls=tuple([list(calls) for calls in descent.calls]))
    return descent


def _units_of(tensor: Tensor, known: Descent) -> int:
    """Return how many units a tensor has."""
    shape = known.sizes or tensor.shape
    return torch.Size([shape[axis] for axis in known.axes or ()]).numel()


def _with_members(descent: Descent, members: Members, out: Tensor) -> Descent:
    """Return the descent of what weights of each row's own were added to, or multiplied with."""
    if descent.members is None and out.shape[: members.rows.ndim] == members.rows.shape:
        return descent._replace(members=members)
    both = None if descent.members is None else descent.members.joined_with(members)
    return descent._replace(members=both, mixed=descent.mixed or both is None)


def _by_sample(weight: Tensor, known: Descent | None, out: Tensor) -> Folded | None:
    """Return the unit axes of a convolution by filters of each sample's own, None if it is none.

    Samples and channels are folded into one axis there, of the filters as of the result.
    """
    if known is None or not known.axes or not known.sizes:
        return None
    groups = groups_of(known.sizes, tuple(weight.shape))
    if groups is None or not any(own in known.axes for own in groups[0]):
        return None
    channels = out.ndim - weight.ndim + 1
    samples = 1
    for own in groups[0]:
        samples *= 1 if own in known.axes else known.sizes[own]
    if samples == 1 or groups[0][0] in known.axes or out.shape[channels] % samples:
        return None
    units = out.shape[channels] // samples
    return Folded(
        (*out.shape[:channels], samples, units, *out.shape[channels + 1 :]), (channels + 1,)
    )


def _is_grouped(args: Args, kwargs: Kwargs) -> bool:
    """Tell whether each group of channels is convolved by itself."""
    source, weight, *_ = _tensors(args, kwargs)
    return weight.ndim > 2 and source.shape[2 - weight.ndim - 1] not in weight.shape[:2]


def _differ(descents: list[Descent]) -> bool:
    """Tell whether tensors are known to be made by different weights."""
    producers = [own.producers for own in descents if own.producers]
    return any(own != producers[0] for own in producers[1:])


def _is_all(item: Any) -> bool:
    """Tell whether an item of an index leaves an axis, or several, as they are."""
    return item is Ellipsis or (isinstance(item, slice) and item == slice(None))


def _is_list(index: Any) -> bool:
    """Tell whether an index lists places, in any order."""
    return any(
        isinstance(i, (Tensor, list)) for i in (index if isinstance(index, tuple) else (index,))
    )


def _chosen_units(
    function: Callable[..., Any], args: Args, kwargs: Kwargs, axes: Axes | None
) -> list[Any]:
    """Return the lists and tensors of places that choose among the units, in any order."""
    dim, index = _choice(function, args, kwargs)
    found = []
    for item in items_of(index, args[0].ndim):
        taken = consumes(item)
        if isinstance(item, (list, Tensor)) and any(dim + i in (axes or ()) for i in range(taken)):
            found.append(item)
        dim += taken
    return found


def _with_weights(
    function: Callable[..., Any], descent: Descent, weight: Tensor, own: Descent, out: Tensor
) -> Descent:
    """Return the descent of what weights were added to, or multiplied with, value by value."""
    if descent.producers:  # else nobody knows what makes them, and a bias does not tell
        descent = descent._replace(producers=joined(descent.producers, _beside(own)))
    if own.members is not None:
        return _with_members(descent, own.members, out)
    axes = descent.axes or ()
    if own.mixed:
        rows = [axis for axis in _spanned(weight, out) if axis not in axes]
        return descent._replace(mixed=True) if rows else descent
    places = [] if own.unsure or descent.sizes else _places_beside(weight, out, axes)
    if places and function in FACTORS and places[-1] < axes[0]:
        return descent._replace(axes=(*places, *axes), unsure=places != [0])
    # What is added at positions makes no other units; the first axis has none but in ensembles.
    return descent._replace(unsure=True) if 0 in places else descent


def _places_beside(weight: Tensor, out: Tensor, axes: Axes) -> list[int]:
    """Return the axes beside the units' along which weights have others at each place.

    The places may be the members of an ensemble, or positions.
    """
    own = _spanned(weight, out)
    return [axis for axis in own if axis not in axes] if {*axes} <= {*own} else []


def _spanned(weight: Tensor, out: Tensor) -> list[int]:
    """Return the axes of a result along which weights are not the same at every place."""
    shift = out.ndim - weight.ndim
    return [
        axis
        for axis in range(max(0, shift), out.ndim)
        if weight.shape[axis - shift] == out.shape[axis] > 1 and weight.stride(axis - shift) > 0
    ]


def _is_tiled(source: Tensor, out: Tensor) -> bool:
    """Tell whether weights are repeated along an axis that they have, each or one after another."""
    sizes = zip(source.shape[::-1], out.shape[::-1], strict=False)
    return any(1 < before < now for before, now in sizes)


def _copied(source: Tensor, known: Descent, out: Tensor) -> Descent:
    """Return the descent of weights that were expanded, and now have copies in their place.

    Where these stand among others, each sample has the scale of its member, say.
    """
    copied = {axis for axis in range(source.ndim) if source.shape[axis] > 1 > source.stride(axis)}
    if not copied or not all(out.stride(axis) for axis in range(out.ndim) if out.shape[axis] > 1):
        return known
    groups = groups_of(tuple(source.shape), tuple(out.shape))
    tiled = source.numel() == out.numel() and any(
        copied & {*group} and any(source.shape[axis] > 1 for axis in {*group} - copied)
        for group in groups or [list(range(source.ndim))]
    )
    return known._replace(mixed=known.mixed or tiled, unsure=True)


def _brought(weight: Tensor, source: Tensor, out: Tensor) -> list[int]:
    """Return the axes that only a factor has: ``h[..., None] * w`` makes products, to be summed."""
    if out.shape == source.shape:
        return []
    return [
        axis % out.ndim
        for axis in range(-1, -1 - min(weight.ndim, source.ndim), -1)
        if weight.shape[axis] == out.shape[axis] > source.shape[axis]
    ]


def _choice(function: Callable[..., Any], args: Args, kwargs: Kwargs) -> tuple[int, Any]:
    """Return along which axis a part is chosen, and which part: as an index, or a tuple of them."""
    if function not in _SELECTS and function not in _NARROWS:
        return 0, args[1]
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    if function in _SELECTS:
        given = [*args[2:], *(value for key, value in kwargs.items() if key != "dim")]
        return dim % args[0].ndim, given[0]
    start = args[2] if len(args) > 2 else kwargs["start"]
    length = args[3] if len(args) > 3 else kwargs["length"]
    return dim % args[0].ndim, slice(start, start + length)


def _part_of_weights(dim: int, index: Any, shape: torch.Size) -> str | None:
    """Say which part of weights an index chooses, "" for all, None if that cannot be said."""
    words: list[str] = ["all"] * dim
    axis = dim
    for item in items_of(index, len(shape)):
        if item is None:
            continue
        word = _word_for(item, shape[axis], end=str(shape[axis]))
        if word is None:
            return None
        words.append(word)
        axis += 1
    while words and words[-1] == "all":
        words.pop()
    return ".".join(words)


def _bounds(item: slice, size: int) -> tuple[int, int]:
    """Return start and stop of a slice, counted from the front; by hand, for Dynamo."""
    start = 0 if item.start is None else item.start
    stop = size if item.stop is None else item.stop
    start, stop = (bound + size if bound < 0 else bound for bound in (start, stop))
    return min(max(start, 0), size), min(max(stop, 0), size)


def _part(
    function: Callable[..., Any],
    known: Descent,
    source: Tensor,
    args: Args,
    kwargs: Kwargs,
    piece: Piece,
) -> str:
    """Say which part of the units was taken: along which of their axes, if there are several."""
    axes = known.axes or ()
    if piece is not None:
        dim = (axis_of(function, args, kwargs) or 0) % source.ndim
        before = [axis for axis in axes if axis < dim and not known.sizes]
        return ".".join([*["all"] * len(before), _word_for(piece, source.shape[dim]) or "some"])
    if known.sizes:
        return "some"
    words = ["all"] * len(axes)
    dim, index = _choice(function, args, kwargs)
    for item in items_of(index, source.ndim):
        if dim in axes and item is not None:
            words[axes.index(dim)] = _word_for(item, source.shape[dim]) or "some"
        dim += consumes(item)
    while words and words[-1] == "all":
        words.pop()
    return ".".join(words) or "some"


def _word_for(item: Any, size: int, end: str = "") -> str | None:
    """Say which places an item of an index takes of an axis, ``end`` for up to the last one."""
    if isinstance(item, int) and not isinstance(item, bool):
        return str(item % size)
    if not isinstance(item, slice):
        return None
    start, stop = _bounds(item, size)
    step = "" if item.step in (None, 1) else f"_{item.step}"
    if start == 0 and stop == size and not step:
        return "all"
    return f"{start}_{end if stop == size else stop}{step}"
