"""One model and one example, recorded once, for the passes that trace and verify units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from lightning_deadunits.reinit.parameters import Parameters
from lightning_deadunits.reinit.running.example import Change, Example
from lightning_deadunits.reinit.running.probe import PathChangedError, Probe, Recording, Visitor

R = TypeVar("R", bound=Recording)

UnitKey = tuple[str, int]
"""Layer and unit."""


class Session:
    """Runs visitors over an example.

    Args:
        example: The example.
        layers: Names of the layers whose activations are visited.
    """

    def __init__(self, example: Example, layers: Iterable[str]) -> None:
        self.example = example
        self.parameters = Parameters(example.model)
        self.probe = Probe(example.model, layers, self.parameters)
        self.recorded: Recording

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the modules tell when they run, for a while."""
        with self.probe.watching():
            yield

    def run(
        self, visitor: Visitor, *, training: bool = False, change: Change | None = None
    ) -> list[Tensor]:
        """Run one pass and return the floating point tensors of the output."""
        self.probe.visitor = visitor
        self.probe.start_pass()
        try:
            with self.probe:
                return self.example.run(training=training, change=change)
        finally:
            self.probe.visitor = Visitor()

    def replay(self, visitor: Visitor, *, change: Change | None = None) -> list[Tensor]:
        """Run one pass in eval mode that must make the recorded calls.

        Raises:
            PathChangedError: If it makes fewer; visitors raise it if it makes others.
        """
        outputs = self.run(visitor, change=change)
        if self.probe.index != len(self.recorded.calls):
            raise PathChangedError
        return outputs

    def record(self, visitor: R, *, training: bool = False) -> R:
        """Record one pass."""
        visitor.outputs = self.run(visitor, training=training)
        return visitor
