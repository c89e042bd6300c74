"""Which of the user's passes are recorded for the next event.

Of a validation the first batch of each loader, of training one batch, and of both any batch that
runs modules which are on no tape yet. All are passes that run anyway. Tapes hold copies of their
batches, so they are recorded only while an event may be due, and dropped after it.

A replay shows what a unit's new life does to the modules that ran in the recorded pass. A second
head, an expert, a rare branch that ran in another batch may use the unit as well. Two things tell
that it ran (:class:`Coverage`): a hook on its module fires, or its weights have gradients when an
optimizer steps. Hooks are put on modules if there are any that no tape has, which most networks do
not have; inside of a compiled region, and where weights are used without a module, gradients tell
alone.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightning_deadunits.observation.compiled import is_opaque
from lightning_deadunits.observation.names import module_names
from lightning_deadunits.private_api import has_compiled_parts, is_in_step
from lightning_deadunits.reinit.recording import Recorder, Tape
from lightning_deadunits.reinit.recording.used import (
    Elements,
    Used,
    add_used,
    both,
    has_used,
    shows_more,
    used_parameters,
)

TRAINING = -1
"""Stands for the training loader among the numbers of validation loaders."""

_MOST_SEARCHES = 32
"""How many batches are recorded in the hope that they run what is on no tape, per event.

By as many training batches an event is put off at most.
"""
_MOST_ROUNDS = 2
"""For how many events more a module that has run is waited for: they come ever more rarely."""


class Recorded(NamedTuple):
    """What one process has recorded.

    Attributes:
        evaluation: How many validation steps.
        training: How many training steps.
        missing: Names of modules and parameters that were used and are on no tape.
        incomplete: Whether the next training batches are to be recorded before anything is done.
        outdated: Whether tapes were dropped each time, for parts of the model were replaced.
    """

    evaluation: int
    training: int
    missing: list[str]
    incomplete: bool
    outdated: bool


class Shown(NamedTuple):
    """What the tapes of one process show.

    Attributes:
        parameters: Names of the parameters that were used, and which elements of them.
        modules: Names of the modules that ran.
    """

    parameters: dict[str, Elements]
    modules: set[str]


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
        self._fresh: Tape | None = None
        self._failed = self._last = self._told = self._told_of_changes = False
        self._times_outdated = 0

    @property
    def recorded(self) -> Recorded:
        """What other processes need to know of it."""
        wanted = not self.training or bool(self._coverage.missing_in_training)
        return Recorded(
            len(self.evaluation),
            len(self.training),
            self._coverage.missing,
            wanted and self._searches < _MOST_SEARCHES and not self._failed,
            self._times_outdated > 1,
        )

    @property
    def shown(self) -> Shown:
        """What the tapes show, for other processes."""
        return self._coverage.shown

    def know_others(self, shown: Iterable[Shown]) -> None:
        """Take what is on other processes' tapes for recorded: they judge by these."""
        self._coverage.know_others(shown)

    def drop_outdated(self) -> None:
        """Drop the tapes of what the model computes no longer: some of its parts were replaced."""
        tapes = [*self.training, *self.evaluation]
        kept = {tape for tape in tapes if tape.layout.keeps(tape, self.model)}
        if len(kept) == len(tapes):
            return
        self._times_outdated += 1
        self.training = [tape for tape in self.training if tape in kept]
        self.evaluation = [tape for tape in self.evaluation if tape in kept]
        self._recorded = set()
        self._coverage.forget()
        self._cover()
        if not self._told_of_changes:
            self._told_of_changes = True
            warnings.warn(
                "Modules or parameters of the model were replaced (by pruning, say) after the "
                "batches were recorded on which dead units are re-initialised: those that are due "
                "wait for the next validation or training batch.",
                stacklevel=4,
            )

    @property
    def judged_others(self) -> bool:
        """Whether validation ran with other weights than the model has now: an average, perhaps."""
        return any(tape.layout.has_other_weights(self.model) for tape in self.evaluation)

    def given_up(self) -> list[str]:
        """Return, once, the modules that ran and are waited for no longer."""
        names, self._coverage.given_up = self._coverage.given_up, []
        return names

    def start_validation(self) -> None:
        """Drop the tapes of the last validation."""
        self.cancel()
        self.evaluation = []
        self._recorded &= {TRAINING}
        self._cover()

    def drop(self, *, evaluation: bool) -> None:
        """Drop the tapes of training, and perhaps those of validation, with their batches."""
        self.cancel()
        self._times_outdated = 0
        self.training, self._searches = [], 0
        self._recorded.discard(TRAINING)
        if evaluation:
            self.evaluation, self._recorded = [], set()
        self._coverage.unwatch()
        self._coverage.forget()
        self._cover()

    def begin_batch(self, loader: int, *, wanted: bool = True, last: bool = False) -> None:
        """Record a batch, if there is none of its loader or something is missing.

        Args:
            loader: Number of the validation loader, or ``TRAINING``.
            wanted: Whether it may be the first one of its loader.
            last: Whether it is the last one before a verdict on training batches. That is recorded
                in any case, and others are kept only for what it does not show: a training that is
                resumed in between has this one as well, and comes to the same weights.
        """
        if self._failed:
            return
        self._last = last
        if last:
            self._recorded.discard(loader)
        if loader in self._recorded or not wanted:
            if not self._coverage.missing or self._searches >= _MOST_SEARCHES:
                return
            self._searches += 1
        elif loader == TRAINING:
            self._searches += 1  # for it may not come to a tape
        self._begun, self._fresh = loader, None
        self._tell_if_compiled()
        self._safely(lambda: self._recorder.begin(training=loader == TRAINING))

    def end_batch(self, *outputs: Any, training: bool) -> None:
        """Keep the tape, if one was begun and shows anything new; take note of what ran.

        Called again with what the step has returned, where that was not known at first.
        """
        loader, self._begun = self._begun, None
        if loader is not None:
            self._safely(lambda: self._keep(loader))
        elif training:
            self._safely(self._coverage.note_gradients)
        tape = self._fresh
        if tape is not None and outputs:
            self._safely(lambda: tape.keep(outputs))
        if outputs:
            self._fresh = None

    def cancel(self) -> None:
        """Forget a batch that was begun; harmless otherwise."""
        self._begun = None
        self._safely(self._recorder.cancel)

    def detach(self) -> None:
        """Leave nothing behind; harmless when there is nothing."""
        self.cancel()
        self._coverage.unwatch()

    def _keep(self, loader: int) -> None:
        tape = self._recorder.end()
        if tape is None:
            return
        self._fresh = tape
        first = loader not in self._recorded
        self._recorded.add(loader)
        wanted = self._last or first or self._coverage.is_wanted(tape)
        if self._last:
            self.training = [tape, *(other for other in self.training if shows_more(other, tape))]
        elif wanted:
            (self.training if tape.training else self.evaluation).append(tape)
        if wanted:
            self._cover()
        self._coverage.watch()

    def _cover(self) -> None:
        self._coverage.take([*self.training, *self.evaluation])

    def _tell_if_compiled(self) -> None:
        if not self._told and has_compiled_parts(self.model):
            self._told = True
            warnings.warn(
                "The model is compiled. A batch that is recorded, so that dead units can be "
                "re-initialised, runs uncompiled: it is rounded otherwise, and dropout draws other "
                "random numbers than compiled.",
                stacklevel=5,
            )

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


