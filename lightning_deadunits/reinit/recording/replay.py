"""Runs the calls of a tape again: on copies of its leaves, with the weights as they are now.

Nothing of the user's code runs, and nothing that it can see changes: no buffer, no attribute, no
random state. A :class:`Visitor` may look at every value of the pass, and put others in its place.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_deadunits.observation.sites import unobserved
from lightning_deadunits.reinit.recording.functions import GRADIENT
from lightning_deadunits.reinit.recording.tape import Call, Ref, SiteCall, Tape, leaves_of, mapped


class Visitor:
    """What is done with the values of one replay; by default nothing."""

    def leaf(self, index: int, value: Any) -> Any:
        """Receive a leaf, a copy unless it is a parameter; what is returned takes its place."""
        return value

    def call(self, position: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call, or return something else in its place."""
        return call.function(*args, **kwargs)

    def site(self, position: int, site: SiteCall, value: Tensor) -> Tensor:
        """Receive an activation; what is returned takes its place."""
        return value

    def result(self, key: Any, value: Tensor, read_by: str | None) -> None:
        """Receive what the pass comes to: what no later call is given, or Python read, by what."""


def replay(tape: Tape, visitor: Visitor | None = None, *, as_recorded: bool = False) -> None:
    """Run the calls of a tape again, with the state of the model as it is now, or as it was then.

    Raises:
        Exception: Whatever a call raises on the values that a visitor gave it.
    """
    visitor = Visitor() if visitor is None else visitor
    values: dict[int, Any] = {}
    dropped, final = tape.last_uses, tape.final_values
    skipped = set() if as_recorded else tape.upkeep
    takes_gradients = any(call.function is GRADIENT for call in tape.calls)

    def value_of(item: Any) -> Any:
        if not isinstance(item, Ref):
            return item
        if item.index not in values:
            values[item.index] = visitor.leaf(item.index, _leaf(tape, item.index, as_recorded))
        return values[item.index]

    # Nobody observes, records or differentiates; random states are as they were afterwards.
    with (
        unobserved(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=list(tape.devices)),
        ExitStack() as autocast,
        ExitStack() as undo,
    ):
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        entered: tuple[tuple[str, torch.dtype], ...] = ()
        for position, entry in enumerate(tape.entries):
            if isinstance(entry, SiteCall):
                values[entry.value] = visitor.site(position, entry, values[entry.value])
            elif position in skipped:
                for made in set(entry.made) - tape.leaves.keys():
                    values[made] = value_of(Ref(entry.given[0]))
            else:
                if entry.autocast != entered:
                    autocast.close()
                    for kind, dtype in entry.autocast:
                        # No cache: it would hold on to weights that are edited between two replays.
                        autocast.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
                    entered = entry.autocast
                if entry.dtype != torch.get_default_dtype():
                    torch.set_default_dtype(entry.dtype)
                if takes_gradients:
                    torch.set_grad_enabled(entry.gradients)
                if entry.reads_values:
                    name = getattr(entry.function, "__name__", "")
                    for order, index in enumerate(entry.given):
                        value = value_of(Ref(index))
                        if isinstance(value, Tensor) and index not in tape.weight_values:
                            visitor.result((position, order), value, name)
                else:
                    args, kwargs = mapped(entry.args, value_of), mapped(entry.kwargs, value_of)
                    if entry.random_state is not None:
                        entry.random_state.restore()
                    out = leaves_of(visitor.call(position, entry, args, kwargs))
                    for number, item in zip(entry.outs, out, strict=True):
                        if number is not None:
                            values[number] = item
            for index in dropped[position]:
                value = values.pop(index, None)
                if index not in final or not isinstance(value, Tensor):
                    continue
                # One of integers may be a by-product that nobody kept.
                if value.is_floating_point() or index in tape.kept:
                    visitor.result(index, value, None)


def _leaf(tape: Tape, index: int, as_recorded: bool) -> Any:
    leaf = tape.leaves[index]
    if isinstance(leaf, Generator):
        return leaf.clone_state()
    if index in tape.parameters and index not in tape.written:
        return leaf
    if as_recorded:
        leaf = tape.before.get(index, leaf)
    # State of the model is taken as it is now, unless the pass wrote to it: then as it was.
    if index in tape.buffers and index not in tape.written and not as_recorded:
        leaf = tape.buffers[index]
    value = leaf.detach().clone()
    return value.requires_grad_() if leaf.requires_grad else value
