"""Which functions and modules are activations, and whether they can be zero at rest.

``exact``
    Exactly zero for a whole range of inputs (ReLU and its kin): a unit can die, and a zero is a
    zero.
``smooth``
    Tends to zero for very negative inputs (GELU, SiLU): a dead unit outputs tiny values. They
    count as zero up to ``SMOOTH_ATOL``.
``never``
    Not zero at rest (LeakyReLU, Tanh, Sigmoid): tracked only when asked for by name with an
    ``atol``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["exact", "smooth", "never"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SMOOTH_ATOL = 1e-3
"""What counts as zero for a smooth activation: GELU is below it from -3.5 on, SiLU from -9.1."""

_EXACT = (
    (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    (F.relu6, F.hardswish, F.hardsigmoid, F.softshrink, F.hardshrink),
    (torch.hardshrink, Tensor.hardshrink, torch.rnn_relu_cell),
)
_SMOOTH = ((F.gelu, F.silu, F.mish, F.softplus),)
_NEVER = (
    (F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_),
    (torch.selu, torch.selu_, torch.celu, torch.celu_, F.prelu, torch.prelu, Tensor.prelu),
    (F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_, F.softsign, F.tanhshrink, F.logsigmoid, F.glu),
    (F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_),
    (F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_),
)


def _kinds() -> dict[Callable[..., Any], Kind]:
    table: dict[Callable[..., Any], Kind] = {}
    groups: tuple[tuple[Kind, Any], ...] = (
        ("exact", _EXACT),
        ("smooth", _SMOOTH),
        ("never", _NEVER),
    )
    for kind, families in groups:
        for family in families:
            table.update(dict.fromkeys(family, kind))
    return table


def _clamps_at_zero(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """``x.clamp(min=0)``: the only clamp that makes dead units; bounds may be positional."""
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return _is_number(low, 0) and (high is None or (_is_number(high) and high > 0))


def _hardtanh_at_zero(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return _is_number(args[1] if len(args) > 1 else kwargs.get("min_val", -1.0), 0)


def _threshold_to_zero(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return _is_number(args[2] if len(args) > 2 else kwargs.get("value"), 0)


def _leaky_of_slope_zero(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return _is_number(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01), 0)


def _is_number(value: Any, equal_to: float | None = None) -> bool:
    return isinstance(value, (int, float)) and (equal_to is None or value == equal_to)


_LEAKY = {F.leaky_relu, F.leaky_relu_}

FUNCTION_KINDS: dict[Callable[..., Any], Kind] = _kinds()

CLAMPS = (
    *(torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_),
    *(torch.clip, torch.clip_, Tensor.clip, Tensor.clip_),
    *(torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_),
)
"""Functions that bound values from below, by a number or by a tensor."""

BOUNDED: dict[Callable[..., Any], Callable[[tuple[Any, ...], Mapping[str, Any]], bool]] = {
    **dict.fromkeys(CLAMPS, _clamps_at_zero),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh_at_zero),
    **dict.fromkeys((F.threshold, torch.threshold, torch.threshold_), _threshold_to_zero),
    F.threshold_: _threshold_to_zero,  # type: ignore[attr-defined]  # missing in the stubs
}
"""Functions that are activations with some arguments only: exact if so, else not one at all."""

FUNCTION_NAMES: dict[Callable[..., Any], str] = {
    function: function.__name__.strip("_") for function in (*FUNCTION_KINDS, *BOUNDED)
}
"""How a functional activation is called in a layer's name: ``relu`` for ``x.relu_()``, too."""

_EXACT_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Softshrink, nn.Hardshrink)
_SMOOTH_MODULES = (nn.GELU, nn.SiLU, nn.Mish, nn.Softplus)
_NEVER_MODULES = (
    *(nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.PReLU, nn.RReLU, nn.Tanh, nn.Sigmoid),
    *(nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.GLU, nn.Hardtanh, nn.Threshold),
)


def plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of torch that an ATen operator stands for, itself if none.

    ``torch.export`` writes models in operators: ``aten.relu.default`` for ``torch.relu``.
    """
    name = str(getattr(function, "_opname", getattr(function, "_qualified_op_name", "")))
    name = name.removeprefix("aten::")
    for home in (torch, F, Tensor):
        named = getattr(home, name, None) if name else None
        if named in FUNCTION_NAMES or (named is not None and home is not Tensor):
            return cast(Callable[..., Any], named)
    return function


def function_kind(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Kind | None:
    """Return what kind of activation a call is, None for a call that is no activation."""
    kind = FUNCTION_KINDS.get(function)
    if kind == "never" and function in _LEAKY and _leaky_of_slope_zero(args, kwargs):
        return "exact"
    if kind is None and function in BOUNDED:
        return "exact" if BOUNDED[function](args, kwargs) else None
    return kind


def module_kind(module: nn.Module) -> Kind | None:
    """Return what kind of activation a module is, subclasses included, None if it is none."""
    if isinstance(module, nn.Hardtanh) and module.min_val == 0:
        return "exact"
    if isinstance(module, nn.LeakyReLU) and module.negative_slope == 0:
        return "exact"
    if isinstance(module, nn.Threshold) and module.value == 0:
        return "exact"
    if isinstance(module, _EXACT_MODULES):
        return "exact"
    if isinstance(module, _SMOOTH_MODULES):
        return "smooth"
    return "never" if isinstance(module, _NEVER_MODULES) else None


def zero_atol(kind: Kind, atol: float | None) -> float:
    """Return the magnitude up to which a value of this kind counts as zero."""
    if atol is not None:
        return atol
    return SMOOTH_ATOL if kind == "smooth" else 0.0
