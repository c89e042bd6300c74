"""The first batches of a new life: units whose weights become NaN in them are given up at once.

Silenced weights are zeros. A model that divides them by their norm, as a sparse autoencoder does
with its decoder's columns, makes NaN of them before they have learned anything. Nobody can tell
beforehand, for that is the user's code; so the weights are looked at as soon as it has run.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.report import ReinitReport

FIRST_BATCHES = 4
"""How many are looked at: what divides weights does so at every step, or hardly ever."""

SPOILT = (
    "its silenced weights became NaN before they had learned anything: are they divided by their "
    "norm? Bound that from below (`norm.clamp(min=1e-8)`). It is as it was before"
)
TOGETHER = "it was taken back with others of the same event, whose weights became NaN"


@torch.no_grad()
def take_back_(event: Event, optimizer: Any = None) -> ReinitReport | None:
    """Write back what was there before an event if anything written has become NaN.

    Args:
        event: The event.
        optimizer: One that is about to step, with gradients that may be NaN then: of such a
            batch nothing can be learned, and they are zeroed.

    Returns:
        The units of the event as refused; None if all is well.
    """
    if not event.touched:
        return None
    values = [part.read(part.parameter) for part in event.touched]
    home = values[0].device  # one transfer for all
    finite = torch.stack([own.isfinite().all().to(home) for own in values]).tolist()
    if all(finite):
        return None
    named = {id(p): name for name, p in event.model.named_parameters()}
    spoilt = {
        named.get(id(part.parameter))
        for part, fine in zip(event.touched, finite, strict=True)
        if not fine
    }
    event.outcome.undo_()
    for part in event.touched:  # after that: gradients from before the event came back with it
        if part.parameter.grad is not None:
            part.write_(part.parameter.grad, 0.0)
    for group in () if optimizer is None else optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                parameter.grad.zero_()
    report = ReinitReport()
    for layer, units in event.report.reinitialised.items():
        concerned = {*event.report.made_by.get(layer, ()), *event.report.read_by.get(layer, ())}
        reason = SPOILT if concerned & spoilt else TOGETHER
        report.refused[layer] = dict.fromkeys(units, reason)
    return report
