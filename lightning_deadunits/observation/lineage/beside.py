"""Weights that join what others make, value by value: shifts, scales, masks, positions, members."""

from __future__ import annotations

from torch import Tensor

from lightning_deadunits.observation.identity import Descent, Members, Producer, joined
from lightning_deadunits.observation.lineage.axes import Axes
from lightning_deadunits.observation.lineage.call import Invocation, Operand
from lightning_deadunits.observation.lineage.ways import FACTORS


def beside(weights: Descent) -> tuple[Producer, ...]:
    """Return producers that join what others make, value by value."""
    return tuple([own._replace(joined=True) for own in weights.producers])


def with_weights(call: Invocation, descent: Descent, weights: Operand) -> Descent:
    """Return the descent of what weights were added to, or multiplied with, value by value."""
    (weight, own), out = weights, call.out
    if descent.producers:  # else nobody knows what makes them, and a bias does not tell
        descent = descent._replace(producers=joined(descent.producers, beside(own)))
    if own.members is not None:
        return _with_members(descent, own.members, out)
    axes = descent.axes or ()
    if own.mixed:
        rows = [axis for axis in _spanned(weight, out) if axis not in axes]
        return descent._replace(mixed=True) if rows else descent
    places = [] if own.unsure or descent.sizes else _places_beside(weight, out, axes)
    if places and call.function in FACTORS and places[-1] < axes[0]:
        return descent._replace(axes=(*places, *axes), unsure=places != [0])
    # What is added at positions makes no other units; the first axis has none but in ensembles.
    return descent._replace(unsure=True) if 0 in places else descent


def brought_axes(weight: Tensor, source: Tensor, out: Tensor) -> list[int]:
    """Return the axes that only a factor has: ``h[..., None] * w`` makes products, to be summed."""
    if out.shape == source.shape:
        return []
    return [
        axis % out.ndim
        for axis in range(-1, -1 - min(weight.ndim, source.ndim), -1)
        if weight.shape[axis] == out.shape[axis] > source.shape[axis]
    ]


def _with_members(descent: Descent, members: Members, out: Tensor) -> Descent:
    """Return the descent of what weights of each row's own were added to, or multiplied with."""
    if descent.members is None and out.shape[: members.rows.ndim] == members.rows.shape:
        return descent._replace(members=members)
    both = None if descent.members is None else descent.members.joined_with(members)
    return descent._replace(members=both, mixed=descent.mixed or both is None)


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
