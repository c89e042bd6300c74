"""Why some weights cannot be edited: they are shared, frozen, sharded, quantised, or computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.remainder import remainder
from lightning_deadunits.reinit.running.probe import Recording
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.surgery.verification import allowed
from lightning_deadunits.reinit.tracing import Part, UnitTrace
from lightning_deadunits.reinit.values import channel_of

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


def loudness(
    session: Session, training: Recording, unit: UnitKey, trace: UnitTrace, tolerance: float | None
) -> str | None:
    """Say why a unit cannot be silenced although it counts as dead, None if it can."""
    layer, number = unit
    for recorded, mode in ((session.recorded, ""), (training, " in training mode")):
        if layer not in recorded.sites:
            continue
        dims, activation = recorded.sites[layer]
        loudest = float(channel_of(activation, dims, number).abs().max())
        if loudest == 0.0:
            continue
        for part in trace.reads:
            call = recorded.calls[part.index] if part.index < len(recorded.calls) else None
            if call is None or call.out is None or part.role != "weight":
                continue
            # Less than the sum over a kernel's taps: what it lets pass, verification judges.
            weights = part.weights.read(part.weights.parameter).float().abs()
            change = loudest * float(weights.max()) / max(float(call.out.abs().max()), 1e-30)
            if change > allowed(call.out.dtype, tolerance):
                return (
                    f"it is not silent enough{mode} (up to {loudest:.1e}): without it {call.title} "
                    f"would change by {change:.1e} of its largest value"
                )
    return None


def editable(
    session: Session, training: Recording, memory: OptimizerMemory, trace: UnitTrace
) -> UnitTrace | str:
    """Return what of a trace can be edited, or why that is too little.

    What makes a unit may be left as it is in part, if it is frozen, tied or shared; what reads it
    may not.
    """
    if not any(part.role in ("weight", "scale") for part in trace.makes):
        return "the weights that make it are no parameters of the model"
    left: dict[Part, str] = {}
    for part in (*trace.makes, *trace.reads):
        if (reason := _foreign_refusal(session, part)) is not None:
            return reason
        if (reason := _claim(session, training, part)) is not None:
            if part in trace.reads:
                return reason
            left[part] = reason
        elif (reason := _memory_refusal(session, memory, part)) is not None:
            return reason
    return remainder(session, training, trace, left) if left else trace


def _foreign_refusal(session: Session, part: Part) -> str | None:
    reason = _foreign(parameter := part.weights.parameter)
    return None if reason is None else f"{session.parameters.named(parameter).names[0]} is {reason}"


def _claim(session: Session, training: Recording, part: Part) -> str | None:
    """Say why weights are not the unit's alone to change, None if they are."""
    parameter = part.weights.parameter
    names = session.parameters.named(parameter).names
    if len(names) > 1:
        return f"{names[0]} is tied to {', '.join(names[1:])}"
    if not parameter.requires_grad:
        return f"{names[0]} is frozen"
    if (others := _others(session, training, part)) is not None:
        return f"{names[0]} is used more than once: {others}"
    return None


def _memory_refusal(session: Session, memory: OptimizerMemory, part: Part) -> str | None:
    parameter = part.weights.parameter
    if (reason := memory.refusal(parameter)) is None:
        return None
    name = session.parameters.named(parameter).names[0]
    return f"{name} cannot be forgotten in part: {reason}"


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
    return None


def _others(session: Session, training: Recording, part: Part) -> str | None:
    """Name the calls that are given the same weights, beside the one that the part is of."""
    calls = []
    for recorded in (session.recorded, training):
        uses = [use for use in recorded.uses if use.parameter is part.weights.parameter]
        # Most weights are used once, as a whole.
        overlapping = [
            u for u in uses if len(uses) == 1 or session.parameters.meet(u.view, part.weights)
        ]
        calls.append(Counter(recorded.calls[use.call].title for use in overlapping))
    if max(counts.total() for counts in calls) <= 1:
        return None
    return "by " + " and ".join(_listed((calls[0] | calls[1]).elements()))


def _listed(titles: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(titles))
