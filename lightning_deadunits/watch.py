"""watch_dead_units: counts the forward passes of a model, whoever makes them.

The mode that meets every activation is on for as long as the context lasts; an activation counts
while a module of the model is running. So a loop of one's own, Fabric, accelerate or transformers'
Trainer run as they always do.

Counts are summed per forward pass. One begins where a module of the model is called that no other
one calls: the model itself, in most loops, or a part of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_deadunits.functional import check_atol
from lightning_deadunits.observation.forward_only import ForwardObserver, in_backward
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.lineage.eager import EagerLineage
from lightning_deadunits.observation.names import as_patterns
from lightning_deadunits.observation.selection import (
    SelectionError,
    check_found,
    check_possible,
    check_threshold,
)
from lightning_deadunits.observation.tally import report_of
from lightning_deadunits.reporting.gaps import warn_of_gaps
from lightning_deadunits.reporting.report import DeadUnitsReport

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "_FabricModule", "_FabricOptimizedModule")


def watch_dead_units(
    model: nn.Module,
    *,
    layers: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    dead_threshold: float = 1.0,
    atol: float | None = None,
) -> DeadUnitWatch:
    """Count what the units of a model do in whatever forward passes run inside of a context.

    The model runs as it would without: its mode, weights, gradients and random numbers are nobody's
    business here. What activation checkpointing computes anew during backward is not counted.
    Activations count while a module of the model runs; a function that the loop itself calls on
    what a module returned belongs to no layer.

    Args:
        model: The model, also wrapped by DDP, Fabric or ``torch.compile``. If it is compiled, what
            ``torch.compile`` returned.
        layers: One or several ``fnmatch`` patterns on layer names; None for every activation that
            can be zero at rest. The full name of any other module has its output tracked.
        exclude: Patterns of layers to leave out.
        dead_threshold: A unit is dead from this zero rate on, in (0, 1].
        atol: Magnitude up to which a value counts as zero. None: exactly zero for activations
            that can be so, 0.001 for smooth ones (GELU, SiLU, Mish, Softplus).

    Returns:
        The context manager; its ``report()`` gives the verdicts at any time and afterwards.

    Raises:
        ValueError: If an argument is out of range, or a pattern can match no layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].bias, -100)
        >>> with watch_dead_units(model) as watch:
        ...     for _ in range(5):
        ...         _ = model(torch.randn(8, 4))
        >>> watch.report().layers["1"].dead
        tensor([0, 1, 2])
    """
    check_threshold(dead_threshold)
    if atol is not None:
        check_atol(atol)
    wanted, unwanted = as_patterns("layers", layers), as_patterns("exclude", exclude)
    check_possible(_wrapped(model)[-1], wanted, unwanted)
    return DeadUnitWatch(model, wanted, unwanted, dead_threshold, atol)


class DeadUnitWatch:
    """Counts while it is entered, and adds to that when it is entered again.

    Args:
        model: The model, perhaps wrapped.
        layers: Patterns of layers to track, None for all that can be zero at rest.
        exclude: Patterns of layers to leave out.
        dead_threshold: Zero rate in (0, 1] from which on a unit is dead.
        atol: Magnitude that counts as zero, None for the rule by kind of activation.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...] | None,
        exclude: tuple[str, ...] | None,
        dead_threshold: float,
        atol: float | None,
    ) -> None:
        wrapped = _wrapped(model)
        self._observer = _LoopObserver(wrapped[-1], layers, exclude, atol=atol)
        self._entries = wrapped
        self._rules: dict[str, Any] = dict(dead_threshold=dead_threshold, atol=atol)
        self._names = LayerNames()
        self._told: set[str] = set()
        self._checked = False
        self._processes = 1

    def __enter__(self) -> DeadUnitWatch:
        self._processes = max(self._processes, _num_processes())
        self._observer.start(self._entries)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._observer.stop()

    def report(self) -> DeadUnitsReport:
        """Return the verdicts by all passes so far, those of a running one left out.

        Where ``torch.distributed`` is initialised, every process must ask: counts are summed.

        Returns:
            The report, on the CPU, the same on every process.

        Raises:
            RuntimeError: If the processes that counted are connected no longer, or the model was
                called by a compiled function that this watch was not given.
        """
        if _num_processes() < self._processes:
            raise RuntimeError(
                f"Expected the {self._processes} processes that have counted to be connected, but "
                f"`torch.distributed` is not initialised any longer. Ask for the report before."
            )
        observer = self._observer
        observer.settle()
        if observer.blind:
            raise RuntimeError(
                "Expected `model` to be what is called, but a compiled function calls it, which "
                "shows no passes. Watch what `torch.compile` returned."
            )
        device = _sum_device()
        report = report_of(
            observer.seen(), device=device,
            gather=_gather, reduce=_sum, names=self._names, **self._rules,
        )  # fmt: skip
        self._warn(report)
        return report

    def _warn(self, report: DeadUnitsReport) -> None:
        """Say what was asked for in vain, or cannot be judged; what has run is never lost."""
        observer = self._observer
        if not self._checked and (observer.met or observer.never_met):
            self._checked = True
            elsewhere = [self._names.key(name) or name for name in report.layers]
            found = [*observer.met, *elsewhere]
            try:
                check_found(
                    *(found, observer.never_met, observer.layers, observer.exclude),
                    aside=observer.aside,
                )
            except SelectionError as error:
                warnings.warn(str(error), stacklevel=3)
        warn_of_gaps(report, self._told)


