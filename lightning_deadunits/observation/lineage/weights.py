"""What is computed from weights alone: views, rows, sums and norms of them make what these make."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadunits.observation.identity import (
    Descent,
    Members,
    Producer,
    joined,
    negated,
    part_of,
)
from lightning_deadunits.observation.lineage.axes import KnownAxes
from lightning_deadunits.observation.lineage.axis_rules import groups_of, is_odd
from lightning_deadunits.observation.lineage.call import Invocation, Operand, Rule
from lightning_deadunits.observation.lineage.moves import PERMUTATIONS
from lightning_deadunits.observation.lineage.parts import (
    SELECTS,
    choice_of,
    is_all,
    part_of_weights,
)
from lightning_deadunits.observation.lineage.ways import (
    CHOICES,
    JOINS,
    PIECES,
    REPEATS,
    axis_of,
    negated_by,
    turned,
)


def of_weights(weights: list[Descent]) -> Descent:
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


def follow_weights(
    known: KnownAxes, call: Invocation, rule: Rule, weights: list[Operand], *, unknown: bool
) -> Descent | None:
    """Return the descent of what a call computes from weights, None if nothing is known of it.

    Args:
        known: What is known of tensors.
        call: The call.
        rule: What its function does.
        weights: Those of its arguments that are weights.
        unknown: Whether it was given others, of which nothing is known.
    """
    function, args, kwargs, out = call.function, call.args, call.kwargs, call.out
    if function in REPEATS:
        source, own = weights[0]
        return own._replace(mixed=True) if _is_tiled(source, out) else None
    if function not in JOINS:
        weights = [Operand(weight, _copied(weight, own, out)) for weight, own in weights]
    source, own = weights[0]
    piece = call.piece
    if function in CHOICES and args and source is args[0]:
        dim, index = choice_of(call)
        if isinstance(index, tuple) and all(is_all(item) for item in index[1:]):
            index = index[0]
        if isinstance(index, Tensor) and index.ndim and not index.is_floating_point():
            return _gathered(call, source, own, dim, index)
        if isinstance(index, Tensor):
            piece = known.row(source, out)
        elif isinstance(index, list):
            chosen = known.chosen_by([(index, source.shape[dim])])
            piece = chosen and chosen[0]
        else:
            piece = part_of_weights(dim, index, source.shape)
        if piece is None:
            return None
    elif unknown and not any(tensor.shape == out.shape for tensor, _ in weights):
        return None  # data and a parameter: a position embedding, say
    elif function in PIECES and isinstance(piece, (int, slice)):
        piece = part_of_weights(axis_of(function, args, kwargs) or 0, piece, source.shape)
    if function is torch.stack and (stacked := _rows_stacked(call, weights)) is not None:
        return stacked
    if function in JOINS and len(weights) > 1:
        weights = _in_order(weights)
    descent = of_weights([own for _, own in weights])
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
    return descent


def _gathered(
    call: Invocation, source: Tensor, own: Descent, dim: int, index: Tensor
) -> Descent | None:
    """Return the descent of weights that were gathered: each row has those of one member."""
    if dim:  # of what the weights read, a part
        return own
    if source.ndim <= 2 or index.dtype == torch.bool:
        return None
    # An index from the end is one; a router's -1, given elsewhere, is none.
    rows = index if call.function in SELECTS else index.remainder(source.shape[0])
    names = tuple([producer.name for producer in own.producers])
    apart = len(names) == source.shape[0] > 1  # a stack of as many tensors
    chosen = Members(source.shape[0], rows, ends=False, names=names, apart=apart)
    return own._replace(members=chosen)


def _rows_stacked(call: Invocation, weights: list[Operand]) -> Descent | None:
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
    if len(call.args) > 1 or len(rows) == len(distinct) or not alone:
        return None
    if len(rows) < len(call.args[0]):
        return None
    joint = of_weights([own for _, own in weights])
    names = tuple([producers[0].name for producers in distinct])
    which = torch.tensor(rows, device=weights[0].tensor.device)
    return joint._replace(
        members=Members(len(distinct), which, ends=False, names=names, apart=True)
    )


def _in_order(weights: list[Operand]) -> list[Operand]:
    """Have weights that stand in another order than the model's tell their places."""
    first = [own.producers[0] for _, own in weights if own.producers]
    places = [(producer.order, producer.name) for producer in first]
    if places == sorted(places):
        return weights
    return [
        Operand(tensor, own._replace(producers=part_of(own.producers, f"place{place}")))
        for place, (tensor, own) in enumerate(weights)
    ]


def _is_tiled(source: Tensor, out: Tensor) -> bool:
    """Tell whether weights are repeated along an axis that they have, each or one after another."""
    sizes = zip(source.shape[::-1], out.shape[::-1], strict=False)
    return any(1 < before < now for before, now in sizes)  # else they are the same units again


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
