"""What a call does with parameters: which channels it reads and makes, by which weights.

``contraction``
    Sums over channels with weights (a linear layer, a convolution, ``x @ w``): what reads units
    and what makes them.
``norm``
    Normalises; it may mix channels (LayerNorm) or not (BatchNorm), and may have a scale and a
    shift of its own per channel.
``link``
    Adds a parameter or multiplies with it, value by value.
    Calls that only move or choose values (``torch.cat`` with a class token) are links, too.
``opaque``
    Anything else that is given a parameter, and products of two activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.moves import MOVES
from lightning_deadunits.reinit.parameters import Parameters

Where = dict[int, list[int]]
"""Indices per axis of a weight; axes that are not named are taken whole."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of a function that has weights, without the activations it is given.

    Attributes:
        kind: See the module's docstring.
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
        running: Running mean and variance of a batch norm.
        again: Makes the call of a norm anew; it holds on to the activations that were read.
    """

    kind: Literal["contraction", "norm", "link", "opaque"]
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
    running: tuple[Tensor, Tensor] | None = None
    again: Callable[[], Any] | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__name__", self.function)).strip("_")

    @property
    def reads_by_scale(self) -> bool:
        """Whether it is a norm that can be made deaf to a channel by its scale."""
        return self.kind == "norm" and not self.mixes and None not in (self.weight, self.bias)


Described = tuple[Operation, list[Tensor]]


def describe(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    out: Any,
    parameters: Parameters,
) -> Described | None:
    """Return what a call does and the activations it reads, None if it has no weights.

    Args:
        function: The function that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: What it returned.
        parameters: Those of the model.
    """
    describer = _DESCRIBERS.get(function)
    described = describer(function, args, kwargs, out, parameters) if describer else None
    return described or _opaque(function, args, kwargs, out, parameters)


def _opaque(
    function: Callable[..., Any], args: Any, kwargs: Any, out: Any, parameters: Parameters
) -> Described | None:
    given = [tensor for tensor in tensors_of((args, kwargs)) if tensor.is_floating_point()]
    activations = [tensor for tensor in given if parameters.owner(tensor) is None]
    product = function in PRODUCTS and len(activations) > 1
    if not any(tensor.is_floating_point() for tensor in tensors_of(out)):
        return None
    if not product and (len(activations) == len(given) or _is_view(out, parameters)):
        return None
    kind: Literal["link", "opaque"] = "link" if function in _MOVES else "opaque"
    return Operation(kind, function), activations


def _is_view(out: Any, parameters: Parameters) -> bool:
    """Tell whether a call only returned part of a parameter."""
    return all(parameters.owner(tensor) is not None for tensor in tensors_of(out))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)


# --- products -------------------------------------------------------------------------------


def _lettered(
    function: Callable[..., Any],
    kind: Literal["contraction", "link"],
    letters: tuple[str, str, str],
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
) -> Described:
    """Describe a product by the letters of its axes, as in ``torch.einsum``."""
    of_x, of_weight, of_out = letters
    place = {letter: axis for axis, letter in enumerate(of_weight) if weight.shape[axis] > 1}
    read = [axis for axis, letter in enumerate(of_x) if letter in place]
    made = [axis for axis, letter in enumerate(of_out) if letter in place]
    read_sizes, made_sizes = [x.shape[a] for a in read], [out.shape[a] for a in made]

    def reads(channel: int) -> Where:
        index = unravel(channel, read_sizes)
        return {place[of_x[axis]]: [i] for axis, i in zip(read, index, strict=True)}

    def makes(channel: int) -> Where:
        index = unravel(channel, made_sizes)
        return {place[of_out[axis]]: [i] for axis, i in zip(made, index, strict=True)}

    def biases(channel: int) -> Where:
        assert bias is not None
        index = dict(zip(made, unravel(channel, made_sizes), strict=True))
        shift = out.ndim - bias.ndim
        axes = [axis for axis in range(bias.ndim) if bias.shape[axis] > 1]
        return {axis: [index[axis + shift]] for axis in axes if axis + shift in index}

    operation = Operation(
        kind, function, tuple(read), tuple(read_sizes), tuple(made), tuple(made_sizes),
        weight, bias, reads, makes, biases,
    )  # fmt: skip
    return operation, [x]


def unravel(channel: int, sizes: list[int] | tuple[int, ...]) -> list[int]:
    """Return the index per axis of a channel that several axes index together."""
    index = []
    for size in reversed(sizes):
        channel, last = divmod(channel, size)
        index.append(last)
    return index[::-1]


_ABC = "abcdefghijklm"


def _linear(function: Any, args: Any, kwargs: Any, out: Tensor, p: Parameters) -> Described | None:
    x, weight, bias = _bound(("input", "weight", "bias"), args, kwargs)
    if p.owner(weight) is None or p.owner(x) is not None:
        return None
    batch = _ABC[: x.ndim - 1]
    letters = (batch + "k", "ok" if weight.ndim == 2 else "k", batch + "o"[: weight.ndim - 1])
    return _lettered(function, "contraction", letters, x, weight, out, bias)


def _matmul(function: Any, args: Any, kwargs: Any, out: Tensor, p: Parameters) -> Described | None:
    left, right = _bound(("input", "other"), args, _renamed(kwargs, mat2="other"))
    if function is Tensor.__rmatmul__:
        left, right = right, left
    return _product(function, left, right, out, p)


def _addmm(function: Any, args: Any, kwargs: Any, out: Tensor, p: Parameters) -> Described | None:
    names = ("input", "mat1", "mat2")
    bias, left, right = _bound(names, args, _renamed(kwargs, batch1="mat1", batch2="mat2"))
    if p.owner(bias) is None or kwargs.get("beta", 1) != 1:
        return None
    return _product(function, left, right, out, p, bias)


def _product(
    function: Any, left: Tensor, right: Tensor, out: Tensor, p: Parameters, bias: Any = None
) -> Described | None:
    """Describe ``left @ right``, one of which is a parameter."""
    if (p.owner(left) is None) == (p.owner(right) is None):
        return None
    batch = _ABC[: max(left.ndim, right.ndim, 2) - 2]
    of_left = ("ik" if left.ndim > 1 else "k").rjust(left.ndim, "_")
    of_right = ("kj" if right.ndim > 1 else "k").rjust(right.ndim, "_")
    of_left = batch[len(batch) - of_left.count("_") :] + of_left.strip("_")
    of_right = batch[len(batch) - of_right.count("_") :] + of_right.strip("_")
    of_out = batch + "i" * (left.ndim > 1) + "j" * (right.ndim > 1)
    if p.owner(right) is not None:
        letters, x, weight = (of_left, of_right, of_out), left, right
    else:
        letters, x, weight = (of_right, of_left, of_out), right, left
    return _lettered(function, "contraction", letters, x, weight, out, bias)


def _einsum(function: Any, args: Any, kwargs: Any, out: Tensor, p: Parameters) -> Described | None:
    equation, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    given, result = equation.replace(" ", "").split("->")
    letters = given.split(",")
    if len(operands) != 2 or any(len(set(part)) < len(part) for part in letters):
        return None
    owned = [p.owner(operand) is not None for operand in operands]
    if owned[0] == owned[1]:
        return None
    x, w = (0, 1) if owned[1] else (1, 0)
    parts = (letters[x], letters[w], result)
    return _lettered(function, "contraction", parts, operands[x], operands[w], out)


def _elementwise(
    function: Any, args: Any, kwargs: Any, out: Any, p: Parameters
) -> Described | None:
    operands = [*args, *kwargs.values()][:2]
    if len(operands) < 2 or not all(isinstance(operand, Tensor) for operand in operands):
        return None
    owned = [p.owner(operand) is not None for operand in operands]
    if owned[0] == owned[1] or not isinstance(out, Tensor) or out.ndim > len(_ABC):
        return None
    weight, x = (operands[0], operands[1]) if owned[0] else (operands[1], operands[0])
    letters = _ABC[: out.ndim]
    of_x, of_weight = letters[out.ndim - x.ndim :], letters[out.ndim - weight.ndim :]
    return _lettered(function, "link", (of_x, of_weight, letters), x, weight, out)


# --- convolutions ---------------------------------------------------------------------------


def _convolution(spatial: int, transposed: bool) -> Callable[..., Described | None]:
    last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)

    def describe_it(
        function: Any, args: Any, kwargs: Any, out: Tensor, p: Parameters
    ) -> Described | None:
        given = dict(zip(names, _bound(names, args, kwargs), strict=True))
        x, weight, groups = given["input"], given["weight"], given["groups"] or 1
        if p.owner(weight) is None or p.owner(x) is not None:
            return None
        read, made = x.ndim - 1 - spatial, out.ndim - 1 - spatial
        inputs, outputs = x.shape[read], out.shape[made]

        def of_input(channel: int) -> Where:
            rows = _group(channel, inputs // groups, outputs // groups)
            return {0: rows, 1: [channel % (inputs // groups)]}

        def of_output(channel: int) -> Where:
            rows = _group(channel, outputs // groups, inputs // groups)
            return {0: rows, 1: [channel % (outputs // groups)]}

        def plain(channel: int) -> Where:
            return {0: [channel]}

        reads, makes = (plain, of_output) if transposed else (of_input, plain)
        operation = Operation(
            "contraction", function, (read,), (inputs,), (made,), (outputs,),
            weight, given["bias"], reads, makes,
        )  # fmt: skip
        return operation, [x]

    return describe_it


def _group(channel: int, per_group: int, others_per_group: int) -> list[int]:
    """Return the channels on the other side that share the group of a channel."""
    first = channel // per_group * others_per_group
    return list(range(first, first + others_per_group))


# --- norms ----------------------------------------------------------------------------------


def _norm(names: tuple[str, ...], mixes: bool) -> Callable[..., Described | None]:
    def describe_it(
        function: Any, args: Any, kwargs: Any, out: Tensor, p: Parameters
    ) -> Described | None:
        given = dict(zip(names, _bound(names, args, kwargs), strict=True))
        x = given["input"]
        shape = given.get("normalized_shape")
        count = 1 if shape is None else (1 if isinstance(shape, int) else len(shape))
        first = 1 if shape is None else x.ndim - count
        axes = tuple(range(first, first + count))
        if x.ndim <= axes[-1]:
            return None
        sizes = tuple(x.shape[axis] for axis in axes)

        def per_channel(channel: int) -> Where:
            return {axis: [i] for axis, i in enumerate(unravel(channel, sizes))}

        mean, variance = given.get("running_mean"), given.get("running_var")
        operation = Operation(
            "norm", function, axes, sizes, axes, sizes, given.get("weight"), given.get("bias"),
            per_channel, per_channel, per_channel, mixes,
            None if mean is None or variance is None else (mean, variance),
            lambda: function(*args, **kwargs),
        )  # fmt: skip
        return operation, [x]

    return describe_it


def _bound(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments of these names, None for those that were not given."""
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if "self" in given:
        given["input"] = given["self"]
    return [given.get(name) for name in names]


