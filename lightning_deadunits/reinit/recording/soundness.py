"""Whether a recording says all that the pass did; what it does not, refuses units with a reason.

Two things tell. While recording, what no call shows is noted as an obstacle: units that ran before
it may have flowed into it, and are refused; units that ran later cannot have. And a replay without
any change must compute what the pass did: a sample of every activation and every single number is
kept while recording, and compared with a replay as long as the weights are those of the pass, that
is before an optimizer steps, and at the end. What was made with weights that an optimizer has
stepped since is not compared: a replay has the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.parameters import storage_of
from lightning_deadunits.reinit.recording.replay import Visitor, replay
from lightning_deadunits.reinit.recording.tape import Call, Obstacle, SiteCall, Tape, tensors_of

_SAMPLE = 64

UnitKey = tuple[str, int]


class Samples(Visitor):
    """Samples of what a pass computes, by their place on the tape; compares them with a replay."""

    def __init__(self) -> None:
        self._values: dict[int, Tensor] = {}
        self._moved: dict[int, int] = {}
        self._outdated: set[int | None] = set()
        self._problem: str | None = None

    def move(self, position: int, weights: Iterable[Tensor]) -> None:
        """Take note that weights are stepped, and how many entries of the tape came before."""
        keys = (storage_of(weight) for weight in weights)
        self._moved |= {key: position for key in keys if key is not None}

    def take(self, position: int, value: Tensor) -> None:
        """Keep a few numbers of a value that an entry of the tape has made."""
        self._values[position] = sample_of(value)

    def check(self, tape: Tape) -> None:
        """Replay a tape and note an obstacle where it differs since the last check; begin anew."""
        if not self._values:
            return
        try:
            replay(tape, self, as_recorded=True)
        except Exception as error:  # whatever a call may raise
            self._problem = f"cannot be replayed ({type(error).__name__}: {error})"
        if self._problem is not None:
            tape.obstacles.append(Obstacle(len(tape.entries), self._problem))
        self._values, self._outdated, self._problem = {}, set(), None
        tape.forget_derived()  # the recording may go on

    def call(self, position: int, call: Call, args: tuple[Any, ...], kwargs: Any) -> Any:
        """See :class:`Visitor`."""
        given = set(map(storage_of, tensors_of((args, kwargs))))
        out = call.function(*args, **kwargs)
        made = tensors_of(out)
        outdated = self._follow(position, call, given, set(map(storage_of, made)))
        if position in self._values and not outdated:
            value = made[0] if made else None
            name = getattr(call.function, "__name__", "a call").strip("_")
            self._compare(position, value, f"{call.module} ({name})" if call.module else name)
        return out

    def _follow(
        self, position: int, call: Call, given: set[int | None], made: set[int | None]
    ) -> bool:
        """Tell whether a call has to do with weights as they were before they were stepped."""
        if not self._moved:
            return False
        outdated = any(
            key in self._outdated or position < self._moved.get(key or 0, 0) for key in given
        )
        if outdated:
            # Into which of them a call writes is not asked.
            self._outdated |= made | (given if call.writes else set())
        else:
            self._outdated -= made - given  # memory that was another value's
        self._outdated -= {None, *self._moved}
        return outdated

    def site(self, position: int, site: SiteCall, value: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        if position in self._values and storage_of(value) not in self._outdated:
            self._compare(position, value, site.layer.partition("|")[0])
        return value

    def _compare(self, position: int, value: Tensor | None, what: str) -> None:
        before = self._values[position]
        if self._problem is None and (value is None or not _is_same(before, sample_of(value))):
            self._problem = f"computes {what} otherwise when it is replayed"


def sample_of(value: Tensor) -> Tensor:
    """Return a copy of a few numbers of a tensor, spread over it."""
    value = value.detach()
    if value.is_nested or value.layout is not torch.strided:
        return torch.zeros(())
    step = max(1, value.numel() // _SAMPLE)
    index = torch.arange(0, value.numel(), step, device=value.device)
    return value.take(index) if value.numel() > 1 else value.clone()


def _is_same(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:
        return False
    if torch.equal(before, after) or not before.is_floating_point():
        return torch.equal(before, after)
    # What is added up in no fixed order on a device differs in its last bits.
    change, size = change_of(before, after)
    return change <= 16 * torch.finfo(before.dtype).eps * size


def change_of(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return by how much a value has changed at most, and how large it was."""
    same = (before == after) | (before.isnan() & after.isnan())
    size = float(before.abs().nan_to_num(0.0, 0.0, 0.0).max())
    difference = (after.double() - before.double()).abs().nan_to_num(torch.inf)
    return float(difference.masked_fill(same, 0.0).max()), size


def refuse_unsound(
    tapes: Sequence[Tape],
    layers: Mapping[str, str],
    broken: Mapping[int, str],
    units: Iterable[UnitKey],
) -> dict[UnitKey, str]:
    """Return the units that a recording cannot vouch for, each with the reason."""
    reasons: dict[str, str] = {}
    for number, tape in enumerate(tapes):
        for position, entry in enumerate(tape.entries):
            layer = layers.get(entry.layer) if isinstance(entry, SiteCall) else None
            if layer is None or layer in reasons:
                continue
            later = [o.reason for o in tape.obstacles if o.position > position]
            if number in broken:
                reasons[layer] = broken[number]
            elif later:
                reasons[layer] = f"what it flows into cannot be followed: {later[0]}"
    return {(layer, unit): reasons[layer] for layer, unit in units if layer in reasons}
