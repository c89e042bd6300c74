"""Counts the zeros of every activation site: per call, per batch, over an epoch."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.counting import count_columns, count_values
from lightning_deadunits.counting_cpu import Columns
from lightning_deadunits.observation.activations import Kind, zero_atol
from lightning_deadunits.observation.compiled import room_for_graphs
from lightning_deadunits.observation.nested import dense
from lightning_deadunits.observation.padding import Padding, padded_values
from lightning_deadunits.observation.sites import Site, SiteMode


def uncountable(activation: Tensor) -> str | None:
    """Return why an activation cannot be counted here, None if it can."""
    if torch._C._functorch.is_functorch_wrapped_tensor(activation):
        return "it runs inside a torch.func transform, whose values belong to many models at once"
    if activation.is_meta:
        return "its activation is on the meta device, which has no values"
    if type(activation) is Tensor:
        return None
    if hasattr(activation, "placements"):
        return "its activation is a DTensor, of which this process holds a shard only"
    if isinstance(activation, torch._subclasses.FakeTensor):
        return "its activation is a fake tensor, which has no values"
    return None


class LayerCounts(NamedTuple):
    """What one layer has shown. A tuple, for Dynamo returns it from compiled regions.

    Attributes:
        zeros: Zeros per unit, int64 of shape ``(U,)``, on the layer's device.
        nonfinite: NaN and infinite values of all units together.
        observations: Values seen per unit.
        unit_dim: Axis of the activation that indexes the units.
        kind: Whether the units can be zero at rest.
        assumed: True if nothing told which axis the units are on.
    """

    zeros: Tensor
    nonfinite: int | Tensor
    observations: int | Tensor
    unit_dim: int
    kind: Kind
    assumed: bool

    def plus(self, count: LayerCounts) -> LayerCounts:
        """Return the sum of both."""
        return self._replace(
            zeros=self.zeros + count.zeros,
            nonfinite=self.nonfinite + count.nonfinite,
            observations=self.observations + count.observations,
        )


class _Pending(NamedTuple):
    site: Site
    columns: Columns


def _counted(site: Site, columns: Columns) -> LayerCounts:
    return LayerCounts(
        columns.zeros(), columns.nonfinite, columns.observations, site.unit_dims[0], site.kind,
        site.assumed,
    )  # fmt: skip


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
        self.atol = atol
        self.never_zero = self.layers is not None and atol is not None
        self.counts: dict[str, LayerCounts] = {}
        self._pending: dict[str, LayerCounts | _Pending] = {}
        self._running = False
        self._room = ExitStack()

    def reset(self) -> None:
        """Start a new epoch."""
        self.end(keep=False)
        self.counts = {}
        self.unjudged = {}
        self.met.clear()

    def begin(self) -> None:
        """Start counting one forward pass."""
        self.start_pass()
        self._pending.clear()
        self.__enter__()  # type: ignore[no-untyped-call]  # torch's
        self._running = True

    def end(self, keep: bool = True) -> None:
        """Stop counting; add what was counted, or forget it. Harmless if nothing was begun."""
        if self._running:
            self._running = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's
        if keep:
            self.fold()
        self._pending.clear()
        self.start_pass()

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
        self._room.close()
        self._room.enter_context(room_for_graphs())

    def detach(self) -> None:
        """Stop counting and take every hook away."""
        self.end(keep=False)
        self._room.close()
        super().detach()

    def fold(self) -> None:
        """Add what the last pass has counted to ``counts``."""
        for name, pending in self._pending.items():
            if not (self._all or self._selects(name)):
                continue  # a compiled region counts all: fnmatch cannot be traced
            count = _counted(*pending) if isinstance(pending, _Pending) else pending
            if isinstance(count.zeros, torch._subclasses.FakeTensor):
                continue  # torch.export traced the model with tensors that have no values
            known = self.counts.get(name)
            if known is None:
                self.counts[name] = count
            elif known.zeros.shape != count.zeros.shape:
                before, now = known.zeros.numel(), count.zeros.numel()
                self.unjudged[name] = f"its number of units changes ({before}, then {now})"
            else:
                self.counts[name] = known.plus(count)

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Count one activation; a failure of ours costs the verdict, never the forward pass."""
        if torch.compiler.is_compiling():
            self._count(site, output.detach(), self.padding())
            return output
        refusal = uncountable(output)
        if refusal is not None:
            self.unjudged[site.name] = refusal
            return output
        try:
            values = output.detach() if output.requires_grad else output
            if self._paddings or values.is_nested or not self._postpone(site, values):
                self._count(site, values, self.padding())
        except Exception as error:
            self._give_up(site.name, error)
        return output

    def _postpone(self, site: Site, values: Tensor) -> bool:
        """Leave to the end of the pass what need not be done in the middle of it."""
        columns = count_columns(values, site.unit_dims, zero_atol(site.kind, self.atol))
        if columns is not None:
            self._pending[site.name] = _Pending(site, columns)
        return columns is not None

    def _count(self, site: Site, values: Tensor, padding: Padding | None) -> None:
        padded = padded_values(padding, values)
        dims = site.unit_dims
        if values.is_nested:
            values, dims = dense(values, dims)
        if padded is not None:
            values = values.masked_fill(padded, torch.nan)
        zeros, nonfinite = count_values(values, dims, zero_atol(site.kind, self.atol))
        seen: int | Tensor = values.numel() // max(1, zeros.numel())
        if padded is not None:
            hidden = padded.sum()
            nonfinite, seen = nonfinite - hidden * zeros.numel(), seen - hidden
        self._pending[site.name] = LayerCounts(
            zeros, nonfinite, seen, site.unit_dims[0], site.kind, site.assumed
        )

    def _give_up(self, name: str, error: Exception) -> None:
        if name not in self.unjudged:
            warnings.warn(
                f"Layer {name!r} cannot be observed, its units are not judged; the model is not "
                f"affected.\n{''.join(traceback.format_exception(error))}",
                stacklevel=2,
            )
        self.unjudged[name] = f"{type(error).__name__}: {error}"
