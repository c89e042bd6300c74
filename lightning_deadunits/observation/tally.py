"""Counts of all layers as one integer vector: one transfer, one reduction, whatever their number.

Every process lays the vector out alike, though a layer may have run on some only: first they
agree on the layers and their sizes, then they sum. What was agreed on stands until a process has
something else to say, which it says in the sum itself: most validations are one collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.observation.activations import Kind, zero_atol
from lightning_deadunits.observation.identity import (
    IN_PART,
    MIXED,
    partly_mixed,
    read_key,
    whole_and_in_part,
)
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.sums import LayerCounts, Seen
from lightning_deadunits.reporting.report import DeadUnitsReport, LayerReport


class ProcessFailedError(RuntimeError):
    """A process could not count; all processes raise it, so that none waits for another."""


class LayerShape(NamedTuple):
    """What processes must agree on before they sum the counts of a layer."""

    num_units: int
    unit_dim: int
    kind: Kind
    assumed: bool


Layout = dict[str, LayerShape]
Gather = Callable[[Any], list[Any]]
Reduce = Callable[[Tensor], Tensor]


def layout_of(counts: Mapping[str, LayerCounts]) -> Layout:
    """Return key and shape of every layer, in the order in which they first ran."""
    return {
        name: LayerShape(count.zeros.numel(), count.unit_dim, count.kind, count.assumed)
        for name, count in counts.items()
    }


def merge(layouts: Iterable[Layout]) -> tuple[Layout, dict[str, str]]:
    """Merge the layouts of all processes.

    Returns:
        The layers of any process, those of the first one first; and the layers whose number of
        units differs between processes, each with a reason: they are left out.
    """
    merged: Layout = {}
    unjudged: dict[str, str] = {}
    for layout in layouts:
        for name, shape in layout.items():
            known = merged.setdefault(name, shape)
            if known.num_units != shape.num_units:
                unjudged[name] = (
                    f"its number of units differs between processes "
                    f"({known.num_units} and {shape.num_units})"
                )
    return {name: shape for name, shape in merged.items() if name not in unjudged}, unjudged


def pack(counts: Mapping[str, LayerCounts], layout: Layout, device: torch.device) -> Tensor:
    """Lay out the counts as one int64 vector; what did not run here is zero."""
    parts = []
    for name, shape in layout.items():
        if name not in counts:
            parts.append(torch.zeros(shape.num_units + 2, dtype=torch.int64, device=device))
            continue
        count = counts[name]
        parts += [count.zeros.to(device)]
        for number in (count.nonfinite, count.observations):
            parts.append(torch.as_tensor(number, dtype=torch.int64, device=device).reshape(1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)


def unpack(
    vector: Tensor, layout: Layout, names: LayerNames, dead_threshold: float, atol: float | None
) -> dict[str, LayerReport]:
    """Read a vector on the CPU back, as one report per layer, by name."""
    layers = {}
    start = 0
    told_apart_by_order = {
        call.base for call in map(read_key, layout) if call.number > 1 and not call.producers
    }
    for key, shape in layout.items():
        name, call = names[key], read_key(key)
        zeros = vector[start : start + shape.num_units].clone()
        start += shape.num_units + 2
        layers[name] = LayerReport(
            name=name,
            num_units=shape.num_units,
            unit_dim=shape.unit_dim,
            observations=int(vector[start - 1]),
            zeros=zeros,
            dead_threshold=dead_threshold,
            atol=zero_atol(shape.kind, atol),
            nonfinite=int(vector[start - 2]),
            axis_assumed=shape.assumed,
            made_by=call.producers,
            # By unknown weights, another pass may show another layer's units under one name.
            order_assumed=not call.producers
            and (call.base in told_apart_by_order or not shape.assumed),
        )
    return layers


class Agreement:
    """What processes have said of their layers, for as long as none has anything else to say.

    It stands on all of them or on none. One that a copy of the callback takes along would not.
    """

    def __init__(self) -> None:
        self._own: Any = None
        self._everyone: list[Any] = []

    @property
    def stands(self) -> bool:
        """Whether there is one."""
        return bool(self._everyone)

    def holds(self, own: Any) -> bool:
        """Tell whether this process would say the same again of what is tracked.

        What ran beside it gives names only, to layers that are new: of these it would tell.
        """
        return self._own is not None and self._own[:-1] == own[:-1]

    def renew(self, own: Any, gather: Gather) -> None:
        """Ask all processes."""
        self._everyone = []
        everyone = gather(own)
        failed = [str(rank) for rank, (*_, has_failed, _) in enumerate(everyone) if has_failed]
        if failed:
            raise ProcessFailedError(f"Counting failed on process {', '.join(failed)}.")
        self._own, self._everyone = own, everyone

    def terms(self) -> tuple[Layout, dict[str, str], dict[str, str], set[str]]:
        """Return what processes have said, put together, by key.

        Returns:
            The layers to sum; those that ran and cannot be judged; those that ought to have run;
            those that ran and are not tracked.
        """
        layout, reasons = merge(layers for layers, *_ in self._everyone)
        ran = {read_key(key).base for key in layout}
        missed: dict[str, str] = {}
        aside: set[str] = set()
        for _, unjudged, unseen, _, beside in self._everyone:
            aside |= beside
            reasons.update(unjudged)
            missed.update({name: why for name, why in unseen.items() if name not in ran})
        mixed = [key for key, why in reasons.items() if why == MIXED]
        reasons.update(dict.fromkeys(partly_mixed(layout, mixed), MIXED))
        reasons.update(dict.fromkeys(whole_and_in_part(layout), IN_PART))
        layout = {name: shape for name, shape in layout.items() if name not in reasons}
        return layout, reasons, missed, aside

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was said out of copies: they may be for other processes."""
        return {"_own": None, "_everyone": []}


