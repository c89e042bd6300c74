"""Fresh incoming weights: drawn on the CPU in float32 as the layer itself would, seeded."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_deadunits.reinit.config import Init
from lightning_deadunits.reinit.dataflow.passes import Passes
from lightning_deadunits.reinit.dataflow.trace import Part

_MOST_LIVE = 256


class Draws:
    """Draws fresh values for weights; the same seed, step, layer and attempt give the same.

    Args:
        passes: The passes that the weights were traced in.
        init: Changes fresh weights, given those of live units; None to take them as drawn.
        seed: The user's seed.
        step: The training step.
        scales: How large parameters were when training began, by name.
    """

    def __init__(
        self,
        passes: Passes,
        init: Init | None,
        seed: int,
        step: int,
        scales: Mapping[str, float],
    ) -> None:
        self._passes, self._init, self._scales = passes, init, scales
        self._seed, self._step = seed, step
        self._homes = {
            id(parameter): (module, name)
            for module in passes.model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        self._modules: dict[tuple[int, str, int], dict[str, tuple[Tensor, Tensor]]] = {}

    def fresh(self, layer: str, attempt: int, parts: Sequence[Part]) -> list[Tensor]:
        """Return fresh values for the parts of one call that belong to units of one layer.

        Args:
            layer: Name of the layer whose units are revived.
            attempt: How often they were drawn before.
            parts: Parts of one call, all of one role.

        Returns:
            Values per part, float32 on the CPU.
        """
        role = parts[0].role
        if role in ("scale", "shift"):
            return [self._affine(part, attempt) for part in parts]
        # Every second draw is the mirror image of a silent one, which is all but sure to fire.
        sign = -1.0 if attempt % 2 else 1.0
        drawn = [sign * self._drawn(part, layer, attempt // 2) for part in parts]
        if role == "bias" or self._init is None:
            return drawn
        live = self._live(parts[0], {part.channel for part in parts})
        generator = torch.Generator().manual_seed(self._number(layer, attempt))
        changed = self._init(torch.stack(drawn), live, generator)
        if not isinstance(changed, Tensor) or changed.shape != (len(parts), len(drawn[0])):
            raise ValueError(
                f"Expected `init` to return a tensor of shape {(len(parts), len(drawn[0]))}, but "
                f"got {getattr(changed, 'shape', type(changed).__name__)}."
            )
        return list(changed.float().cpu())

    def _number(self, layer: str, attempt: int) -> int:
        text = f"{self._seed}/{self._step}/{layer}/{attempt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _drawn(self, part: Part, layer: str, attempt: int) -> Tensor:
        parameter = part.weights.parameter
        module, name = self._homes[id(parameter)]
        places = part.weights.positions.cpu()
        drawn = self._reset(module, layer, attempt).get(name)
        if part.role == "bias":
            return torch.zeros(len(places)) if drawn is None else drawn[0].flatten()[places]
        if drawn is None:
            fresh = self._uniform(part, f"{layer}/{name}", attempt)
            size = rms(fresh)
        else:
            fresh, size = drawn[0].flatten()[places], drawn[1]
        began = self._scales.get(self._passes.parameters.names(parameter)[0])
        own = rescaled(fresh, size, began)
        factor = float(rms(own) / rms(fresh)) if fresh.any() else 1.0
        return enlarged(own, float(size) * factor)

    def _uniform(self, part: Part, name: str, attempt: int) -> Tensor:
        """Draw for a parameter without ``reset_parameters``: the distribution of nn.Linear."""
        generator = torch.Generator().manual_seed(self._number(name, attempt) + part.channel)
        uniform = torch.rand(len(part.weights.positions), generator=generator) * 2 - 1
        return uniform / math.sqrt(max(1, len(uniform)))

    def _affine(self, part: Part, attempt: int) -> Tensor:
        neutral = 0.0
        if part.role == "scale":
            operation = self._passes.calls[part.index]
            factor = operation.kind == "link"
            assert operation.weight is not None
            neutral = float(operation.weight.detach().float().median()) if factor else 1.0
            # A LayerNorm's own pair may be all there is to draw: it mirrors what it normalises. A
            # factor does so every other time, for the weights before it may be mirrored, too.
            mirrored = (factor and attempt // 2 % 2) or (operation.mixes and attempt % 2)
            neutral *= -1.0 if mirrored else 1.0
        return torch.full((len(part.weights.positions),), neutral)

    def _reset(
        self, module: nn.Module, layer: str, attempt: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a module's parameters as its ``reset_parameters`` draws them, with their size."""
        key = (id(module), layer, attempt)
        if key not in self._modules:
            self._modules[key] = {}
            # Whatever a user's own method needs may be missing here; what is parametrised cannot
            # be copied.
            with suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
                clone = _without_tensors(module)
                torch.manual_seed(self._number(layer, attempt))
                clone.reset_parameters()  # type: ignore[operator]  # a module may have any
                self._modules[key] = {
                    name: (p.detach(), rms(p))
                    for name, p in clone._parameters.items()
                    if p is not None
                }
        return self._modules[key]

    def _live(self, part: Part, revived: set[int]) -> Tensor:
        """Return the incoming weights of live channels of the same call, at most 256 of them."""
        operation = self._passes.calls[part.index]
        assert operation.weight is not None
        channels = range(self._passes.width(part.index))
        live = [channel for channel in channels if channel not in revived][:_MOST_LIVE]
        parameters = self._passes.parameters
        own = (parameters.part(operation.weight, operation.makes(channel)) for channel in live)
        rows = [weights.read(weights.parameter).float().cpu() for weights in own]
        return torch.stack(rows) if rows else torch.zeros(0, len(part.weights.positions))


def _without_tensors(module: nn.Module) -> nn.Module:
    """Return a copy of a module with parameters of zeros, float32 on the CPU, and nothing else."""
    clone = copy.copy(module)
    clone._parameters = {
        name: None if p is None else nn.Parameter(torch.zeros(p.shape, dtype=torch.float32))
        for name, p in module._parameters.items()
    }
    clone._modules, clone._buffers = {}, {}
    return clone


# --- how large weights are ----------------------------------------------------------------------


# A layer's `reset_parameters` knows nothing of what its author did afterwards, such as
# `nn.init.kaiming_normal_`, a gain, a transformer's 0.02. So fresh weights are as large as those
# when training began. On slowly-changing regression (Dohare et al. 2024, Nature 632:768) that is a
# factor of 2.4 in scale and 2 % of the final error (tests/benchmarks/continual.py).

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
    """Return the root mean square of a tensor's weights that are not 0, a float64 scalar.

    Rows of zeros, of units that were born dead or pruned, tell nothing of the others' scale.
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    size: Tensor = torch.linalg.vector_norm(tensor, dtype=dtype)
    return size.double() / tensor.count_nonzero().clamp(min=1).sqrt()


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
