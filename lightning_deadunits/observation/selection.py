"""Which layers were asked for, checked against those there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lightning_deadunits.arguments import check_number, near
from lightning_deadunits.observation.activations import FUNCTION_NAMES, module_kind
from lightning_deadunits.observation.layer_names import aliases, names_of
from lightning_deadunits.observation.lineage.gates import GATES
from lightning_deadunits.observation.names import matches, module_names, selects, weights_of

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
    aside: Iterable[str] = (),
) -> None:
    """Raise unless there are layers, and every pattern matches one of them.

    Args:
        found: Keys of all the layers that ran, those included that no pattern selects.
        never_zero: Keys of the activations that ran and are never zero at rest.
        layers: Patterns of the layers to track.
        exclude: Patterns of the layers not to track.
        aside: Activations that ran on what is no layer's output.

    Raises:
        SelectionError: With the names there are.
    """
    names, smooth = list(found), list(never_zero)
    check_matched(names, smooth, layers, exclude)
    if not names and (ran := list(aside)):
        raise SelectionError(
            f"Expected a model with an activation of what its layers make, but those that can be "
            f"zero ran on something else (attention scores, a loss, parameters): {listed(ran)}. "
            f"Give its full name in `layers` to have one of them counted all the same."
        )
    if not names:
        raise SelectionError(
            "Expected a model with an activation that can be zero (ReLU, GELU, SiLU, Hardswish, "
            "x.clamp(min=0), ...), but none ran. LeakyReLU, Tanh, Sigmoid and the like are never "
            "zero at rest: name them in `layers` and say with `atol` what counts as zero."
        )
    if not any(selects(key, layers, exclude) for key in (*names, *smooth)):
        wanted = "any" if layers is None else f"those of `layers` = {list(layers)}"
        raise SelectionError(
            f"Expected `exclude` to leave a layer of {wanted}, but {list(exclude or ())} matches "
            f"all of them: {listed(names_of(names))}."
        )


def check_matched(
    names: Sequence[str],
    smooth: Sequence[str],
    layers: Sequence[str] | None,
    exclude: Sequence[str] | None,
    of: str = "",
) -> None:
    """Raise unless every pattern matches a layer that ran.

    Args:
        names: Keys of all the layers that ran.
        smooth: Keys of the activations that ran and are never zero at rest.
        layers: Patterns of the layers that are meant.
        exclude: Patterns of the layers that are not.
        of: What stands before the names of these arguments.

    Raises:
        SelectionError: With the names there are.
    """
    for argument, patterns in (("layers", layers), ("exclude", exclude)):
        for pattern in patterns or ():
            if any(matches(name, pattern) for key in names for name in aliases(key)):
                continue
            if any(matches(name, pattern) for key in smooth for name in aliases(key)):
                if argument == "exclude":
                    continue
                raise SelectionError(
                    f"Expected an `atol` for {pattern!r}: {listed(names_of(smooth))} are never "
                    f"exactly zero at rest, so it must be said what counts as zero."
                )
            raise SelectionError(
                f"Expected every pattern of `{of}{argument}` to match a layer, but {pattern!r} "
                f"matches none.{near(pattern, names_of(names))} Layers there are: "
                f"{listed(names_of(names))}."
            )


def check_possible(
    model: nn.Module,
    layers: Sequence[str] | None,
    exclude: Sequence[str] | None,
    of: str = "",
) -> None:
    """Raise for a pattern that no layer can match, whatever the forward pass will call.

    Args:
        model: The model.
        layers: Patterns of the layers that are meant.
        exclude: Patterns of the layers that are not.
        of: What stands before the names of these arguments.

    Raises:
        SelectionError: With the modules there are.
    """
    if layers is None and exclude is None:
        return
    modules = list(dict.fromkeys(module_names(model).values()))
    activations = [name for it, name in module_names(model).items() if module_kind(it)]
    others = [name for name in modules if name not in activations]
    there_are = f"Activations there are: {listed(activations)}; other modules: {listed(others)}"
    functions = sorted({*FUNCTION_NAMES.values(), *GATES.values()})
    possible = [f"{module}.{name}".lstrip(".") for module in modules for name in functions]
    producers = {producer.name for producer in weights_of(module_names(model)).values()}
    for argument, patterns in (("layers", layers), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(
                any(matches(name, base) for name in (*modules, *possible))
                for base in _bases(pattern, producers)
            ):
                raise SelectionError(
                    f"Expected every pattern of `{of}{argument}` to match a layer, but {pattern!r} "
                    f"can match none.{near(pattern, activations or modules)} {there_are}; a "
                    f"functional call is named after its module and the function, as in "
                    f"'block.relu'."
                )


def _bases(pattern: str, producers: Iterable[str]) -> Iterator[str]:
    """Yield what may be the activation's part of a pattern: ``relu`` of ``relu.bn1-neg``."""
    plain = pattern.partition("-")[0]
    yield from (pattern, plain)
    words = plain.split(".")
    for cut in range(1, len(words)):
        behind = ".".join(words[cut:])
        if any(fnmatchcase(f".{name}", f"*.{behind}") or _is_row(name, behind)
               for name in producers):  # fmt: skip
            yield ".".join(words[:cut])


def _is_row(name: str, behind: str) -> bool:
    """Tell whether a name is that of one of several stacked weights: ``w.3`` of ``w``."""
    stem, _, row = behind.rpartition(".")
    return bool(stem) and row.isdigit() and fnmatchcase(f".{name}", f"*.{stem}")


def listed(names: Sequence[str]) -> str:
    """Return names for an error message, the first of very many."""
    shown = [name for name in names if name][:_LISTED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 1 else "") if shown else "none"