def _renamed(kwargs: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in kwargs.items()}


_AFFINE = ("weight", "bias")
_RUNNING = ("running_mean", "running_var")
_CONVOLUTIONS: tuple[tuple[tuple[Callable[..., Any], ...], bool], ...] = (
    ((F.conv1d, F.conv2d, F.conv3d), False),
    (
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        True,
    ),
)
_ELEMENTWISE = tuple(
    getattr(home, name)
    for name in ("add", "sub", "mul", "div", "multiply", "subtract", "divide", "true_divide")
    for home in (torch, Tensor)
) + tuple(
    getattr(Tensor, name)
    for name in (
        *("add_", "sub_", "mul_", "div_", "__add__", "__radd__", "__sub__", "__rsub__"),
        *("__mul__", "__rmul__", "__truediv__", "__iadd__", "__isub__", "__imul__"),
    )
)

_MOVES = {
    *MOVES,
    *(torch.where, Tensor.where, Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.hstack),
    *(torch.vstack, Tensor.masked_fill, torch.masked_fill, Tensor.contiguous, Tensor.to),
    *(Tensor.clone, torch.clone, Tensor.float, Tensor.type_as, Tensor.__setitem__, F.prelu),
}

PRODUCTS = {
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm),
    *(torch.bmm, Tensor.bmm, torch.einsum, F.linear, F.scaled_dot_product_attention),
    *(function for family, _ in _CONVOLUTIONS for function in family),
    *(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm),
}

_DESCRIBERS: dict[Callable[..., Any], Callable[..., Described | None]] = {
    F.linear: _linear,
    **{
        function: _convolution(spatial + 1, transposed)
        for family, transposed in _CONVOLUTIONS
        for spatial, function in enumerate(family)
    },
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__), _matmul),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm), _addmm),
    torch.einsum: _einsum,
    F.batch_norm: _norm(("input", *_RUNNING, *_AFFINE), mixes=False),
    torch.batch_norm: _norm(("input", *_AFFINE, *_RUNNING), mixes=False),
    F.instance_norm: _norm(("input", *_RUNNING, *_AFFINE), mixes=False),
    F.group_norm: _norm(("input", "num_groups", *_AFFINE), mixes=True),
    torch.group_norm: _norm(("input", "num_groups", *_AFFINE), mixes=True),
    F.layer_norm: _norm(("input", "normalized_shape", *_AFFINE), mixes=True),
    torch.layer_norm: _norm(("input", "normalized_shape", *_AFFINE), mixes=True),
    F.rms_norm: _norm(("input", "normalized_shape", "weight"), mixes=True),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
