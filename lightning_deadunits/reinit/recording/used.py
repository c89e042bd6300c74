"""Which parameters a recorded pass has used on data, and which of their elements.

Heads may be stacked in one parameter, or cut from it: a pass that has used one of them says
nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.lineage.ways import plain_name
from lightning_deadunits.reinit.parameters import storage_of
from lightning_deadunits.reinit.recording.functions import CUTS, VIEWS, name_of
from lightning_deadunits.reinit.recording.tape import Call, Ref, Tape, leaves_of, mapped

Elements = Tensor | None
"""Elements of a parameter, bool of shape ``(numel,)`` in host memory; None for all of them."""

Used = dict[nn.Parameter, Elements]

_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone"}


_ADDITIONS = {"add", "iadd", "radd"}


class _Weights(NamedTuple):
    """What is computed from parameters alone; by which views, if it is a part of a single one."""

    used: Used
    views: tuple[tuple[Call, int], ...] | None


def used_parameters(tape: Tape) -> Used:
    """Return the parameters that a pass has used on data, and which elements of them.

    Not those that were only copied, measured or averaged, as other callbacks do with all of them:
    calls on parameters alone, or, in training, without gradients.
    """
    used: Used = {}
    added: Used = {}
    weights = {index: _Weights({p: None}, ()) for index, p in tape.parameters.items()}
    for call in tape.calls:
        among = [weights[index] for index in call.given if index in weights]
        if not among:
            continue
        if len(among) == len(call.given) or _moves_alone(tape, call, weights):
            for place, index in enumerate(call.outs):
                if index is not None:
                    weights[index] = _made(tape, call, place, among)
        elif (call.gradients or not tape.training) and not call.empty:
            for each in among:
                add_used(added if plain_name(call.function) in _ADDITIONS else used, each.used)
    for parameter, own in added.items():
        # What is only added reads nothing: of positions, those of longer sequences neither.
        add_used(used, {parameter: own if parameter in used else None})
    return used


def _moves_alone(tape: Tape, call: Call, weights: Mapping[int, _Weights]) -> bool:
    """Tell whether data only say which part of weights is meant, or of what type or shape.

    As in ``w[task]`` and ``w.type_as(x)``.
    """
    name, (first, *others) = name_of(call.function), call.given
    if first not in weights or not weights.keys().isdisjoint(others):
        return False
    if name == "__getitem__":
        return all(index in tape.numbers for index in others)
    return name == "to" or name.endswith("_as")


def _made(tape: Tape, call: Call, place: int, among: list[_Weights]) -> _Weights:
    """Return what a call on parameters alone returns."""
    source, name = among[0], name_of(call.function)
    if len(among) > 1 or source.views is None or name not in CUTS | VIEWS | _CASTS:
        used: Used = {}
        for each in among:
            add_used(used, each.used)
        return _Weights(used, None)
    views = (*source.views, (call, place))
    if name not in CUTS:
        return _Weights(source.used, views)
    (parameter,) = source.used
    return _Weights({parameter: _shown(parameter, views, tape)}, views)


def _shown(parameter: nn.Parameter, views: Iterable[tuple[Call, int]], tape: Tape) -> Elements:
    """Return the elements that are left after some views, None for all, or if that is not told."""
    mask = torch.zeros_like(parameter, dtype=torch.bool, device="cpu", requires_grad=False)
    part = mask
    with torch.no_grad():
        for call, place in views:
            if name_of(call.function) in _CASTS:
                continue
            source = call.given[0]

            def filled(leaf: object, part: Tensor = part, source: int = source) -> object:
                if not isinstance(leaf, Ref):
                    return leaf
                return part if leaf.index == source else tape.numbers[leaf.index]

            made = call.function(*mapped(call.args, filled), **mapped(call.kwargs, filled))
            part = leaves_of(made)[place]
    if storage_of(part) != storage_of(mask):
        return None  # a copy
    part.fill_(True)
    return None if bool(mask.all()) else mask.flatten()


def shows_more(tape: Tape, than: Tape) -> bool:
    """Tell whether a pass ran modules, or used parameters, that another one did not."""
    known = used_parameters(than)
    return bool(tape.modules - than.modules) or any(
        not has_used(known, parameter, own) for parameter, own in used_parameters(tape).items()
    )


def has_used(used: Mapping[nn.Parameter, Elements], parameter: nn.Parameter, own: Elements) -> bool:
    """Tell whether some elements are among those that were used."""
    if parameter not in used:
        return own is not None and not own.any()
    known = used[parameter]
    return known is None or (own is not None and not bool((own & ~known).any()))


def both(own: Elements, others: Elements) -> Elements:
    """Return the elements of either."""
    if own is None or others is None:
        return None
    either = own | others
    return None if bool(either.all()) else either


def add_used(used: Used, more: Mapping[nn.Parameter, Elements]) -> None:
    """Add elements to those that were used."""
    for parameter, own in more.items():
        used[parameter] = both(used[parameter], own) if parameter in used else own