class Coverage:
    """Compares what ran with what was recorded.

    Attributes:
        given_up: Names of modules that ran once, and have not run again for very long.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: dict[str, bool] = {}
        self._parameters: dict[str, tuple[nn.Parameter, Elements]] = {}
        self._carried: dict[str, int] = {}
        self.given_up: list[str] = []
        self._in_hooks: set[str] = set()
        self._recorded_in_hooks = False
        self._handles: list[Any] = []
        self._scripted = {
            f"{name}.{own}" if name else own
            for name, module in model.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
            for own, _ in module.named_parameters()
        }
        self.take([])

    @property
    def missing(self) -> list[str]:
        """Names of the modules that ran, or whose parameters were used, and are on no tape.

        What runs in a hook of the user's is not recorded. It may use a unit only where a module
        that is recorded ran in a hook as well: what a step leaves behind counts as its result.
        """
        in_hooks = self._in_hooks if self._recorded_in_hooks else ()
        return sorted(
            {
                *self.missing_in_training,
                *(self._modules.keys() - self._taped_modules),
                *(f"{name} (in a hook)" for name in in_hooks),
            }
        )

    @property
    def missing_in_training(self) -> list[str]:
        """Those of which a training batch has shown it."""
        used = (name.rpartition(".")[0] or name for name, _ in self._missing_parameters())
        ran = (name for name, training in self._modules.items() if training)
        return sorted({*used, *(name for name in ran if name not in self._taped_modules)})

    def _missing_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, (parameter, own) in self._parameters.items():
            if self._shows_scripts and name in self._scripted:
                continue
            if not has_used(self._taped, parameter, own):
                yield name, parameter

    def is_wanted(self, tape: Tape) -> bool:
        """Tell whether a pass shows anything of what is missing."""
        used = used_parameters(tape)
        return not tape.modules.isdisjoint(self._modules.keys() - self._taped_modules) or any(
            parameter in used and not has_used(self._taped, parameter, used[parameter])
            for _, parameter in self._missing_parameters()
        )

    def take(self, tapes: Sequence[Tape]) -> None:
        """Take what is recorded, in place of what was."""
        self._taped: Used = {}
        for tape in tapes:
            add_used(self._taped, used_parameters(tape))
        self._taped_modules: set[str] = set().union(*(tape.modules for tape in tapes))
        in_training = (tape.modules for tape in tapes if tape.training)
        self._trained_modules: set[str] = set().union(*in_training)
        # A ScriptModule is on a tape as what cannot be followed, and never in any other way.
        self._shows_scripts = any(tape.obstacles for tape in tapes)
        self._trains = any(tape.training for tape in tapes)
        self._find_untaped()

    def _find_untaped(self) -> None:
        parameters = self._model.named_parameters()
        self._untaped = {name: p for name, p in parameters if not has_used(self._taped, p, None)}

    @property
    def shown(self) -> Shown:
        """What is recorded, by names."""
        named = self._model.named_parameters()
        used = {name: self._taped[p] for name, p in named if p in self._taped}
        return Shown(used, self._taped_modules)

    def know_others(self, shown: Iterable[Shown]) -> None:
        """Take what other processes have recorded, beside what is recorded here."""
        named = dict(self._model.named_parameters())
        for theirs in shown:
            add_used(self._taped, {named[name]: own for name, own in theirs.parameters.items()})
            self._taped_modules = self._taped_modules | theirs.modules
        self._find_untaped()

    def forget(self) -> None:
        """Begin anew; modules that have run are looked for again, for some events.

        Such as run seldom, a head in every third validation, say, may use a unit all the same.
        """
        weighted = set(self._weighted().values())  # those that are there still
        taped = self._taped_modules & weighted
        ran = {name: name in self._trained_modules for name in taped}
        ran |= {name: flag for name, flag in self._modules.items() if name not in self._carried}
        left = {name: age + 1 for name, age in self._carried.items() if name not in ran}
        self.given_up += [name for name, age in left.items() if age > _MOST_ROUNDS]
        self._carried = dict.fromkeys(ran, 0)
        self._carried |= {name: age for name, age in left.items() if age <= _MOST_ROUNDS}
        self._modules = {
            name: ran.get(name) or self._modules.get(name, False) for name in self._carried
        }
        self._parameters.clear()
        self._in_hooks, self._recorded_in_hooks = set(), False

    def note_gradients(self, *step: Any) -> None:
        """Take the parameters that a training batch has used, once one is recorded."""
        for name, parameter in self._untaped.items() if self._trains else ():
            if name in self._parameters and parameter not in self._taped:
                continue
            # One of zeros may be left from an earlier batch.
            gradient = parameter.grad
            if gradient is not None and gradient.any():
                own = _with_values(gradient)
                if name in self._parameters:
                    own = both(self._parameters[name][1], own)
                self._parameters[name] = parameter, own

    def note_module(self, name: str, training: bool) -> None:
        """Take a module that runs."""
        if not is_in_step(self._model):
            if name in self._taped_modules:
                self._recorded_in_hooks = True
            else:
                self._in_hooks.add(name)
        elif name not in self._taped_modules:
            self._modules[name] = training or self._modules.get(name, False)
            self._carried.pop(name, None)

    def watch(self) -> None:
        """Have modules tell that they run, and weights that they step, if no tape has them."""
        self.unwatch()
        weighted = self._weighted()
        if self._taped_modules.issuperset(weighted.values()):
            weighted = {}
        for module, name in weighted.items():
            self._handles.append(module.register_forward_pre_hook(_Ran(self, name)))
        if self._untaped:
            # At the end of the batch gradients may be gone: `optimizer.zero_grad()` comes last.
            self._handles.append(register_optimizer_step_pre_hook(self.note_gradients))

    def _weighted(self) -> dict[nn.Module, str]:
        """Return the modules that have parameters of their own, with their names."""
        return {
            module: name
            for module, name in module_names(self._model).items()
            if any(p is not None for p in module._parameters.values()) and not is_opaque(module)
        }

    def unwatch(self) -> None:
        """Take every hook away; harmless when there is none."""
        while self._handles:
            self._handles.pop().remove()


def _with_values(gradient: Tensor) -> Elements:
    return (gradient != 0).flatten().cpu() if gradient.layout is torch.strided else None


class _Ran:
    """A hook that notes that its module ran; a copy of it, in a copied model, does nothing."""

    def __init__(self, coverage: Coverage | None, name: str) -> None:
        self._coverage, self._name = coverage, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        # Dynamo guards on what it reads: inside a compiled region gradients have to tell.
        if not torch.compiler.is_compiling() and self._coverage is not None:
            given = [value for value in args if isinstance(value, Tensor)]
            if given and not any(value.numel() for value in given):
                return  # an expert that no token was sent to
            self._coverage.note_module(self._name, module.training)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ran, (None, "")
