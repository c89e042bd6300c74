"""Which weights the user's code uses that are on no tape.

A replay shows what a unit's new life does to the modules that ran in the recorded pass. A second
head, an expert, a rare branch that ran in another batch may read the unit as well. Two things tell
that it ran: its weights have gradients after a training batch, and a hook on its module fires.
Hooks are put on modules that no tape has, of which there are none in most networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_deadunits.observation.compiled import is_opaque
from lightning_deadunits.reinit.recording import Tape


class Coverage:
    """Compares what ran with what was recorded.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ran: dict[str, nn.Parameter | None] = {}
        self._handles: list[Any] = []
        self.start(())

    @property
    def missing(self) -> list[str]:
        """Names of the modules and parameters that were used and are on no tape."""
        return [
            name
            for name, parameter in self._ran.items()
            if parameter not in self._taped and name not in self._taped_modules
        ]

    def start(self, tapes: Iterable[Tape]) -> None:
        """Take other tapes in place of those so far."""
        self._taped: set[nn.Parameter] = set()
        self._taped_modules: set[str] = set()
        self._untaped = dict(self._model.named_parameters())
        for tape in tapes:
            self.note_tape(tape)

    def forget(self) -> None:
        """Forget what ran."""
        self._ran.clear()

    def note_tape(self, tape: Tape) -> None:
        """Take what a pass has used, which is recorded now."""
        self._taped.update(tape.parameters.values())
        self._taped_modules |= tape.modules
        self._untaped = {n: p for n, p in self._untaped.items() if p not in self._taped}

    def note_gradients(self) -> None:
        """Take the parameters that the last training batch has used."""
        for name, parameter in self._untaped.items():
            # One of zeros may be left from an earlier batch.
            if parameter.grad is not None and name not in self._ran and parameter.grad.any():
                self._ran[name] = parameter

    def watch(self) -> None:
        """Have the modules tell that they run whose weights are on no tape."""
        self.unwatch()
        for name, module in self._model.named_modules():
            own = module._parameters.values()
            known = name in self._taped_modules or any(p in self._taped for p in own)
            if any(p is not None for p in own) and not known and not is_opaque(module):
                self._handles.append(module.register_forward_pre_hook(_Ran(self._ran, name)))

    def unwatch(self) -> None:
        """Take every hook away; harmless when there is none."""
        while self._handles:
            self._handles.pop().remove()


class _Ran:
    """A hook that notes that its module ran; a copy of it, in a copied model, does nothing."""

    def __init__(self, ran: dict[str, nn.Parameter | None] | None, name: str) -> None:
        self._ran, self._name = ran, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        # Dynamo guards on what it reads: inside a compiled region gradients have to tell.
        if self._ran is not None and not torch.compiler.is_compiling():
            self._ran[self._name] = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ran, (None, "")
