"""Which layers were asked for, checked against those there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from lightning_deadunits.arguments import check_number
from lightning_deadunits.observation.activations import FUNCTION_NAMES
from lightning_deadunits.observation.names import matches, module_names

_LISTED = 40


class SelectionError(ValueError):
    """A pattern that matches no layer, or a model that has none."""


def check_threshold(dead_threshold: float) -> None:
    """Raise unless a threshold is a number in (0, 1]."""
    check_number("dead_threshold", dead_threshold, "a number in (0, 1]", lambda it: 0.0 < it <= 1.0)


def check_every_n_batches(every_n_batches: int) -> None:
    """Raise unless it is a whole number from 1 on."""
    expected = "an int, 1 (every batch) or more"
    check_number("every_n_batches", every_n_batches, expected, lambda it: it >= 1, whole=True)


def check_found(
    found: Iterable[str],
    never_zero: Iterable[str],
    layers: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> None:
    """Raise unless there are layers, and every pattern matches one of them.

    Args:
        found: Names of all the layers that ran, those included that no pattern selects.
        never_zero: Names of the activations that ran and are never zero at rest.
        layers: Patterns of the layers to track.
        exclude: Patterns of the layers not to track.

    Raises:
        SelectionError: With the names there are.
    """
    names, smooth = list(found), list(never_zero)
    for argument, patterns in (("layers", layers), ("exclude", exclude)):
        for pattern in patterns or ():
            if any(matches(name, pattern) for name in names):
                continue
            if any(matches(name, pattern) for name in smooth):
                if argument == "exclude":
                    continue
                raise SelectionError(
                    f"Expected an `atol` for {pattern!r}: {listed(smooth)} are never exactly zero "
                    f"at rest, so it must be said what counts as zero."
                )
            raise SelectionError(
                f"Expected every pattern of `{argument}` to match a layer, but {pattern!r} "
                f"matches none. Layers there are: {listed(names)}."
            )
    if not names:
        raise SelectionError(
            "Expected a model with an activation that can be zero (ReLU, GELU, SiLU, Hardswish, "
            "x.clamp(min=0), ...), but none ran. LeakyReLU, Tanh, Sigmoid and the like are never "
            "zero at rest: name them in `layers` and say with `atol` what counts as zero."
        )


def check_possible(
    model: nn.Module, layers: Sequence[str] | None, exclude: Sequence[str] | None
) -> None:
    """Raise for a pattern that no layer can match, whatever the forward pass will call.

    Raises:
        SelectionError: With the modules there are.
    """
    if layers is None and exclude is None:
        return
    modules = list(dict.fromkeys(module_names(model).values()))
    functions = sorted(set(FUNCTION_NAMES.values()))
    possible = [f"{module}.{name}".lstrip(".") for module in modules for name in functions]
    for argument, patterns in (("layers", layers), ("exclude", exclude)):
        for pattern in patterns or ():
            # What is called several times a pass has several layers: `relu`, `relu-2`, ...
            patterns_of_calls = (pattern, re.sub(r"-\d+$", "", pattern))
            if not any(
                matches(name, each) for name in (*modules, *possible) for each in patterns_of_calls
            ):
                raise SelectionError(
                    f"Expected every pattern of `{argument}` to match a layer, but {pattern!r} "
                    f"can match none. Modules there are: {listed(modules)}; a functional call is "
                    f"named after its module and the function, as in 'block.relu'."
                )


def listed(names: Sequence[str]) -> str:
    """Return names for an error message, the first of very many."""
    shown = [name for name in names if name][:_LISTED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 1 else "") if shown else "none"