class _Hook:
    """Tells an observer of a call; a copy of it, in a copied or pickled model, does nothing."""

    def __init__(self, tell: Callable[..., None] | None) -> None:
        self._tell = tell

    def __call__(self, *call: Any) -> None:
        if self._tell is not None:
            self._tell(*call)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)


class _LoopObserver(ForwardObserver):
    """Observes a loop that tells of no passes: they begin where the model is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blind = False
        self._inside = False
        self._entries: Sequence[nn.Module] = ()
        self._handles: list[RemovableHandle] = []
        self._called: set[nn.Module] = set()

    def start(self, entries: Sequence[nn.Module]) -> None:
        """Count from now on.

        Args:
            entries: The model's wrappers from the outermost one on, then the model.

        Raises:
            RuntimeError: If it counts already.
        """
        if self._running:
            raise RuntimeError("Expected a watch that is not entered, but this one is.")
        try:
            self._entries = entries
            self.attach()
            # Before the hooks that say which module runs: a pass has to end before the next begins.
            for module in dict.fromkeys([*entries, *self._hooks]):
                hook = _Hook(self._before_call)
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True))
            for module in entries:
                enter, leave = _Hook(self._enter_entry), _Hook(self._leave_entry)
                self._handles += [
                    module.register_forward_pre_hook(enter, prepend=True),
                    module.register_forward_hook(leave, always_call=True),
                ]
            self.begin()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Count no longer, and leave nothing behind."""
        self.end()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._called.clear()
        self.detach()

    def settle(self, forget: bool = True) -> None:
        """Add what the last pass has counted, unless it is still running.

        Args:
            forget: Whether what was computed so far is of no use to the next pass. Where a loop
                calls the parts of a model, the one hands on to the other.
        """
        if self._frames:
            return
        self.fold()
        self._pending.clear()
        self._called.clear()
        lineage = self.lineage
        if not forget:
            self.lineage = EagerLineage()  # is what forgets instead
        self.start_pass()
        self.lineage = lineage

    def _activation(self, function: Any, args: Any, *rest: Any, **options: Any) -> Any:
        # The loop may run another model, or compute its loss: no module of this one is running.
        if not self._frames:
            return rest[1] if len(rest) > 1 else options["out"]
        return super()._activation(function, args, *rest, **options)

    def _before_call(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or self._frames or in_backward():
            return
        if module in self._called:
            self.settle(forget=module in self._entries)
        self._called.add(module)

    def _enter_entry(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            self.blind = self.blind or not self._inside
        else:
            self._inside = True

    def _leave_entry(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._inside = False


def _wrapped(model: nn.Module) -> list[nn.Module]:
    """Return a model's wrappers from the outermost one on, then the model itself."""
    found = [model]
    while True:
        outer = found[-1]
        inner = getattr(outer, "module" if type(outer).__name__ in _WRAPPERS else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return found
        found.append(inner)


def _num_processes() -> int:
    distributed = torch.distributed
    connected = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if connected else 1


def _sum_device() -> torch.device | None:
    """Return where the processes can sum: NCCL sums on a GPU only, and one may have no counts."""
    if _num_processes() == 1:
        return None
    if "nccl" in torch.distributed.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _gather(value: object) -> list[Any]:
    if _num_processes() == 1:
        return [value]
    values: list[Any] = [None] * _num_processes()
    torch.distributed.all_gather_object(values, value)
    return values


def _sum(tensor: Tensor) -> Tensor:
    if _num_processes() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
