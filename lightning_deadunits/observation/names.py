"""How layers are called: the qualified name of a module, free of what wrappers put into it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lightning_deadunits.arguments import given as said
from lightning_deadunits.observation.identity import Producer
from lightning_deadunits.observation.layer_names import LayerNames, aliases

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.-]")
_LAYERS_OWN = {"weight", "bias", "weight_g", "weight_v", "weight_orig"}


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


def weights_of(names: Mapping[nn.Module, str]) -> dict[Tensor, Producer]:
    """Return every parameter with the name of what it makes units for.

    That is its module where the parameters of a module make one set of units (torch's own layers,
    and those that call it `weight` or `bias`), however they are parametrised; else its own name.

    Args:
        names: The modules by name, see :func:`module_names`.
    """
    found: dict[Tensor, Producer] = {}
    places: dict[str, int] = {}

    def note(weight: Tensor, name: str) -> None:
        if weight not in found:
            found[weight] = Producer(False, places.setdefault(name, len(places)), name)

    for module, path in names.items():
        home, parametrised, which = path.partition(".parametrizations.")
        layer = type(module).__module__.startswith("torch.nn.modules.")
        layer = layer and not isinstance(module, (nn.ParameterDict, nn.ParameterList))
        for own, parameter in module._parameters.items():
            name = which.partition(".")[0] if parametrised else own
            whole = home and (layer or name in _LAYERS_OWN)
            if parameter is not None:
                note(parameter, home if whole else clean(f"{home}.{name}".lstrip(".")))
        for name, weight in _kept_apart(module):
            note(weight, clean(f"{home}.{name}".lstrip(".")))
    return found


def _kept_apart(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield weights in plain containers, such as an ensemble's from ``stack_module_state``."""
    for name, value in vars(module).items():
        if name[0] == "_" or not isinstance(value, (dict, list, tuple)):
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, Tensor) and item.is_leaf and item.requires_grad:
                yield f"{name}.{key}".removesuffix(".weight").removesuffix(".bias"), item


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


def selects(key: str, layers: Sequence[str] | None, exclude: Sequence[str] | None) -> bool:
    """Tell whether a layer is to be tracked, whichever of its names a pattern is about."""
    return _selects_any(aliases(key), layers, exclude)


def selects_named(
    name: str,
    names: LayerNames | None,
    layers: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> bool:
    """Tell the same of a layer by the name that it has in reports."""
    if layers is None and exclude is None:
        return True
    return _selects_any({name} if names is None else names.aliases(name), layers, exclude)


def _selects_any(
    names: Collection[str], layers: Sequence[str] | None, exclude: Sequence[str] | None
) -> bool:
    wanted = layers is None or any(matches(name, pattern) for name in names for pattern in layers)
    return wanted and not any(matches(n, pattern) for n in names for pattern in exclude or ())


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern is about a name."""
    return fnmatchcase(name, pattern)
