"""What a call is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_deadunits.reinit.parameters import Parameters


@dataclass(frozen=True, eq=False)
class Given:
    """One call.

    Attributes:
        function: The function that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: What it returned.
        parameters: Those of the model.
    """

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