def _packed(
    counts: Mapping[str, LayerCounts] | None, layout: Layout, device: torch.device
) -> tuple[Tensor, Exception | None]:
    """Return the vector with two flags at its end, and why it could not be made, if so.

    The first one is 1 if this process has something else to say (no counts), the second one if
    it failed. Whatever happens here, the other processes wait for a vector.
    """
    flags = torch.zeros(2, dtype=torch.int64, device=device)
    error: Exception | None = None
    if counts is not None:
        try:
            return torch.cat([pack(counts, layout, device), flags]), None
        except Exception as failure:
            error = failure
    flags[1 if error else 0] = 1
    size = sum(shape.num_units + 2 for shape in layout.values())
    return torch.cat([torch.zeros(size, dtype=torch.int64, device=device), flags]), error


def report_of(
    seen: Seen,
    *,
    dead_threshold: float,
    atol: float | None,
    device: torch.device | None = None,
    gather: Gather = lambda value: [value],
    reduce: Reduce = lambda vector: vector,
    failed: bool = False,
    agreement: Agreement | None = None,
    names: LayerNames | None = None,
) -> DeadUnitsReport:
    """Sum the counts of all processes and judge every unit by the sums.

    Args:
        seen: What this process has seen.
        dead_threshold: Zero rate in (0, 1] from which on a unit is dead.
        atol: Magnitude that counted as zero, None for the rule by kind.
        device: Where the vector is summed; by default where the counts are.
        gather: Returns the argument of every process, in the order of their ranks.
        reduce: Sums a tensor over all processes.
        failed: Whether this process has nothing to contribute, for it could not count.
        agreement: What the processes have agreed on before, kept up to date.
        names: The names of layers that are known already, the same on every process; kept up to
            date.

    Returns:
        The report, the same on every process.

    Raises:
        ProcessFailedError: On every process, if one has failed. Another error is this one's own.
    """
    agreement = Agreement() if agreement is None else agreement
    names = LayerNames() if names is None else names
    counts, unjudged, unseen, beside = seen
    own = (layout_of(counts), dict(unjudged), dict(unseen), failed, beside)
    if device is None:
        device = next((count.zeros.device for count in counts.values()), torch.device("cpu"))
    if not agreement.stands:
        agreement.renew(own, gather)
    while True:
        layout, reasons, missed, aside = agreement.terms()
        packed, error = _packed(counts if agreement.holds(own) else None, layout, device)
        vector = reduce(packed).cpu()
        if vector[-1]:
            failures = int(vector[-1])
            raise ProcessFailedError(
                f"Counts of {failures} processes could not be summed."
            ) from error
        if not vector[-2]:
            # What has not run yet has no producers to be named after: its name is not settled.
            named = (key for key in reasons if key != read_key(key).base)
            names.settle((*layout, *named, *(aside - reasons.keys())))
            # Nor does a name change for what else cannot be judged and nobody knows the makers of.
            names.settle(reasons)
            return DeadUnitsReport(
                unpack(vector, layout, names, dead_threshold, atol),
                {names.get(k): why for k, why in (reasons | missed).items() if k not in aside},
            )
        agreement.renew(own, gather)
