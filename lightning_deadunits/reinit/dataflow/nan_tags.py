"""What calls make of tags, which are NaN: some would drop them, some would tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.private_api import is_functorch_tensor

_DROPPING = {
    *(torch.where, Tensor.where, torch.nan_to_num, Tensor.nan_to_num),
    *(torch.fmax, Tensor.fmax, torch.fmin, Tensor.fmin),
}
"""Value by value, these return what is no NaN although they are given one."""


_CHECKS = {
    **dict.fromkeys((torch.isnan, Tensor.isnan, torch.isinf, Tensor.isinf), False),
    **dict.fromkeys((torch.isfinite, Tensor.isfinite), True),
}
"""What the model is told of a tagged tensor, for it may refuse to go on with one."""


def with_tags(function: Callable[..., Any], out: Any, given: Iterable[Tensor]) -> Any:
    """Return a result as it should be for tags to get through: NaN stays, and is not told of."""
    if function in _CHECKS:
        return torch.full_like(out, _CHECKS[function])
    for tensor in given if function in _DROPPING else ():
        if tensor.is_floating_point() and isinstance(out, Tensor) and bool(tensor.isnan().any()):
            out = out.masked_fill(tensor.isnan(), torch.nan)
    return out


def is_readable(out: Any) -> bool:
    """Tell whether a result may hold values: no shape, and none of ``torch.vmap``'s, say."""
    if isinstance(out, Tensor):
        return not is_functorch_tensor(out)
    return isinstance(out, (tuple, list, dict)) and type(out) is not torch.Size
