"""Meets every activation and every call with weights of a pass, and may change what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.layer_names import aliases
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sites import SiteMode
from lightning_deadunits.reinit.operations import (
    PRODUCTS,
    Copies,
    Given,
    Operation,
    describe,
    tensors_of,
)
from lightning_deadunits.reinit.parameters import Parameters
from lightning_deadunits.reinit.running.calls import Call, Use, shapes_of, titles
from lightning_deadunits.reinit.running.marks import is_readable, with_marks


class PathChangedError(Exception):
    """A pass made other calls than the recorded one: the model's control flow depends on values."""


class Visitor:
    """What is done with the activations and calls of one pass; by default nothing.

    Attributes:
        held: Recorded pass whose contractions need not be computed anew, for they are replaced.
        uses_nan: Whether it marks values by NaN, which no call may drop.
    """

    held: Recording | None = None
    uses_nan: bool = False

    def site(self, site: Site, output: Tensor) -> Tensor:
        """Receive an activation; what is returned takes its place."""
        return output

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """Receive a call with weights; what is returned takes its result's place."""
        return out


class Probe(SiteMode):
    """Runs visitors; numbers the calls with weights, the same in every pass.

    Args:
        model: The model.
        layers: Names of the layers whose activations are visited.
        parameters: Those of the model.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], parameters: Parameters) -> None:
        super().__init__(model, tuple(layers), never_zero=True)
        self.parameters = parameters
        self.copies = Copies(parameters)
        self.visitor = Visitor()
        self.index = 0

    @property
    def running(self) -> str:
        """Name of the module whose forward is running."""
        return self._frames[-1].name if self._frames else ""

    def start_pass(self) -> None:
        """Number the calls anew."""
        super().start_pass()
        self.copies.forget()
        self.index = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Spare the work of a contraction whose result is known and wanted as it was."""
        recorded = self.visitor.held
        if recorded is None or func not in PRODUCTS or self.index >= len(recorded.calls):
            return super().__torch_function__(func, types, args, kwargs)
        call, given = recorded.calls[self.index], kwargs or {}
        if (
            call.operation.kind != "contraction"
            or call.out is None
            or call.shapes != shapes_of(func, args, given)
        ):
            return super().__torch_function__(func, types, args, kwargs)
        return self.on_call(func, args, given, call.out)

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Hand an activation on; what is done to it is no call of the model."""
        asked = sorted(aliases(site.name) & set(self.layers or ()), key=len)
        site = site._replace(name=asked[-1] if asked else site.name)
        with torch._C.DisableTorchFunction():
            return self.visitor.site(site, output)

    def on_call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> Any:
        """Hand a call on if it has weights."""
        if isinstance(self.visitor, Recording) and isinstance(out, Tensor):
            self.visitor.functions.append(function)
        if not is_readable(out):
            return out
        if self.visitor.uses_nan:
            out = with_marks(function, out, tensors_of((args, kwargs)))
        if self.copies.follow(function, args, kwargs, out):
            return out
        resolved = self.copies.resolved(args), self.copies.resolved(dict(kwargs))
        described = describe(Given(function, *resolved, out, self.parameters))
        if described is None:
            return out
        operation, reads = described
        if operation.kind == "norm":
            operation = replace(operation, again=lambda: function(*args, **kwargs))
        index, self.index = self.index, self.index + 1
        if isinstance(self.visitor, Recording):
            self.visitor.record(self, index, operation, resolved, out)
        result = self.visitor.operation(index, operation, reads, out)
        if result is not out and isinstance(result, Tensor):
            # What takes the place of a tensor has its unit axes, too.
            with suppress(Exception):
                self.lineage.follow(function, args, kwargs, result)
        return result


class Recording(Visitor):
    """Records a pass.

    Attributes:
        functions: All functions that returned a tensor, but for visited activations.
        calls: The calls with weights.
        uses: Which parameters were given to them.
        sites: Unit axes and activation of every visited layer.
        reached: How many calls came before a visited layer.
        outputs: What the model returned.
    """

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []
        self.calls: list[Call] = []
        self.uses: list[Use] = []
        self.sites: dict[str, tuple[tuple[int, ...], Tensor]] = {}
        self.reached: dict[str, int] = {}
        self.outputs: list[Tensor] = []

    def record(self, probe: Probe, index: int, operation: Operation, given: Any, out: Any) -> None:
        """Take a call down."""
        single = isinstance(out, Tensor) and out.is_floating_point()
        kept = replace(operation, again=None)
        shapes = shapes_of(operation.function, *given)
        self.calls.append(Call(kept, probe.running, out.clone() if single else None, shapes))
        for tensor in tensors_of(given):
            owner = probe.parameters.owner(tensor)
            if owner is not None:
                self.uses.append(Use(index, owner, tensor))

    def site(self, site: Site, output: Tensor) -> Tensor:
        """Take an activation down."""
        self.sites[site.name] = (site.unit_dims, output.clone())
        self.reached[site.name] = len(self.calls)
        return output

    def num_units(self, layer: str) -> int:
        """Return the number of units of a visited layer."""
        axes, activation = self.sites[layer]
        return torch.Size([activation.shape[axis] for axis in axes]).numel()

    def counterparts(self, other: Recording, indices: Iterable[int]) -> set[int]:
        """Return the calls that are those of another pass, which may have made more or fewer.

        Args:
            other: The other pass.
            indices: Calls of that pass.
        """
        own = {key: index for index, key in enumerate(titles(self.calls))}
        theirs = dict(enumerate(titles(other.calls)))
        return {own[theirs[index]] for index in indices if theirs[index] in own}

    def call(self, index: int, operation: Operation, out: Any) -> Call:
        """Return the recorded call that a later pass makes again.

        Raises:
            PathChangedError: If it makes another one.
        """
        if index >= len(self.calls):
            raise PathChangedError
        call = self.calls[index]
        same = call.operation.function is operation.function
        if same and call.out is not None:
            same = isinstance(out, Tensor) and out.shape == call.out.shape
        if not same:
            raise PathChangedError
        return call
