"""find_dead_units: looks through a model once, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_deadunits.functional import check_atol
from lightning_deadunits.observation.names import as_patterns
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.selection import check_found, check_threshold
from lightning_deadunits.observation.sites import unobserved
from lightning_deadunits.observation.tally import report_of
from lightning_deadunits.observation.undisturbed import undisturbed
from lightning_deadunits.reporting.gaps import warn_of_gaps
from lightning_deadunits.reporting.report import DeadUnitsReport

_QUIET_SECONDS = 2.0


def find_dead_units(
    model: nn.Module,
    batches: Iterable[Any],
    *,
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
            or list (``model(*x)``) or a mapping (``model(**x)``).
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
        TypeError: If ``batches`` is a single tensor or mapping, or an item is none of the above.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].bias, -100)
        >>> find_dead_units(model, [torch.randn(8, 4)]).layers["1"].dead
        tensor([0, 1, 2])
    """
    check_threshold(dead_threshold)
    if atol is not None:
        check_atol(atol)
    if isinstance(batches, (Tensor, Mapping, str)):
        raise TypeError(
            f"Expected `batches` to be an iterable of batches, but got a {type(batches).__name__}. "
            f"Wrap a single batch in a list: find_dead_units(model, [batch])."
        )
    wanted, unwanted = as_patterns("layers", layers), as_patterns("exclude", exclude)
    observer = Observer(model, wanted, unwanted, atol=atol)
    with unobserved(), undisturbed(model), observer.watching(), torch.no_grad():
        with suppress(NotImplementedError):  # torch.export bakes the mode in
            model.eval()
        passes = _run(model, batches, observer)
    if not passes:
        raise ValueError("Expected `batches` to hold at least one batch, but it is empty.")
    check_found(observer.met, observer.never_met, wanted, unwanted)
    report = report_of(
        observer.counts,
        observer.unjudged,
        observer.unseen(),
        dead_threshold=dead_threshold,
        atol=atol,
    )
    warn_of_gaps(report)
    return report


def _run(model: nn.Module, batches: Iterable[Any], observer: Observer) -> int:
    passes = 0
    for batch in tqdm(batches, desc="dead units", unit="batch", delay=_QUIET_SECONDS, leave=False):
        with observer.one_pass():
            call(model, batch)
        passes += 1
    return passes


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with one item of ``batches``.

    Raises:
        TypeError: If it is no tensor, tuple, list or mapping.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise TypeError(
        f"Expected a batch to be a tensor, a tuple or a mapping, but got {type(batch).__name__}."
    )
