"""One call with weights, as it was recorded, and how it is recognised in another pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lightning_deadunits.reinit.operations import Operation, tensors_of


class Use(NamedTuple):
    """A parameter, or a part of it, was given to a call."""

    call: int
    parameter: Tensor
    view: Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One call with weights, as it was recorded.

    Attributes:
        operation: What it does.
        layer: Name of the module whose forward called it.
        out: What it returned, None if that was not one floating point tensor.
        shapes: The function and the shapes that it was given.
    """

    operation: Operation
    layer: str
    out: Tensor | None
    shapes: tuple[Any, ...]

    @property
    def title(self) -> str:
        """How it is called in reports."""
        name = self.operation.name
        return f"{self.layer} ({name})" if self.layer else name


def shapes_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Return a call's function and the shapes of the tensors it is given."""
    return (function, *(tensor.shape for tensor in tensors_of((args, kwargs))))


def titles(calls: Iterable[Call]) -> Iterator[tuple[str, int]]:
    """Yield the title of each call, and how many of that title came before."""
    seen: Counter[str] = Counter()
    for call in calls:
        yield call.title, seen[call.title]
        seen[call.title] += 1
