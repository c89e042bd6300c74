"""How large the weights were when training began: fresh ones are to be as large.

A layer's ``reset_parameters`` knows nothing of what its author did afterwards
(``nn.init.kaiming_normal_``, a gain, a transformer's 0.02). On slowly-changing regression (Dohare
et al. 2024, Nature 632:768) that is a factor of 2.4 in scale and 2 % of the final error
(``tests/benchmarks/continual.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_CLOSE, _FAR = 1.25, 4.0
"""Factors: nearer to 1 it is the same distribution; further off it may be what killed the units."""


def initial_scales(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """Return the root mean square of every weight that is no vector, by name.

    Args:
        parameters: Name and parameter; lazy, sparse and quantised ones are left out.
    """
    dense = [(name, p.detach()) for name, p in parameters if not is_lazy(p) and _is_plain(p)]
    weights = [(name, p) for name, p in dense if p.ndim > 1 and p.is_floating_point()]
    if not weights:
        return {}
    home = weights[0][1].device  # a model may be on several: one transfer for all
    sizes = torch.stack([rms(weight).to(home) for _, weight in weights]).tolist()
    return {name: size for (name, _), size in zip(weights, sizes, strict=True)}


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter.data) is Tensor and parameter.layout is torch.strided


def rms(tensor: Tensor) -> Tensor:
    """Return the root mean square of a tensor, a float64 scalar."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    size: Tensor = torch.linalg.vector_norm(tensor, dtype=dtype)
    return size.double().div(max(1, tensor.numel()) ** 0.5)


def rescaled(fresh: Tensor, drawn: Tensor, began: float | None) -> Tensor:
    """Scale fresh weights to what the layer began with, unless that tells nothing.

    Args:
        fresh: Some of the weights that ``reset_parameters`` has drawn.
        drawn: Root mean square of all that it has drawn.
        began: Root mean square of the layer's weights when training began, None if not known.
    """
    if not began or not drawn:
        return fresh
    factor = began / float(drawn)
    same = 1 / _CLOSE < factor < _CLOSE
    return fresh * factor if 1 / _FAR < factor < _FAR and not same else fresh


def enlarged(fresh: Tensor, size: float) -> Tensor:
    """Scale fresh weights of a unit up to Kaiming's scale for ReLU, where the layer's is smaller.

    What `nn.Linear` and `nn.Conv2d` draw shrinks a signal to 0.4 of its size, layer by layer. Among
    trained neighbours, and with outgoing weights that start from zero and learn in proportion to
    what the unit gives, such a unit comes back late: 0.8 to 2.4 points of accuracy below a healthy
    start after 30 epochs of digits, at most 0.5 at Kaiming's scale
    (``tests/benchmarks/fresh_scale.py``).

    Args:
        fresh: All weights that the unit has in one parameter.
        size: Root mean square of the distribution that they are from.
    """
    if not size or not len(fresh):
        return fresh
    factor = math.sqrt(2 / len(fresh)) / size
    # Much smaller ones are meant so: a residual branch that starts at nothing, for example.
    return fresh * factor if _CLOSE < factor < _FAR else fresh
