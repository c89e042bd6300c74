"""What one call is given, and what it does with its weights, apart from the activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_deadunits.reinit.parameters import Parameters


@dataclass(frozen=True, eq=False)
class Given:
    """One call of a function, what it returned, and the parameters of the model."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    parameters: Parameters

    def bound(self, /, *names: str, **renamed: str) -> list[Any]:
        """Return the arguments of these names, None for those that were not given.

        Args:
            *names: The names, in the order of the positional arguments.
            **renamed: Other names that some of them may have.
        """
        named = {renamed.get(name, name): value for name, value in self.kwargs.items()}
        given = dict(zip(names, self.args, strict=False)) | named
        given.setdefault("input", given.get("self"))
        return [given.get(name) for name in names]

    def owns(self, value: Any) -> bool:
        """Tell whether a value is a parameter, or a part of one."""
        return self.parameters.owner(value) is not None


Where = dict[int, list[int]]
"""Indices per axis of a weight; axes that are not named are taken whole."""

Channel = tuple[int, int]
"""A call, and a channel of what it reads or makes."""

Kind = Literal["contraction", "norm", "link", "product", "opaque"]


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of a function that has weights, or that multiplies activations.

    Attributes:
        kind: ``contraction`` sums over channels with weights (a linear layer, a convolution,
            ``x @ w``): what reads units and what makes them. ``norm`` normalises; it may mix
            channels (LayerNorm) or not (BatchNorm), and may have a scale and a shift per channel.
            ``link`` adds a parameter or multiplies with it, value by value, or only moves or
            chooses values (``torch.cat`` with a class token). ``product`` multiplies activations.
            ``opaque`` is anything else that is given a parameter.
        function: The function that was called.
        read_axes: Axes of what it reads that index the weights.
        read_sizes: Their sizes.
        made_axes: Axes of its result that index the weights.
        made_sizes: Their sizes.
        weight: The weight, as it was given.
        bias: The bias, as it was given.
        reads: Which weights multiply a channel of what it reads.
        makes: Which weights make a channel of its result.
        biases: Which elements of the bias belong to a channel of its result.
        mixes: Whether a norm mixes channels.
        scales: Whether a link multiplies or divides.
        running: Running mean and variance of a batch norm.
        fixed: Whether it normalises by those, rather than by what it reads.
        again: Makes the call of a norm anew; it holds on to the activations that were read.
        module: Name of the module whose forward called it, when it was recorded.
        out: What it returned then, None if that was not one floating point tensor.
        tape: Number of the tape that it is on.
        uses: The parameters that it was given, and which view of each.
    """

    kind: Kind
    function: Callable[..., Any]
    read_axes: tuple[int, ...] = ()
    read_sizes: tuple[int, ...] = ()
    made_axes: tuple[int, ...] = ()
    made_sizes: tuple[int, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None
    reads: Callable[[int], Where] = lambda channel: {}
    makes: Callable[[int], Where] = lambda channel: {}
    biases: Callable[[int], Where] = lambda channel: {0: [channel]}
    mixes: bool = False
    scales: bool = False
    running: tuple[Tensor, Tensor] | None = None
    fixed: bool = False
    again: Callable[[], Any] | None = None
    module: str = ""
    out: Tensor | None = None
    tape: int = 0
    uses: Sequence[tuple[Tensor, Tensor]] = ()

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", self.function)).strip("_")

    @property
    def title(self) -> str:
        """How it is called in reports."""
        return f"{self.module} ({self.name})" if self.module else self.name

    @property
    def reads_by_scale(self) -> bool:
        """Whether it is a norm that can be made deaf to a channel by its scale."""
        return self.kind == "norm" and not self.mixes and None not in (self.weight, self.bias)

    @property
    def reads_by_factor(self) -> bool:
        """Whether it multiplies each channel with numbers of its own, which may be zero."""
        return self.kind == "link" and "mul" in self.name and bool(self.read_axes)

    @property
    def makes_by_factor(self) -> bool:
        """Whether it gives each channel a scale of its own, as a norm written by hand does."""
        return self.kind == "link" and self.scales and bool(self.made_axes)

    @property
    def passes_on(self) -> bool:
        """Whether channels keep apart in it, and no weight of its own can make it deaf to one."""
        alone = self.kind == "norm" and not self.mixes and not self.reads_by_scale
        return alone or self.kind in ("link", "product")


Described = tuple[Operation, list[Tensor]]
"""What a call does, and the activations that it reads."""


def unravel(channel: int, sizes: list[int] | tuple[int, ...]) -> list[int]:
    """Return the index per axis of a channel that several axes index together."""
    index = []
    for size in reversed(sizes):
        channel, last = divmod(channel, size)
        index.append(last)
    return index[::-1]
