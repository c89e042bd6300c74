"""What tracing finds: the weights that touch a unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.session import UnitKey
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
        ties: What it shares with other units, which must share its fate.
        fixed: The same of norms that are frozen, and go by their statistics in training, too.
        left: Why some of what makes it is left as it is, None if nothing is. Whether the rest is
            enough shows on the example: the unit must fire, or it is refused with this reason.
    """

    makes: list[Part] = field(default_factory=list)
    reads: list[Part] = field(default_factory=list)
    statistics: dict[Channel, Channel] = field(default_factory=dict)
    ties: set[tuple[str, Channel]] = field(default_factory=set)
    fixed: dict[Channel, Channel] = field(default_factory=dict)
    left: str | None = None


@dataclass(eq=False)
class Trace:
    """What tracing found.

    Attributes:
        units: The units that can be re-initialised, with their weights.
        refused: The others, with the reason.
    """

    units: dict[UnitKey, UnitTrace]
    refused: dict[UnitKey, str]
