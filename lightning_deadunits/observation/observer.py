"""Counts the zeros of every activation site: per call, per batch, over an epoch."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.counting import count_columns, count_values, is_captured
from lightning_deadunits.observation.activations import KINDS, zero_atol
from lightning_deadunits.observation.compiled import room_for_graphs
from lightning_deadunits.observation.identity import read_key
from lightning_deadunits.observation.members import COMPILED_MEMBERS, by_member
from lightning_deadunits.observation.nested import dense
from lightning_deadunits.observation.padding import Padding, padded_values
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sites import SiteMode
from lightning_deadunits.observation.small_passes import SmallPasses
from lightning_deadunits.observation.splits import REASON, is_split
from lightning_deadunits.observation.stack import Frame, needs_frame
from lightning_deadunits.observation.sums import LayerCounts, PassSums, Pending, Seen
from lightning_deadunits.observation.transforms import (
    COMPILED_TRANSFORM,
    is_mapped,
    is_wrapped,
    outside_of_transforms,
    unwrapped,
)


def _changes(before: LayerCounts, now: LayerCounts) -> str:
    return f"its number of units changes ({before.zeros.numel()}, then {now.zeros.numel()})"


def uncountable(activation: Tensor) -> str | None:
    """Return why an activation cannot be counted here, None if it can."""
    if is_wrapped(activation):
        return (
            "it runs inside a torch.func transform, and nothing tells whether that is mapped over "
            "stacked weights, whose units are others, or over samples; make the weights parameters "
            "of the model"
        )
    if activation.is_meta:
        return "its activation is on the meta device, which has no values"
    if is_captured(activation):
        return "it runs in a CUDA graph, which is replayed outside of Python"
    if type(activation) is Tensor:
        return None
    if hasattr(activation, "placements"):
        return "its activation is a DTensor, of which this process holds a shard only"
    if isinstance(activation, torch._subclasses.FakeTensor):
        return "its activation is a fake tensor, which has no values"
    return None


class Observer(SiteMode):
    """Counts zeros while it is entered; ``counts`` has the sums of all folded passes.

    Use :meth:`watching` around an epoch, :meth:`one_pass` around each forward pass.

    Args:
        atol: Magnitude that counts as zero, None for a rule by kind of activation.
        *args: Passed on to :class:`SiteMode`.
        **kwargs: Passed on to :class:`SiteMode`.
    """

    def __init__(self, *args: Any, atol: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._atols = {kind: zero_atol(kind, atol) for kind in KINDS}
        self.never_zero = self.layers is not None and atol is not None
        self._counts: dict[str, LayerCounts] = {}
        self._sums = PassSums()
        self._small = SmallPasses(self._atols)
        self._pending: dict[str, LayerCounts | Pending] = {}
        self._running = False
        self._room = ExitStack()
        self._split = False

    def needs_frame(self, module: nn.Module, frame: Frame) -> bool:
        """Tell whether a module must tell when it runs: each hook costs time at every call."""
        return needs_frame(module, frame)

    def reset(self) -> None:
        """Start a new epoch."""
        self.end(keep=False)
        self.counts = {}
        self.unjudged = {}
        self.met.clear()

    def begin(self) -> None:
        """Start counting one forward pass; forget one that was begun and never ended."""
        if self._running:
            self.end(keep=False)
        self.__enter__()  # type: ignore[no-untyped-call]  # torch's
        self._running = True

    def end(self, keep: bool = True) -> None:
        """Stop counting; add what was counted, or forget it. Harmless if nothing was begun."""
        if self._running:
            self._running = False
            self.__exit__(None, None, None)
        if keep:
            # Another callback may still record: these sums are none of the user's calls.
            with torch._C.DisableTorchFunction():
                self.fold()
        self._pending.clear()
        self.start_pass()

    def start_pass(self) -> None:
        """Forget the last forward pass."""
        super().start_pass()
        self._small.start_pass()

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Count one forward pass; one that raises is not counted."""
        self.begin()
        try:
            yield
        except BaseException:
            self.end(keep=False)
            raise
        self.end()

    def attach(self) -> None:
        """Let the modules of the model tell when they run, the compiled ones too."""
        super().attach()
        self._split = is_split(self.model)
        self._room.close()
        self._room.enter_context(room_for_graphs())

    def detach(self) -> None:
        """Stop counting and take every hook away."""
        self.end(keep=False)
        self._room.close()
        super().detach()

    @property
    def counts(self) -> dict[str, LayerCounts]:
        """Sums of all folded passes, by layer."""
        self._add(self._sums.flush().items())
        self._add(self._small.flush())
        return self._counts

    @counts.setter
    def counts(self, counts: dict[str, LayerCounts]) -> None:
        self._sums.flush()
        self._small.flush()
        self._counts = counts

    def seen(self) -> Seen:
        """Return all that was seen since :meth:`reset`."""
        return Seen(self.counts, self.unjudged, self.unseen(), self.beside())

    def fold(self) -> None:
        """Add what the last pass has counted to ``counts``."""
        if self._small.is_whole:
            self._add(self._small.keep())
        else:
            self._count_copied()
            self._add(self._small.learn(self._pending))
        if not self._pending or self._sums.add_alike(self._pending):
            return
        # A compiled region counts all layers: fnmatch cannot be traced.
        fresh = {n: c for n, c in self._pending.items() if self._all or self._selects(n)}
        alike = {n: c for n, c in fresh.items() if isinstance(c, Pending)}
        if len(alike) == len(fresh) and len({c.columns.device for c in alike.values()}) < 2:
            self._add(self._sums.add(alike).items())
            return
        self._add(self._sums.flush().items())
        self._add((n, c.counts() if isinstance(c, Pending) else c) for n, c in fresh.items())

    def _add(self, counts: Iterable[tuple[str, LayerCounts]]) -> None:
        for name, count in counts:
            if isinstance(count.zeros, torch._subclasses.FakeTensor):
                continue  # torch.export traced the model with tensors that have no values
            known = self._counts.get(name)
            if known is None:
                self._counts[name] = count
            elif known.zeros.shape != count.zeros.shape:
                self.unjudged[name] = _changes(known, count)
            else:
                self._counts[name] = known.plus(count)

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Count one activation; a failure of ours costs the verdict, never the forward pass."""
        if torch.compiler.is_compiling():
            if is_mapped(output):
                self.unjudged[site.name] = COMPILED_TRANSFORM
            elif site.members is not None:
                self.unjudged[site.name] = COMPILED_MEMBERS
            else:
                self._count(site, site.values(output).detach(), self.padding())
            return output
        try:
            values = site.values(output) if site.sizes else output
            split = self._split and site.assumed  # what made it was a DTensor
            if not (split or self._paddings or site.members):
                if self._small.take(site, values):
                    return output
                self._count_copied()
                if self._count_later(site, values):
                    return output
            refusal = REASON if split else uncountable(output)
            if is_wrapped(output) and site.levels is not None:
                values, dims = unwrapped(values, site.unit_dims, site.levels)
                with outside_of_transforms():
                    self._count(site._replace(unit_dims=dims), values.detach(), None)
            elif refusal is None:
                self._count(site, values.detach(), self.padding())
            else:
                self.unjudged[site.name] = refusal
        except Exception as error:
            self._give_up(site.name, error)
        return output

    def _count_copied(self) -> None:
        """Count what was copied of this pass, for it is not like those before."""
        for site, values in self._small.give_back():
            if not self._count_later(site, values):
                self._count(site, values, None)

    def _count_later(self, site: Site, values: Tensor) -> bool:
        """Count, but for what need not be done in the middle of the pass; False if all must be."""
        columns = count_columns(values, site.unit_dims, self._atols[site.kind])
        if columns is not None:
            self._hold(site.name, Pending(site, columns))
        return columns is not None

    def _hold(self, name: str, count: LayerCounts | Pending) -> None:
        """Keep what one call has shown until the pass ends; a layer may be called again in it."""
        if name in self._pending:
            known, fresh = (
                each.counts() if isinstance(each, Pending) else each
                for each in (self._pending[name], count)
            )
            if known.zeros.shape != fresh.zeros.shape:
                self.unjudged[name] = _changes(known, fresh)
                return
            count = known.plus(fresh)
        self._pending[name] = count

    def _count(self, site: Site, values: Tensor, padding: Padding | None) -> None:
        padded = padded_values(padding, values)
        dims = site.unit_dims
        if values.is_nested:
            values, dims = dense(values, dims)
        if padded is not None:
            values = values.masked_fill(padded, torch.nan)
        if site.members is not None:
            for name, count in by_member(site, values, dims, self._atols[site.kind]):
                if self._all or self._selects(name):
                    self._hold(name, count)
            return
        zeros, nonfinite = count_values(values, dims, self._atols[site.kind])
        seen: int | Tensor = values.numel() // max(1, zeros.numel())
        if padded is not None:
            hidden = padded.sum()
            nonfinite, seen = nonfinite - hidden * zeros.numel(), seen - hidden
        counts = LayerCounts(zeros, nonfinite, seen, site.unit_dims[0], site.kind, site.assumed)
        self._hold(site.name, counts)

    def _give_up(self, name: str, error: Exception) -> None:
        if name not in self.unjudged:
            warnings.warn(
                f"Layer {read_key(name).base!r} cannot be observed, its units are not judged; the "
                f"model is not affected.\n{''.join(traceback.format_exception(error))}",
                stacklevel=2,
            )
        self.unjudged[name] = f"{type(error).__name__}: {error}"
