"""Units that a call carries along: where they are in its result, and what was done to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.identity import REPEATED, Descent, joined, part_of
from lightning_deadunits.observation.lineage.axes import Folded, KnownAxes
from lightning_deadunits.observation.lineage.axis_rules import (
    carried,
    reduce,
    reorders,
    reshape,
    spread_over,
)
from lightning_deadunits.observation.lineage.beside import brought_axes, with_weights
from lightning_deadunits.observation.lineage.call import (
    Invocation,
    Operand,
    Operands,
    Rule,
    units_of,
)
from lightning_deadunits.observation.lineage.gates import COMPARISONS, gate_after
from lightning_deadunits.observation.lineage.joining import (
    flaw_of,
    in_order,
    is_partial,
    joining,
    like,
    mixes_rows,
    rows_beside,
    spread_axes,
    still_stacked,
    together,
)
from lightning_deadunits.observation.lineage.joints import (
    cut_out,
    joint_after,
    joint_of,
    laid_out,
    padded,
)
from lightning_deadunits.observation.lineage.moves import MOVES, PERMUTATIONS
from lightning_deadunits.observation.lineage.parts import is_list, part_of_units, places_chosen
from lightning_deadunits.observation.lineage.ways import (
    CHOICES,
    FACTORS,
    JOINS,
    PIECES,
    ROW_ADDITIONS,
    SCRAMBLES,
    plain_name,
    turned,
)

_KEEP_ROWS = {function for function, move in MOVES.items() if move is reshape} | {
    *(torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.split_with_sizes),
    *(Tensor.__getitem__, Tensor.select, torch.select, Tensor.narrow, torch.narrow),
}
"""Moves that leave the first axes as they are, if their sizes stay."""


_ONE_WAY = {"div", "rdiv", "pow", "remainder"}
"""Words for what is another thing with its two operands exchanged."""


def carry(known: KnownAxes, call: Invocation, rule: Rule, operands: Operands) -> Descent | None:
    """Return the descent of a result that takes after one of its arguments; None if it does not.

    Args:
        known: What is known of tensors.
        call: The call.
        rule: What its function does to units.
        operands: What it was given, some of it data.
    """
    source, own = operand = like(operands.data, call.out)
    units = _units_after(call, rule, operands, operand)
    if units is None:
        return None
    chosen = joining(operands.data)
    descent = _joined(call, rule, operands, chosen, units)
    alone = len(chosen) == 1 and not operands.unknown and not operands.weights
    if not alone and mixes_rows(known, call, operands.given, chosen, operand, units.axes):
        descent = rows_beside(call, descent, operands.given)
    elif own.stacked is not None:
        descent = still_stacked(call, rule, descent, own.stacked, source)
    flaw = "" if units.sizes else flaw_of(call, operands.given, operand, units.axes)
    if flaw:
        descent = descent._replace(flaw=flaw)
    if operands.weights and not rule.moves and call.function not in COMPARISONS:
        descent = with_weights(call, descent, operands.weights[0])
    descent = _worded(call, rule, descent, operands.data, operand)
    if rule.moves and call.function not in JOINS:
        descent = _moved(known, call, descent, operand)
    descent = _with_joint(call, rule, operands, operand, descent)
    if descent.members is not None and call.function in SCRAMBLES:
        descent = descent._replace(members=None, mixed=True)
    if call.function in ROW_ADDITIONS and is_partial(known, call.args[0]):
        descent = descent._replace(partial=True)
    gate = gate_after(call.function, own.gate, len(call.args) > 0 and source is call.args[0])
    return descent if gate == descent.gate else descent._replace(gate=gate)


def _units_after(
    call: Invocation, rule: Rule, operands: Operands, operand: Operand
) -> Folded | None:
    """Return the unit axes of a result, None if nothing is known of them."""
    (source, own), out = operand, call.out
    if own.axes is None:
        return None
    units = carried(rule.move, Folded(own.sizes, own.axes), source, call.args, call.kwargs, out)
    if units is None or rule.moves:
        return units
    weights = operands.weights
    if units.sizes:
        if not weights:
            return units
        weight = weights[0].tensor
        last = range(-1, -1 - min(weight.ndim, out.ndim), -1)
        touched = [axis % out.ndim for axis in last if weight.shape[axis] > 1]
        units = spread_over(units, tuple(out.shape), touched)
    if units.sizes:
        return units
    axes = spread_axes(units.axes, operands.data, source, out)
    if weights and call.function in FACTORS:
        axes = tuple(sorted((*axes, *brought_axes(weights[0].tensor, source, out))))
    return Folded((), axes)


def _joined(
    call: Invocation, rule: Rule, operands: Operands, chosen: list[Descent], units: Folded
) -> Descent:
    """Return the descent of what comes together, of one tensor or of several."""
    several = len(chosen) > 1
    descent = together(chosen, units.axes) if several else chosen[0]._replace(axes=units.axes)
    if descent.sizes != units.sizes:
        descent = descent._replace(sizes=units.sizes)
    if len(operands.data) > 1 and not rule.moves and descent.calls:
        descent = descent._replace(calls=([],))  # a sum has values of its own
    return in_order(descent, operands.given) if call.function in JOINS else descent


def _with_joint(
    call: Invocation, rule: Rule, operands: Operands, operand: Operand, descent: Descent
) -> Descent:
    """Return a descent with what is known of parts that were joined, or that are cut out now."""
    if call.function in JOINS:
        return descent._replace(joint=joint_of(call, operands.given))
    if call.function is F.pad and descent.flaw:
        return descent._replace(joint=padded(call, operand, descent.axes or ()))
    others = len(operands.data) > 1 or bool(operands.weights) or operands.unknown
    if operand.descent.joint is None or others:
        return descent if descent.joint is None else descent._replace(joint=None)
    if operands.negates or descent.way != operand.descent.way:
        return descent._replace(joint=None)
    if call.function in PIECES or call.function in CHOICES:
        part = cut_out(call, rule, descent, operand)
        if part is not None:
            return part
    if rule.move is reshape and (units := laid_out(call, descent, operand)) is not None:
        return units
    return descent._replace(joint=joint_after(call, rule, operand, descent))


def _worded(
    call: Invocation, rule: Rule, descent: Descent, data: list[Operand], operand: Operand
) -> Descent:
    """Return a descent with the word for what was done to the units on its way."""
    (source, own), function, word = operand, call.function, rule.way
    if rule.move in PERMUTATIONS and len(descent.axes or ()) > 1 and not own.sizes:
        axes = own.axes or ()
        if reorders(rule.move, axes, source, call.args, call.kwargs, call.out):
            word = _permuted([source.shape[axis] for axis in axes], descent.way)
    elif rule.move is reduce and descent.axes and not own.sizes:
        word = _reduced(call, rule, operand)
    elif word == "permute":
        groups = call.args[1] if len(call.args) > 1 else call.kwargs["groups"]
        word = _permuted([groups, units_of(source, own) // groups], descent.way)
    elif word == "roll":
        word = turned(function, call.args, call.kwargs, own.axes)
    elif word in _ONE_WAY and len(data) == 2 and _is_turned(*data):
        word += "1_0"
    if not word:
        return descent
    descent = descent._replace(way=joined(descent.way, (word,)))
    if rule.way == "roll" and descent.members is not None:
        descent = descent._replace(members=None, mixed=True)
    return descent


def _is_turned(one: Operand, other: Operand) -> bool:
    """Tell whether what comes first in the model is the second of two operands."""
    first, second = one.descent.producers, other.descent.producers
    return bool(first and second) and first[0][1:4] > second[0][1:4]


def _reduced(call: Invocation, rule: Rule, operand: Operand) -> str:
    """Return the word for a reduction over some axes of the units, "" for one over others.

    The greatest of each pair is not the least of it, nor the greatest of other pairs.
    """
    source, axes = operand.tensor, operand.descent.axes or ()
    gone = [not rule.move((axis,), source, call.args, call.kwargs, call.out) for axis in axes]
    if not any(gone):
        return ""
    sizes = [f"{'x' * lost}{source.shape[axis]}" for axis, lost in zip(axes, gone, strict=True)]
    return f"{plain_name(call.function)}{'_'.join(sizes)}"


def _permuted(sizes: list[int], way: tuple[str, ...]) -> str:
    """Return the word for units that were shuffled: twice is not once."""
    word = f"permute{'_'.join([str(size) for size in sizes])}"
    while word in way:
        word += "_again"
    return word


def _moved(known: KnownAxes, call: Invocation, descent: Descent, operand: Operand) -> Descent:
    """Return a descent whose tensor was cut or moved: a part of the units, or of the samples."""
    (source, own), function, args = operand, call.function, call.args
    if function in CHOICES:
        places = places_chosen(call, () if descent.sizes else own.axes)
        chosen = known.chosen_by(places) if places else None
        call = call._replace(piece=chosen and chosen[0])
        if places and chosen is None:
            descent = descent._replace(mixed=True)  # in a graph: which is not known
        elif chosen is not None and chosen[1]:
            descent = descent._replace(flaw=REPEATED)
    if descent.members is not None:
        rows = descent.members.rows.ndim
        keeps = function in _KEEP_ROWS and not (len(args) > 1 and is_list(args[1]))
        if not keeps or call.out.shape[:rows] != source.shape[:rows]:
            descent = descent._replace(members=None, mixed=True)
    if function not in PIECES and function not in CHOICES:
        return descent
    taken = call.piece is not None and function in CHOICES
    if taken or units_of(call.out, descent) < units_of(source, own):
        part = str(call.piece) if taken else part_of_units(call, own, source)
        return descent._replace(producers=part_of(descent.producers, part))
    if call.out.numel() < source.numel():
        # Other samples or positions of the same units: what is activated of these from now on
        # says nothing of the others.
        return descent._replace(calls=tuple([list(calls) for calls in descent.calls]))
    return descent
