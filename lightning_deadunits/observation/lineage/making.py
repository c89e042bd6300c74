"""What weights make: products, convolutions, norms, whose units are those of their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadunits.observation.identity import Descent, Producer, across, added, joined
from lightning_deadunits.observation.lineage.axes import Axes, Folded, KnownAxes
from lightning_deadunits.observation.lineage.axis_rules import groups_of, spread_over
from lightning_deadunits.observation.lineage.beside import beside
from lightning_deadunits.observation.lineage.call import Invocation, tensors_in
from lightning_deadunits.observation.lineage.joining import together
from lightning_deadunits.observation.lineage.producers import Maker, summed_axes
from lightning_deadunits.observation.lineage.weights import of_weights


def made_by(known: KnownAxes, maker: Maker, call: Invocation) -> Descent | None:
    """Return the descent of what a function makes by weights, None if it makes nothing here."""
    args, kwargs, out = call.args, call.kwargs, call.out
    kept = None if maker.kept is None else maker.kept(known, args, kwargs, out)
    found = maker.axes(known, args, kwargs, out) if kept is None else kept
    if found is None:
        return None
    units = found if isinstance(found, Folded) else Folded((), found)
    given = maker.weights(args, kwargs)
    operands = [own for own in (known.descent(tensor) for tensor in given) if own is not None]
    weights = [own for own in operands if own.weight and kept is None]
    if maker.weighs_first and given and not _may_be_weight(known, given[0]):
        weights = []  # a bias alone makes nothing
    if maker.mixes and weights and len(weights) == len(list(tensors_in(args, kwargs))):
        return of_weights(weights)  # such as LoRA's product of two parameters
    producers = weights[0].producers if weights else ()
    if weights and weights[0].turned != maker.columns(known, args, kwargs):
        producers = across(producers)
    for own in weights[1:]:
        if own.producers != weights[0].producers:  # its module's own bias is no other producer
            producers = joined(producers, beside(own))
    if not maker.mixes:
        return _normalised(known, call, units.axes, producers)
    if not weights:
        by_data = _made_by_data(known, maker, call, units, operands, is_kept=kept is not None)
        if not isinstance(by_data, Folded):
            return by_data
        units = by_data
    made = _of_units(maker, call, units, weights, producers)
    return _plus_addend(known, maker, call, made)


def _of_units(
    maker: Maker,
    call: Invocation,
    units: Folded,
    weights: list[Descent],
    producers: tuple[Producer, ...],
) -> Descent:
    levels: tuple[int, ...] = ()
    for own in weights:
        levels = joined(levels, own.levels)
    members = next((own.members for own in weights if own.members is not None), None)
    if maker.grouped is not None and members is None:
        members = maker.grouped(call.args, call.kwargs)
        if members is not None and weights:
            names = tuple([own.name for own in weights[0].producers])
            members = members._replace(names=names)
    return Descent(
        *(units.axes, producers, (), ([],)),
        members=members,
        levels=levels,
        mixed=any(own.mixed for own in weights) and bool(maker.kept),
        sizes=units.sizes,
    )


def _plus_addend(known: KnownAxes, maker: Maker, call: Invocation, made: Descent) -> Descent:
    """Return the descent of what is made once something is added, as in ``h + x @ w``."""
    addend = None if maker.addend is None else maker.addend(call.args, call.kwargs)
    own = known.descent(addend) if isinstance(addend, Tensor) else None
    if own is None or own.weight or not own.axes or own.sizes or made.sizes:
        return made
    both = together([own, made], made.axes or ())
    return both._replace(way=joined(both.way, ("add",)), calls=([],))


def _made_by_data(
    known: KnownAxes,
    maker: Maker,
    call: Invocation,
    units: Folded,
    operands: list[Descent],
    *,
    is_kept: bool,
) -> Descent | Folded | None:
    """Return the descent of what is made without weights; the axes alone if nobody knows by what.

    By weights that are computed from data (a hypernetwork), or by two activations.
    """
    given = maker.weights(call.args, call.kwargs)
    carriers = [own for own in operands if own.axes]
    if is_kept:
        source = next(own for own in given if known.axes(own))
        is_sum = carriers[0].stacked in summed_axes(call.args, call.kwargs, source)
        return _rows_mixed(carriers[0], units.axes, is_sum=is_sum)
    if maker.spatial and given:
        folded = _by_sample(given[0], known.descent(given[0]), call.out)
        if folded is not None:
            units = folded
        elif _is_grouped(call) or _is_folded(known, given[0]):
            return Descent(None, ())  # samples may be folded into the channels
    if len(carriers) > 1:
        both = added(carriers, units.axes)
        return both._replace(activated=False, calls=([],), sizes=units.sizes)
    if carriers and maker.by_data(known, call.args, call.kwargs, call.out):
        way = ("matmul",) if carriers[0].activated else ()
        return Descent(units.axes, carriers[0].producers, way, ([],), sizes=units.sizes)
    return units


def _normalised(
    known: KnownAxes, call: Invocation, axes: Axes, producers: tuple[Producer, ...]
) -> Descent:
    """Return the descent of what a norm returns: its scale and shift join what makes the units."""
    source = known.descent(call.args[0] if call.args else call.kwargs["input"])
    given = [known.descent(tensor) for tensor in tensors_in(call.args, call.kwargs)]
    weights = [own for own in given if own is not None and own.weight]
    if len(weights) == len(given):
        return of_weights(weights)  # weights that are standardised
    if source is None or source.weight:
        return Descent(axes, producers, (), ([],))
    if not source.producers:
        producers = ()  # nobody knows what makes them, and a norm does not tell
    if source.sizes:
        units = Folded(source.sizes, source.axes or ())
        if producers:
            units = spread_over(units, tuple(call.out.shape), axes)
        source, axes = source._replace(sizes=units.sizes), units.axes
    if not producers:  # no scale and shift of its own
        return source._replace(axes=axes, activated=False)
    if source.summed or source.mixed:
        return Descent(axes, producers, (), ([],), sizes=source.sizes)
    return source._replace(
        axes=axes,
        producers=joined(source.producers, producers),
        activated=False,
        flaw="",  # scale and shift make the rest of the units, too
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


def _may_be_weight(known: KnownAxes, tensor: Tensor) -> bool:
    """Tell whether a factor may be weights: of those that are computed, a graph shows none."""
    own = known.descent(tensor)
    return torch.compiler.is_compiling() if own is None else own.weight


def _is_folded(known: KnownAxes, weight: Tensor) -> bool:
    """Tell whether weights that data made have units and samples on one axis."""
    own = known.descent(weight)
    return own is not None and not own.weight and bool(own.sizes)


def _is_grouped(call: Invocation) -> bool:
    """Tell whether each group of channels is convolved by itself."""
    source, weight, *_ = tensors_in(call.args, call.kwargs)
    return weight.ndim > 2 and source.shape[2 - weight.ndim - 1] not in weight.shape[:2]


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
