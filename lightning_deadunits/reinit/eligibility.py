"""Which units can be re-initialised, with which weights; the others are refused with a reason.

Weights cannot be edited where they are frozen, tied, sharded, quantised, computed, or used by
something else. What makes a unit may be left as it is in part; what reads it may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey, channel_of
from lightning_deadunits.reinit.dataflow.trace import (
    Part,
    Trace,
    UnitTrace,
    other_uses,
    own_weights,
    refuse_with_group,
    trace,
)
from lightning_deadunits.reinit.ops.operation import Channel
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.surgery.verification import allowed

_SHARDING = {
    "FullyShardedDataParallel",
    "FSDPModule",
    "DeepSpeedEngine",
    "XlaFullyShardedDataParallel",
}


def model_refusal(model: nn.Module) -> str | None:
    """Say why no weight of a model can be edited, None if they can."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _SHARDING:
                return f"the model is sharded ({kind.__name__}): no process holds whole weights"
    for parameter in model.parameters():
        if (reason := _foreign(parameter)) is not None and "sharded" in reason:
            return f"the model is {reason}"
    return None


def eligible(
    passes: Passes,
    units: list[UnitKey],
    memory: OptimizerMemory,
    config: ReinitConfig,
    *,
    guess: bool = True,
) -> Trace:
    """Trace units, see :func:`trace`, and refuse those whose weights cannot be edited."""
    alive = passes.alive(units)
    found = trace(passes, [unit for unit in units if unit not in alive], guess=guess)
    planned = Trace({}, found.refused | alive)
    for unit, own in sorted(found.units.items()):
        fit = editable(passes, memory, own)
        if not isinstance(fit, str):
            fit = loudness(passes, unit, fit, config.tolerance) or fit
        if isinstance(fit, str):
            planned.refused[unit] = fit
        else:
            planned.units[unit] = fit
    refuse_with_group(planned.units, planned.refused, found.units | found.lost)
    return planned


def loudness(passes: Passes, unit: UnitKey, own: UnitTrace, tolerance: float | None) -> str | None:
    """Say why a unit cannot be silenced although it counts as dead, None if it can."""
    layer, number = unit
    for at in passes.of_layer(layer):
        spot = passes.spots[at]
        loudest = float(channel_of(spot.activation, spot.dims, number).abs().max())
        if loudest == 0.0:
            continue
        for part in own.reads:
            call = passes.calls[part.index]
            if call.tape != spot.tape or call.out is None or part.role != "weight":
                continue
            # Less than the sum over a kernel's taps: what it lets pass, verification judges.
            weights = part.weights.read(part.weights.parameter).float().abs()
            change = loudest * float(weights.max()) / max(float(call.out.abs().max()), 1e-30)
            if change > allowed(call.out.dtype, tolerance):
                mode = " in training mode" if passes.tapes[spot.tape].training else ""
                return (
                    f"it is not silent enough{mode} (up to {loudest:.1e}): without it {call.title} "
                    f"would change by {change:.1e} of its largest value"
                )
    return None


def editable(passes: Passes, memory: OptimizerMemory, own: UnitTrace) -> UnitTrace | str:
    """Return what of a trace can be edited, or why that is too little."""
    if not any(part.role in ("weight", "scale") for part in own.makes):
        return "the weights that make it are no parameters of the model"
    left: dict[Part, str] = {}
    for parts in own_weights(own):
        parameter = parts[0].weights.parameter
        name = passes.parameters.names(parameter)[0]
        if (reason := _foreign(parameter)) is not None:
            return f"{name} is {reason}"
        if (reason := _claim(passes, parts)) is not None:
            if any(part in own.reads for part in parts):
                return reason
            left |= dict.fromkeys(parts, reason)
        elif (reason := memory.refusal(parameter)) is not None:
            return f"{name} cannot be forgotten in part: {reason}"
    return remainder(passes, own, left) if left else own


def _claim(passes: Passes, parts: list[Part]) -> str | None:
    """Say why weights, of all these parts, are not the unit's alone to change; None if they are."""
    weights, calls = parts[0].weights, {part.index for part in parts}
    parameter = weights.parameter
    names = passes.parameters.names(parameter)
    if len(names) > 1:
        return f"{names[0]} is tied to {', '.join(names[1:])}"
    if not parameter.requires_grad:
        return f"{names[0]} is frozen"
    for number in passes.broken:
        if any(parameter is used for used in passes.tapes[number].parameters.values()):
            return f"{names[0]} is used in a recorded pass that cannot be replayed"
    if titles := other_uses(passes, weights, calls):
        return f"{names[0]} is used more than once: by {' and '.join(titles)}"
    return None


def _foreign(parameter: Tensor) -> str | None:
    """Say what kind of tensor a parameter is, if it is not a plain dense one."""
    if hasattr(parameter, "ds_id"):
        return "sharded by DeepSpeed"
    if "DTensor" in {
        kind.__name__ for kind in type(parameter).__mro__ + type(parameter.data).__mro__
    }:
        return "sharded (a DTensor)"
    if not parameter.is_floating_point():
        return f"quantised ({parameter.dtype})"
    if type(parameter.data) not in (Tensor, nn.Parameter) or type(parameter) is not nn.Parameter:
        return f"a {type(parameter).__name__}, whose elements may be quantised or elsewhere"
    if parameter.grad is not None and parameter.grad.is_sparse:
        return "one with sparse gradients"
    if any(
        not by and size > 1 for by, size in zip(parameter.stride(), parameter.shape, strict=True)
    ):
        return "expanded: one place in memory serves several of its elements"
    return None


def remainder(passes: Passes, own: UnitTrace, left: Mapping[Part, str]) -> UnitTrace | str:
    """Return a trace without what is to be left as it is, or why nothing is left of it.

    A norm behind weights that stay has a scale and a shift to revive the unit with, as in a
    pre-activation network, and right statistics already. A norm that is frozen itself may let a
    fresh row through. A bias alone may do, too. Which of it does, the example shows.
    """
    kept = [part for part in own.makes if part not in left]
    stays = {part.index for part in left if part.role == "weight"}
    statistics = dict(own.statistics)
    for norm, before in own.statistics.items():
        if before[0] in stays:
            del statistics[norm]
            # The norm would take back what is done before it.
            kept = [part for part in kept if not _between(passes, part, before, norm)]
    reason = next(iter(left.values()))
    if not kept:
        return reason
    frozen = {part.index for part in left} - {part.index for part in kept}
    fixed = {
        norm: before
        for norm, before in statistics.items()
        if norm[0] in frozen and _is_fixed(passes, norm)
    }
    fed = {norm: before for norm, before in statistics.items() if norm not in fixed}
    return replace(own, makes=kept, statistics=fed, fixed=fixed, left=reason)


def _between(passes: Passes, part: Part, before: Channel, norm: Channel) -> bool:
    """Tell whether weights add to a channel, or multiply it, on its way to a norm."""
    link = passes.calls[part.index].kind == "link"
    return part.index == before[0] or (link and before[0] < part.index < norm[0])


def _is_fixed(passes: Passes, norm: Channel) -> bool:
    """Tell whether a norm goes by its running statistics even in training."""
    running = passes.calls[norm[0]].running
    same = [
        call.fixed
        for call in passes.calls
        if passes.tapes[call.tape].training
        and running is not None
        and call.running is not None
        and call.running[0] is running[0]
    ]
    return bool(same) and all(same)
