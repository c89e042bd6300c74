"""Which weights the user's code uses that are on no tape.

A replay shows what a unit's new life does to the modules that ran in the recorded pass. A second
head, an expert, a rare branch that ran in another batch may use the unit as well. Two things tell
that it ran: a hook on its module fires, or its weights have gradients after a training batch. Hooks
are put on modules that no tape has, of which there are none in most networks; inside of a compiled
region, or where a step uses weights without a module, gradients tell alone.
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
        self._modules: dict[str, bool] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._carried: set[str] = set()
        self._handles: list[Any] = []
        self.start(())

    @property
    def missing(self) -> list[str]:
        """Names of the modules that ran, or whose parameters were used, and are on no tape."""
        return sorted({*self.missing_in_training, *(self._modules.keys() - self._taped_modules)})

    @property
    def missing_in_training(self) -> list[str]:
        """Those of which a training batch has shown it."""
        used = (
            name.rpartition(".")[0] or name
            for name, parameter in self._parameters.items()
            if parameter not in self._taped
        )
        ran = (name for name, training in self._modules.items() if training)
        return sorted({*used, *(name for name in ran if name not in self._taped_modules)})

    def start(self, tapes: Iterable[Tape]) -> None:
        """Take other tapes in place of those so far."""
        self._taped: set[nn.Parameter] = set()
        self._taped_modules: set[str] = set()
        self._untaped = dict(self._model.named_parameters())
        for tape in tapes:
            self.note_tape(tape)

    def forget(self) -> None:
        """Forget what ran, but for what was missing: it is looked for once more."""
        missing = set(self.missing) - self._carried
        self._modules = {name: ran for name, ran in self._modules.items() if name in missing}
        self._parameters.clear()
        self._carried = missing

    def note_tape(self, tape: Tape) -> None:
        """Take what a pass has used, which is recorded now."""
        self._taped |= used_parameters(tape)
        self._taped_modules |= tape.modules
        self._untaped = {n: p for n, p in self._untaped.items() if p not in self._taped}

    def note_gradients(self) -> None:
        """Take the parameters that the last training batch has used."""
        for name, parameter in self._untaped.items():
            # One of zeros may be left from an earlier batch.
            gradient = None if name in self._parameters else parameter.grad
            if gradient is not None and gradient.any():
                self._parameters[name] = parameter

    def note_module(self, name: str, training: bool) -> None:
        """Take a module that runs."""
        self._modules[name] = training or self._modules.get(name, False)
        self._carried.discard(name)

    def watch(self) -> None:
        """Have the modules tell that they run that have weights and are on no tape."""
        self.unwatch()
        for name, module in self._model.named_modules():
            has_weights = any(p is not None for p in module._parameters.values())
            if has_weights and name not in self._taped_modules and not is_opaque(module):
                hook = _Ran(self, name)
                self._handles.append(module.register_forward_pre_hook(hook))

    def unwatch(self) -> None:
        """Take every hook away; harmless when there is none."""
        while self._handles:
            self._handles.pop().remove()


def used_parameters(tape: Tape) -> set[nn.Parameter]:
    """Return the parameters that a pass has used on data.

    Not those that were only copied, measured or averaged, as other callbacks do with all of them:
    calls on parameters alone, or, in training, without gradients.
    """
    used: set[nn.Parameter] = set()
    weights = {index: {parameter} for index, parameter in tape.parameters.items()}
    for call in tape.calls:
        among = [weights[index] for index in call.given if index in weights]
        if not among:
            continue
        sources = set().union(*among)
        if len(among) == len(call.given):
            weights |= {index: sources for index in call.outs if index is not None}
        elif call.gradients or not tape.training:
            used |= sources
    return used


def shows_more(tape: Tape, than: Tape) -> bool:
    """Tell whether a pass ran modules, or used parameters, that another one did not."""
    modules, parameters = tape.modules - than.modules, used_parameters(tape) - used_parameters(than)
    return bool(modules or parameters)


class _Ran:
    """A hook that notes that its module ran; a copy of it, in a copied model, does nothing."""

    def __init__(self, coverage: Coverage | None, name: str) -> None:
        self._coverage, self._name = coverage, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        # Dynamo guards on what it reads: inside a compiled region gradients have to tell.
        if not torch.compiler.is_compiling() and self._coverage is not None:
            self._coverage.note_module(self._name, module.training)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ran, (None, "")
