"""Which results cannot be looked at, and which calls would drop a mark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

DROPPING = {
    *(torch.where, Tensor.where, torch.nan_to_num, Tensor.nan_to_num),
    *(torch.fmax, Tensor.fmax, torch.fmin, Tensor.fmin),
}
"""Value by value, these return what is no NaN although they are given one."""


def with_marks(out: Any, given: Iterable[Tensor]) -> Any:
    """Return a result that is NaN wherever one of the tensors that were given is."""
    for tensor in given:
        if tensor.is_floating_point() and isinstance(out, Tensor) and bool(tensor.isnan().any()):
            out = out.masked_fill(tensor.isnan(), torch.nan)
    return out


def is_readable(out: Any) -> bool:
    """Tell whether a result may hold values: no shape, and none of ``torch.vmap``'s, say."""
    if isinstance(out, Tensor):
        return not torch._C._functorch.is_functorch_wrapped_tensor(out)
    return isinstance(out, (tuple, list, dict)) and type(out) is not torch.Size
