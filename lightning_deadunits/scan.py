"""find_dead_units: looks through a model once, without a Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_deadunits.arguments import explains_arguments, given
from lightning_deadunits.functional import check_atol
from lightning_deadunits.observation.names import as_patterns
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.selection import check_found, check_threshold
from lightning_deadunits.observation.sites import unobserved
from lightning_deadunits.observation.tally import report_of
from lightning_deadunits.observation.undisturbed import undisturbed
from lightning_deadunits.reporting.gaps import warn_of_gaps
from lightning_deadunits.reporting.report import DeadUnitsReport

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch)``: calls a model with what it needs of a batch."""

_QUIET_SECONDS = 2.0


@explains_arguments
def find_dead_units(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    layers: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    dead_threshold: float = 1.0,
    atol: float | None = None,
) -> DeadUnitsReport:
    """Find the units of a model that never fire on some batches.

    Runs in eval mode without gradients. Modes, buffers, hooks and random states are as before
    afterwards, also after an exception. A pass of more than two seconds shows a progress bar.

    Args:
        model: Any module; a compiled one is observed as it runs.
        batches: What the model is called with, one item per call: a tensor (``model(x)``), a tuple
            or list (``model(*x)``) or a mapping (``model(**x)``). Or anything, with ``forward``.
        forward: Calls the model with what it needs of a batch, for batches that hold more than
            that: ``forward=lambda model, batch: model(batch[0])`` for a loader of ``(x, y)``.
        layers: One or several ``fnmatch`` patterns on layer names; None for every activation that
            can be zero at rest. The full name of any other module has its output tracked.
        exclude: Patterns of layers to leave out.
        dead_threshold: A unit is dead from this zero rate on, in (0, 1].
        atol: Magnitude up to which a value counts as zero. None: exactly zero for activations
            that can be so, 0.001 for smooth ones (GELU, SiLU, Mish, Softplus).

    Returns:
        The report, on the CPU.

    Raises:
        ValueError: If an argument is out of range, a pattern matches no layer, there is no batch,
            or the model has no activation to track.
        TypeError: If an argument is of the wrong type, or the model does not take such a batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].bias, -100)
        >>> find_dead_units(model, [torch.randn(8, 4)]).layers["1"].dead
        tensor([0, 1, 2])
    """
    check_threshold(dead_threshold)
    if atol is not None:
        check_atol(atol)
    check_model(model, "batches", batches)
    _check_batches(batches)
    if forward is not None and not callable(forward):
        raise TypeError(
            f"Expected `forward` to be a function of model and batch, but got {given(forward)}."
        )
    wanted, unwanted = as_patterns("layers", layers), as_patterns("exclude", exclude)
    observer = Observer(model, wanted, unwanted, atol=atol)
    with unobserved(), undisturbed(model), observer.watching(), torch.no_grad():
        with suppress(NotImplementedError):  # torch.export bakes the mode in
            model.eval()
        passes = _run(model, batches, observer, forward or call)
    if not passes:
        raise ValueError("Expected `batches` to hold at least one batch, but it is empty.")
    check_found(observer.met, observer.never_met, wanted, unwanted, observer.aside)
    report = report_of(observer.seen(), dead_threshold=dead_threshold, atol=atol)
    warn_of_gaps(report)
    return report


def check_model(model: Any, other_name: str, other: Any) -> None:
    """Raise TypeError unless a model is one; say so if another argument is.

    Args:
        model: What was given as ``model``.
        other_name: Name of the argument that it may have been swapped with.
        other: What was given as that.
    """
    if isinstance(model, nn.Module):
        return
    hint = ""
    if isinstance(other, nn.Module):
        hint = f" `{other_name}` is a {type(other).__name__}: the model comes first."
    elif isinstance(model, type) and issubclass(model, nn.Module):
        hint = f" Make one: {model.__name__}(...)."
    raise TypeError(f"Expected `model` to be a torch.nn.Module, but got {given(model)}.{hint}")


def _check_batches(batches: Any) -> None:
    if isinstance(batches, (Tensor, Mapping, str)):
        raise TypeError(
            f"Expected `batches` to be an iterable of batches, but got {given(batches)}. "
            f"Wrap a single batch in a list: find_dead_units(model, [batch])."
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        hint = " Give its `train_dataloader()` or `val_dataloader()`."
        raise TypeError(
            f"Expected `batches` to be an iterable of batches, such as a DataLoader, but got "
            f"{given(batches)}.{hint if hasattr(batches, 'val_dataloader') else ''}"
        )


def _run(model: nn.Module, batches: Iterable[Any], observer: Observer, forward: Forward) -> int:
    passes = 0
    for batch in tqdm(batches, desc="dead units", unit="batch", delay=_QUIET_SECONDS, leave=False):
        with observer.one_pass():
            forward(model, batch)
        passes += 1
    return passes


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with one item of ``batches``.

    Raises:
        TypeError: If it is no tensor, tuple, list or mapping, or the model's ``forward`` does not
            take what it holds.
    """
    if not isinstance(batch, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            f"Expected a batch to be a tensor, a tuple or a mapping, but got {given(batch)}."
            f"{_WAY_OUT}"
        )
    handed = () if isinstance(batch, Mapping) else batch
    args = (handed,) if isinstance(handed, Tensor) else tuple(handed)
    kwargs = dict(batch) if isinstance(batch, Mapping) else {}
    _check_fits(model, batch, args, kwargs)
    return model(*args, **kwargs)


_WAY_OUT = (
    " Hand over what the model needs alone, or tell find_dead_units how to call it: "
    "`forward=lambda model, batch: model(batch[0])`."
)


def _check_fits(
    model: nn.Module, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise TypeError if a batch holds more, less or other things than ``forward`` takes."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a scripted or a C function has none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        holds = ", ".join(kwargs) if kwargs else f"{len(args)} of them"
        raise TypeError(
            f"Expected every batch to hold what the model is called with, but "
            f"{type(model).__name__}.forward takes ({takes}), and a {type(batch).__name__} has "
            f"{holds}: {error}.{_WAY_OUT}"
        ) from None
