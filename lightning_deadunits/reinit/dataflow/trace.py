"""What tracing finds: the weights that make a unit and those that read it, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.ops import Channel, Where
from lightning_deadunits.reinit.weight_slice import WeightSlice

Role = Literal["weight", "bias", "scale", "shift"]


@dataclass(frozen=True, eq=False)
class Part:
    """The weights of one call that belong to one unit.

    Attributes:
        index: The call.
        channel: Channel of what the call makes (or reads) that is the unit's.
        role: What they do there.
        weights: The weights.
        view: The tensor that the call was given, of which they are a part.
    """

    index: int
    channel: int
    role: Role
    weights: WeightSlice
    view: Tensor


@dataclass(eq=False)
class UnitTrace:
    """All weights that touch a unit.

    Attributes:
        makes: Those that make it.
        reads: Those that read it.
        statistics: Norms whose running statistics of a channel are those of the unit, and the
            channel that each of them normalises.
        shares: Channels that it has together with other units: they are a coupled group, and all of
            them are revived, or none.
        fixed: The same of norms that are frozen, and go by their statistics in training, too.
        left: Why some of what makes it is left as it is, None if nothing is. Whether the rest is
            enough shows on the example: the unit must fire, or it is refused with this reason.
    """

    makes: list[Part] = field(default_factory=list)
    reads: list[Part] = field(default_factory=list)
    statistics: dict[Channel, Channel] = field(default_factory=dict)
    shares: set[tuple[str, Channel]] = field(default_factory=set)
    fixed: dict[Channel, Channel] = field(default_factory=dict)
    left: str | None = None


@dataclass(eq=False)
class Trace:
    """What tracing found.

    Attributes:
        units: The units that can be re-initialised, with their weights.
        refused: The others, with the reason.
        lost: What refused units share with others, which must be refused with them.
    """

    units: dict[UnitKey, UnitTrace]
    refused: dict[UnitKey, str]
    lost: dict[UnitKey, UnitTrace] = field(default_factory=dict)


def making_parts(passes: Passes, maker: Channel) -> list[Part]:
    """Return the weights that make a channel of what a contraction, norm or factor returns."""
    index, channel = maker
    operation = passes.recorded.calls[index].operation
    if operation.kind == "link":
        return link_parts(passes, maker)
    norm = operation.kind == "norm"
    weight, bias = operation.weight, operation.bias
    return [
        *_parts(passes, maker, "scale" if norm else "weight", weight, operation.makes(channel)),
        *_parts(passes, maker, "shift" if norm else "bias", bias, operation.biases(channel)),
    ]


def link_parts(passes: Passes, link: Channel) -> list[Part]:
    """Return what is added to a channel on its way, or multiplied with it."""
    operation = passes.recorded.calls[link[0]].operation
    where = operation.makes(link[1])
    role: Role = "scale" if operation.scales else "shift"
    # One number for all channels belongs to none of them.
    return _parts(passes, link, role, operation.weight, where) if where else []


def reading_parts(passes: Passes, reader: Channel) -> list[Part]:
    """Return the weights that a channel is read with."""
    operation = passes.recorded.calls[reader[0]].operation
    where = operation.reads(reader[1])
    if operation.kind != "norm":
        return _parts(passes, reader, "weight", operation.weight, where)
    return [
        *_parts(passes, reader, "scale", operation.weight, where),
        *_parts(passes, reader, "shift", operation.bias, where),
    ]


def _parts(
    passes: Passes, of: Channel, role: Role, view: Tensor | None, where: Where
) -> list[Part]:
    """Return the part of a parameter; none of what is no parameter, as a frozen norm's buffers."""
    if view is None or passes.parameters.owner(view) is None:
        return []
    return [Part(*of, role, passes.parameters.part(view, where), view)]
