"""How layers are called: the qualified name of a module, free of what wrappers put into it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lightning_deadunits.arguments import given as said

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.-]")
_CALL = re.compile(r"-\d+$")


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Return every module of a model with its qualified name, the model itself with ``""``.

    ``torch.compile``, FSDP and activation checkpointing wrap modules; their part of the name is
    left out, so that a layer has one name however it is run.
    """
    names: dict[nn.Module, str] = {}
    owners: dict[str, str] = {}
    for path, module in model.named_modules():
        own = _unwrapped(path)
        name = base = clean(path)
        number = 1
        # Two names that differ in what a tag cannot hold must not become one.
        while owners.setdefault(name, own) != own:
            number += 1
            name = f"{base}_{number}"
        names[module] = name
    return names


def clean(name: str) -> str:
    """Drop wrappers from a qualified name and replace what TensorBoard tags cannot hold."""
    return _FORBIDDEN.sub("_", _unwrapped(name))


def _unwrapped(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def called(base: str, earlier_calls: int) -> str:
    """Name one call of a layer: the second and later ones get a suffix.

    Example:
        >>> called("layer1.0.relu", 0), called("layer1.0.relu", 1)
        ('layer1.0.relu', 'layer1.0.relu-2')
    """
    return base if earlier_calls == 0 else f"{base}-{earlier_calls + 1}"


def as_patterns(argument: str, given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Return one or several ``fnmatch`` patterns as a tuple, None as None.

    Raises:
        TypeError: If something else than strings is given.
        ValueError: If an empty collection or an empty pattern is given.
    """
    if given is None:
        return None
    listed = isinstance(given, Iterable) and not isinstance(given, (nn.Module, Tensor, dict))
    single = isinstance(given, str) or not listed
    patterns: tuple[Any, ...] = (given,) if single else tuple(given)
    wrong = next((it for it in patterns if not isinstance(it, str)), None)
    if wrong is not None:
        way_out = " Give its name, as in `model.named_modules()`."
        raise TypeError(
            f"Expected `{argument}` to be one or several names or patterns, as in 'layer1.*', but "
            f"got {said(wrong)}.{way_out if isinstance(wrong, nn.Module) else ''}"
        )
    if not patterns or not all(patterns):
        raise ValueError(
            f"Expected `{argument}` to be non-empty names or patterns, but got {said(given)}. "
            f"Leave it out to {'track' if argument == 'layers' else 'exclude'} "
            f"{'every' if argument == 'layers' else 'no'} layer."
        )
    return patterns


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern selects a layer; one for a layer selects its later calls too."""
    return fnmatchcase(name, pattern) or fnmatchcase(_CALL.sub("", name), pattern)


def selects(name: str, layers: Sequence[str] | None, exclude: Sequence[str] | None) -> bool:
    """Tell whether a layer is to be tracked."""
    wanted = layers is None or any(matches(name, pattern) for pattern in layers)
    return wanted and not any(matches(name, pattern) for pattern in exclude or ())
