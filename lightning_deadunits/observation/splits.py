"""Whether processes hold different units of one layer (tensor parallelism)."""

from __future__ import annotations

import sys

from torch import nn

REASON = "its units are split between processes (tensor parallelism), or may be so"


def is_split(model: nn.Module) -> bool:
    """Tell whether layers of a model compute with a part of their weights on each process.

    Under FSDP2 weights are DTensors too, but whole again by the time a layer computes.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None:
        return False
    gathered = {
        parameter
        for module in model.modules()
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
        for parameter in module.parameters()
    }
    return any(
        sum(not placement.is_replicate() for placement in parameter.placements)
        > (parameter in gathered)
        for parameter in model.parameters()
        if isinstance(parameter, tensors.DTensor)
    )
