"""ReinitConfig: what is re-initialised, when, and how."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from lightning_deadunits.arguments import (
    check_bool,
    check_choice,
    check_number,
    explains_arguments,
    given,
    near,
)
from lightning_deadunits.observation.names import as_patterns

Init = Callable[[Tensor, Tensor, Generator], Tensor]
"""``(fresh, live, generator) -> weights``, see :class:`ReinitConfig`."""


@dataclass(frozen=True)
class ReinitConfig:
    """How dead units are given a new life.

    A unit is re-initialised only if the network computes the same afterwards; what cannot be is
    refused with a reason and left untouched.

    Args:
        patience: In how many consecutive validations (or training windows) a unit must be dead.
            By default 2 at validation; 1 with `every_n_train_steps`, where a window is evidence
            enough.
        every_n_train_steps: Decide after every so many training batches (a window), from counts on
            these batches, and not at validation. For online and continual learning: a few hundred
            examples, such as 20 batches of 16, did best (``tests/benchmarks/plasticity``).
        max_per_event: Most units of a layer per event, the longest dead first: a number, or a
            fraction of the layer's units if below 1. No limit by default.
        grace_period: For how many validations (or training windows) after its re-initialisation a
            unit is left alone. By default 2 at validation, 0 with `every_n_train_steps`.
        max_per_unit: How often one unit may be re-initialised at most. No limit by default.
        init: Fresh incoming weights: `default` draws from the layer's own distribution (its
            `reset_parameters`, at the scale that its weights had when training began, or at
            Kaiming's for ReLU if that is larger), `matched` scales such a draw to the norm of live
            units' weights. Or the import path of a function, or a function: called with fresh
            weights of shape (n, fan_in), those of live units of shape (m, fan_in), and a CPU
            generator, it returns the weights to use, of shape (n, fan_in). The bias is set so that
            half of the example makes the unit fire.
        layers: Patterns (as in fnmatch) of layers whose units may be re-initialised; all by
            default.
        exclude: Patterns of layers to leave alone.
        criterion: `dead` for units that never fire. `dormant` for those whose mean magnitude is at
            most `tau` times the layer's mean (ReDo, Sokar et al. 2023); what such a unit still
            contributes is lost.
        tau: Share of the layer's mean magnitude up to which a unit is `dormant`.
        tolerance: Largest change of any layer's output on the example, relative to its largest
            value, at which a unit may still be silenced. By default the rounding of its dtype.
        attempts: How often incoming weights are drawn anew while a unit stays silent.
        seed: Seed from which, with the step and the layer, fresh weights are drawn.
        dry_run: Report what would be done, and touch nothing.

    Raises:
        ValueError: If an option is out of its range.
        TypeError: If one is of the wrong type.
    """

    patience: int | None = None
    every_n_train_steps: int | None = None
    max_per_event: float | None = None
    grace_period: int | None = None
    max_per_unit: int | None = None
    init: str | Callable[..., Any] = "default"
    layers: str | list[str] | None = None
    exclude: str | list[str] | None = None
    criterion: Literal["dead", "dormant"] = "dead"
    tau: float = 0.025
    tolerance: float | None = None
    attempts: int = 5
    seed: int = 0
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Check every option; what is not given follows from the schedule."""
        patience, grace_period = (2, 2) if self.every_n_train_steps is None else (1, 0)
        for name, value in (("patience", patience), ("grace_period", grace_period)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        _check_int("patience", self.patience, 1)
        _check_int("grace_period", self.grace_period, 0)
        _check_int("attempts", self.attempts, 1)
        _check_int("every_n_train_steps", self.every_n_train_steps, 1, optional=True)
        _check_int("max_per_unit", self.max_per_unit, 1, optional=True)
        as_patterns("layers", self.layers)
        as_patterns("exclude", self.exclude)
        check_choice("criterion", self.criterion, ("dead", "dormant"))
        check_bool("dry_run", self.dry_run)
        _check_int("seed", self.seed, None)
        _check_positive("tau", self.tau)
        if self.tau != ReinitConfig.tau and self.criterion == "dead":
            warnings.warn(
                f"ReinitConfig: `tau` = {self.tau} has no meaning with `criterion='dead'`, under "
                f"which a unit must never fire. Give `criterion='dormant'` to have it heeded.",
                stacklevel=3,
            )
        if self.max_per_event is not None:
            _check_positive("max_per_event", self.max_per_event)
            if self.max_per_event >= 1 and self.max_per_event != int(self.max_per_event):
                raise ValueError(
                    f"Expected `max_per_event` to be a whole number, or a fraction below 1, but "
                    f"got {self.max_per_event}."
                )
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, "a number >= 0", lambda it: it >= 0)
        self.init_function()

    @property
    def patterns(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        """Those of ``layers`` and of ``exclude``."""
        return as_patterns("layers", self.layers), as_patterns("exclude", self.exclude)

    def init_function(self) -> Init | None:
        """Return the function behind ``init``, None for the layer's own distribution.

        Raises:
            ValueError: If it cannot be imported.
            TypeError: If it cannot be called.
        """
        if self.init == "default":
            return None
        if self.init == "matched":
            return matched
        function = _imported(self.init) if isinstance(self.init, str) else self.init
        if not callable(function):
            raise TypeError(
                f"Expected `init` to be 'default', 'matched', a function or the import path of "
                f"one, but got {given(self.init)}."
            )
        return function

    def limit(self, num_units: int) -> int:
        """Return how many units of a layer may be re-initialised in one event."""
        if self.max_per_event is None:
            return num_units
        if self.max_per_event < 1:
            return max(1, int(self.max_per_event * num_units))
        return int(self.max_per_event)


def matched(fresh: Tensor, live: Tensor, generator: Generator) -> Tensor:
    """Scale fresh weights to the median norm of those of live units."""
    if not len(live):
        return fresh
    norm = torch.linalg.vector_norm(live, dim=1).median()
    lengths = torch.linalg.vector_norm(fresh, dim=1, keepdim=True)
    scaled: Tensor = fresh / lengths.clamp(min=1e-12) * norm
    return scaled


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Expected `init` to be 'default', 'matched' or the import path of a function, but "
            f"got {path!r}.{near(path, ('default', 'matched'))}"
        ) from error


def _check_int(name: str, value: Any, least: int | None, optional: bool = False) -> None:
    if value is None and optional:
        return
    expected = "an int" if least is None else f"an int >= {least}"
    check_number(name, value, expected, lambda it: least is None or it >= least, whole=True)


def _check_positive(name: str, value: Any) -> None:
    check_number(name, value, "a number > 0", lambda it: 0 < it < float("inf"))


# A dataclass writes its own constructor, so what explains a wrong call is put around it afterwards.
ReinitConfig.__init__ = explains_arguments(ReinitConfig.__init__)  # type: ignore[method-assign]
