"""Which of the user's passes are recorded for the next event.

Of a validation the first batch of each loader, of training one batch, and of both any batch that
runs modules which are on no tape yet. All are passes that run anyway. Tapes hold copies of their
batches, so they are recorded only while an event may be due, and dropped after it.

A replay shows what a unit's new life does to the modules that ran in the recorded pass. A second
head, an expert, a rare branch that ran in another batch may use the unit as well. Two things tell
that it ran (:class:`Coverage`): a hook on its module fires, or its weights have gradients after a
training batch. Hooks are put on modules that no tape has, of which there are none in most networks;
inside of a compiled region, and where weights are used without a module, gradients tell alone.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lightning_deadunits.observation.compiled import is_opaque
from lightning_deadunits.observation.names import module_names
from lightning_deadunits.private_api import running_hook_of
from lightning_deadunits.reinit.recording import Recorder, Tape

_MOST_SEARCHES = 32
"""How many batches are recorded in the hope that they run what is on no tape, per event."""


class Tapes:
    """Records passes of one model.

    Attributes:
        evaluation: Recorded validation steps.
        training: Recorded training steps.
    """

    def __init__(self, model: nn.Module, layers: tuple[str, ...] | None) -> None:
        self.model = model
        self.evaluation: list[Tape] = []
        self.training: list[Tape] = []
        self._recorder = Recorder(model, layers, lambda: is_in_step(model))
        self._coverage = Coverage(model)
        self._recorded: set[int] = set()
        self._searches = 0
        self._begun: int | None = None
        self._failed = self._last = False

    @property
    def missing(self) -> list[str]:
        """Names of modules and parameters that were used and are on no tape."""
        return self._coverage.missing

    @property
    def incomplete(self) -> bool:
        """Whether the next training batches are to be recorded before anything is done."""
        wanted = not self.training or bool(self._coverage.missing_in_training)
        return wanted and self._searches < _MOST_SEARCHES and not self._failed

    def start_validation(self) -> None:
        """Drop the tapes of the last validation."""
        self.cancel()
        self.evaluation = []
        self._recorded &= {_TRAINING}
        self._coverage.start(self.training)

    def drop(self, *, evaluation: bool) -> None:
        """Drop the tapes of training, and perhaps those of validation, with their batches."""
        self.cancel()
        self.training, self._searches = [], 0
        self._recorded.discard(_TRAINING)
        if evaluation:
            self.evaluation, self._recorded = [], set()
        self._coverage.unwatch()
        self._coverage.forget()
        self._coverage.start(self.evaluation)

    def begin_training_batch(self, *, last: bool) -> None:
        """Record a training batch, if there is none or something is missing.

        Args:
            last: Whether it is the last one before a verdict on training batches. That is recorded
                in any case, and others are kept only for what it does not show: a training that is
                resumed in between has this one as well, and comes to the same weights.
        """
        self._last = last
        if last:
            self._recorded.discard(_TRAINING)
        self._begin(_TRAINING, wanted=True)

    def begin_validation_batch(self, loader: int, *, wanted: bool) -> None:
        """Record a batch of a validation loader, if there is none or something is missing.

        Args:
            loader: Number of the loader.
            wanted: Whether it may be the first one of its loader.
        """
        self._last = False
        self._begin(loader, wanted=wanted)

    def end_batch(self, *, training: bool) -> None:
        """Keep the tape, if one was begun and shows anything new; take note of what ran."""
        source, self._begun = self._begun, None
        if source is not None:
            self._safely(lambda: self._keep(source))
        elif training and self.training:
            self._safely(self._coverage.note_gradients)

    def cancel(self) -> None:
        """Forget a batch that was begun; harmless otherwise."""
        self._begun = None
        self._safely(self._recorder.cancel)

    def detach(self) -> None:
        """Leave nothing behind; harmless when there is nothing."""
        self.cancel()
        self._coverage.unwatch()

    def _begin(self, source: int, wanted: bool) -> None:
        if self._failed:
            return
        if source in self._recorded or not wanted:
            if not self.missing or self._searches >= _MOST_SEARCHES:
                return
            self._searches += 1
        self._begun = source
        self._safely(lambda: self._recorder.begin(training=source == _TRAINING))

    def _keep(self, source: int) -> None:
        tape, missing = self._recorder.end(), self.missing
        if tape is None:
            return
        first = source not in self._recorded
        self._recorded.add(source)
        self._coverage.note_tape(tape)
        if self._last:
            self.training = [tape, *(other for other in self.training if shows_more(other, tape))]
        elif first or len(self.missing) < len(missing):
            (self.training if tape.training else self.evaluation).append(tape)
        self._coverage.watch()

    def _safely(self, action: Callable[[], None]) -> None:
        """Recording that fails costs re-initialisation, and neither training nor monitoring."""
        try:
            action()
        except Exception as error:
            self._begun, self._failed = None, True
            trace = "".join(traceback.format_exception(error))
            warnings.warn(
                f"A batch could not be recorded, so that units will not be re-initialised; "
                f"training goes on. Please report this.\n{trace}",
                stacklevel=3,
            )


_TRAINING = -1
"""Stands for the training loader among the numbers of validation loaders."""


def is_in_step(model: nn.Module) -> bool:
    """Tell whether a LightningModule's step is running, rather than hooks before and after it.

    Lightning's own note of what it calls; without it everything between two hooks is recorded.
    """
    name = running_hook_of(model)
    return name is None or name.endswith("_step")


class Coverage:
    """Compares what ran with what was recorded."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: dict[str, bool] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._carried: set[str] = set()
        self._handles: list[Any] = []
        self._scripted = {
            f"{name}.{own}" if name else own
            for name, module in model.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
            for own, _ in module.named_parameters()
        }
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
            if not (self._shows_scripts and name in self._scripted)
        )
        ran = (name for name, training in self._modules.items() if training)
        return sorted({*used, *(name for name in ran if name not in self._taped_modules)})

    def start(self, tapes: Iterable[Tape]) -> None:
        """Take other tapes in place of those so far."""
        self._taped: set[nn.Parameter] = set()
        self._shows_scripts = False
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
        # A ScriptModule is on a tape as what cannot be followed, and never in any other way.
        self._shows_scripts |= bool(tape.obstacles)
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
        for module, name in module_names(self._model).items():
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
