"""What DeadUnitCallback does in each hook of a Trainer. It wires, and computes nothing.

Without a word of Lightning, so that one body serves ``lightning.pytorch`` and
``pytorch_lightning``, whose ``Callback`` classes are not the same.
"""

from __future__ import annotations

import math
import warnings
import weakref
from dataclasses import replace
from typing import Any

from lightning_deadunits.arguments import check_bool, explains_arguments, given
from lightning_deadunits.distributed import logged_step, skips_validation
from lightning_deadunits.functional import check_atol
from lightning_deadunits.lightning.circumstances import Circumstances
from lightning_deadunits.lightning.event_log import log_event, say
from lightning_deadunits.lightning.failure_guard import Guard, guarded, guarded_alone
from lightning_deadunits.lightning.logging import log_scalars, write_report
from lightning_deadunits.lightning.speaking import Speaker
from lightning_deadunits.lightning.tables import log_tables
from lightning_deadunits.lightning.terminal import warns_beside_bar
from lightning_deadunits.lightning.together import check_selection, report_of_all
from lightning_deadunits.lightning.train_windows import TrainWindows
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.names import as_patterns
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.selection import (
    check_every_n_batches,
    check_possible,
    check_threshold,
)
from lightning_deadunits.observation.sums import Seen
from lightning_deadunits.observation.tally import Agreement, report_of
from lightning_deadunits.private_api import is_in_step
from lightning_deadunits.reinit import ReinitConfig, ReinitReport
from lightning_deadunits.reinit.training.reviver import Reviver
from lightning_deadunits.reinit.training.tapes import TRAINING
from lightning_deadunits.reinit.training.windows import Watch
from lightning_deadunits.reporting.gaps import of_sample
from lightning_deadunits.reporting.history import History
from lightning_deadunits.reporting.report import DeadUnitsReport


class DeadUnitMonitor:
    """Finds units that never fire, logs them at every validation, and revives them on request.

    Every activation of the model is counted during validation, whether a module, a function or a
    method computes it: :class:`~lightning_deadunits.DeadUnitsReport` in ``report`` afterwards. A
    unit is dead if its zero-activation rate over the whole validation epoch, on all processes, is
    at least ``dead_threshold``. Training is not touched unless ``reinit`` asks for it.
    ``Trainer.validate``, ``test`` and ``predict`` leave a report, too. A fit that does not resume
    starts fresh, though the callback has served in another one.

    Logged are ``dead_fraction/total``, ``dead_fraction/<layer>``, ``zero_rate/<layer>``,
    ``dead_layers`` and, with ``reinit``, ``reinit/<layer>``, how many units were re-initialised;
    to TensorBoard also the distribution and the vector of rates of every layer. What each
    re-initialisation did is in ``reviver.events``.
    In a checkpoint's file name write ``auto_insert_metric_name=False``: the names hold a slash.

    Args:
        layers: One or several patterns (as in ``fnmatch``) of layers to track, by default every
            activation that can be zero at rest. The full name of any other module has its output
            tracked.
        exclude: One or several patterns of layers to leave out.
        dead_threshold: Zero-activation rate in (0, 1] from which on a unit is dead.
        atol: Magnitude up to which a value counts as zero. By default exactly zero for activations
            that can be so (ReLU), 0.001 for smooth ones (GELU, SiLU, Mish, Softplus).
        reinit: Whether to give dead units a new life, or how in detail: ``true`` for the defaults
            of ReinitConfig, or some of its options, as in ``reinit.patience=3``.
        per_unit: Whether to write the vector of rates that TensorBoard's Dead Units tab shows.
        custom_scalars: Whether to lay out one chart with all layers in TensorBoard's Custom
            Scalars tab.
        every_n_batches: Count one validation batch of every so many, the first of each dataloader
            on; the others cost nothing. Verdicts are less certain then: a unit that was not seen
            firing in n independent values fires at most 3/n of the time, at 95 %, and one that
            fires on other batches only is called dead. Re-initialisation is tried on a batch that
            was not counted: a unit that fires on it is found alive and refused.
        every_n_train_steps: Count windows of so many training batches, too, for trainings without
            validation or beside it; by default those by which ``reinit`` decides, if it does. Where
            there is a validation, their names in the logs begin with ``train/``, their report is
            ``window_report``, and the series of it in the Dead Units tab ``train/<layer>``.
            Otherwise names, ``report`` and ``history`` are as after a validation.
        verbose: Whether to say the report, a table and a diagnosis, through the rank-zero logger at
            the end of ``fit``, ``validate``, ``test`` and ``predict``. Warnings come in any case.

    Attributes:
        report: The last verdicts, None before the first.
        history: Since when units are dead, and the figures of every validation.
        reviver: What re-initialises, None without ``reinit``.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If one is of the wrong type, or there is no such argument.
        SelectionError: Before training, if a pattern of ``layers`` or ``exclude`` matches no layer;
            it is a ValueError, too. Without patterns, a model of which nothing can be judged is a
            warning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_deadunits import DeadUnitCallback
        >>> trainer = Trainer(callbacks=[DeadUnitCallback()], logger=False, barebones=True)
    """

    @explains_arguments
    def __init__(
        self,
        layers: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        dead_threshold: float = 1.0,
        atol: float | None = None,
        reinit: bool | ReinitConfig = False,
        per_unit: bool = True,
        custom_scalars: bool = False,
        every_n_batches: int = 1,
        every_n_train_steps: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        check_threshold(dead_threshold)
        check_every_n_batches(every_n_batches)
        if atol is not None:
            check_atol(atol)
        for name, value in (
            ("per_unit", per_unit), ("custom_scalars", custom_scalars), ("verbose", verbose)
        ):  # fmt: skip
            check_bool(name, value)
        self.layers = as_patterns("layers", layers)
        self.exclude = as_patterns("exclude", exclude)
        self.dead_threshold = dead_threshold
        self.atol = atol
        self.reinit = _reinit_config(reinit)
        self.per_unit = per_unit
        self.custom_scalars = custom_scalars
        self.every_n_batches = every_n_batches
        self.verbose = verbose
        self.every_n_train_steps = window_length(every_n_train_steps, self.reinit)
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        """Forget every training before: what a resumed one needs is loaded afterwards."""
        self._names = LayerNames()
        watch = Watch(self.layers, self.exclude, self.dead_threshold, self.atol, self._names)
        self.report: DeadUnitsReport | None = None
        self.history = History()
        self._circumstances = Circumstances()
        self._speaker = Speaker(self.verbose)
        self.reviver = None if self.reinit is None else Reviver(self.reinit, watch)
        self._observer: Observer | None = None
        self._agreement = Agreement()
        self._guard = Guard()
        self._checked = False
        self._fitted: weakref.ref[Any] | None = None
        self._windows = None
        if self.every_n_train_steps is not None:
            self._windows = TrainWindows(
                self.every_n_train_steps, watch, self._guard, reinit=self.reinit,
                per_unit=self.per_unit, custom_scalars=self.custom_scalars,
            )  # fmt: skip

    @property
    def window_report(self) -> DeadUnitsReport | None:
        """The report of the last window of training batches, None before the first has ended."""
        return None if self._windows is None else self._windows.report

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint: instances with other options differ."""
        options = dict(layers=self.layers, exclude=self.exclude, atol=self.atol)
        if self.every_n_batches > 1:  # absent otherwise, as from checkpoints of before
            options["every_n_batches"] = self.every_n_batches
        if self.every_n_train_steps != window_length(None, self.reinit):
            options["every_n_train_steps"] = self.every_n_train_steps
        return f"DeadUnitCallback{options | dict(dead_threshold=self.dead_threshold)!r}"

    # --- before training ----------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin afresh with a fit, unless it goes on with the last one; then Lightning resumes."""
        if stage != "fit":
            return
        last = None if self._fitted is None else self._fitted()
        if last is not pl_module or not trainer.global_step:
            self._begin_afresh()
        self._fitted = weakref.ref(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse patterns that can match nothing; say if there will be nothing to count."""
        check_possible(pl_module, self.layers, self.exclude)
        if self.reinit is not None:
            check_possible(pl_module, *self.reinit.patterns, of="reinit.")
        if reason := skips_validation(trainer, pl_module):
            # The same on every process: none of them counts, none waits for another.
            self._guard.gave_up = self._guard.all_know = True
            warnings.warn(f"DeadUnitCallback counts nothing: {reason}", stacklevel=2)
            return
        self._warn_of_blindness(trainer)
        self._remember_start(pl_module)
        if self._windows is not None:
            self._windows.begin_fit(validates=trainer.enable_validation)
        if self.reviver is not None:
            self.reviver.begin_fit(trainer)

    @guarded
    def _remember_start(self, pl_module: Any) -> None:
        self._circumstances.begin_fit(pl_module)

    def _warn_of_blindness(self, trainer: Any) -> None:
        if trainer.enable_validation:
            return
        none = "no validation dataloader or `validation_step`, or `limit_val_batches=0`."
        if self._windows is None:
            warnings.warn(
                f"DeadUnitCallback counts during validation, but there is none: {none} "
                f"`every_n_train_steps=1000`, say, counts training batches.",
                stacklevel=3,
            )
        elif self.reviver is not None and self.reviver.at_validation:
            warnings.warn(
                f"Dead units are re-initialised after validations, but there is none: {none} "
                f"`ReinitConfig(every_n_train_steps=...)` decides by training batches.",
                stacklevel=3,
            )

    # --- validation ---------------------------------------------------------------------------

    @warns_beside_bar
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the modules tell when they run, for as long as validation lasts."""
        if not self._checked:
            check_possible(pl_module, self.layers, self.exclude)
        self._watch(pl_module)
        if self._active_reviver is not None and trainer.state.fn == "fit":
            self._active_reviver.start_validation(trainer, pl_module)

    @guarded
    def _watch(self, pl_module: Any) -> None:
        if self._observer is None or self._observer.model is not pl_module:
            self._observer = Observer(
                pl_module, self.layers, self.exclude, atol=self.atol,
                in_step=lambda: is_in_step(pl_module),
            )  # fmt: skip
        self._observer.reset()
        self._observer.attach()

    @warns_beside_bar
    @guarded
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start counting: what follows is the validation step."""
        if batch_idx == 0 and trainer.state.fn == "fit":
            self._circumstances.note_inputs(batch)
        if self._is_counted(batch_idx) and self.reviver is not None and not trainer.sanity_checking:
            self.reviver.begin_measuring(pl_module, in_validation=True)
        self._begin_batch(batch_idx)
        if self._active_reviver is not None and trainer.state.fn == "fit":
            wanted = self._stands_for_loader(trainer, batch_idx, dataloader_idx)
            self._active_reviver.record_batch(trainer, pl_module, dataloader_idx, wanted=wanted)

    def _is_counted(self, batch_idx: int) -> bool:
        return self._observer is not None and batch_idx % self.every_n_batches == 0

    def _begin_batch(self, batch_idx: int) -> None:
        if self._observer is None or not self._is_counted(batch_idx):
            return
        if self.every_n_batches > 1:
            self._observer.resume()
        self._observer.begin()

    def _end_batch(self, batch_idx: int) -> None:
        if self._observer is None or not self._is_counted(batch_idx):
            return
        self._observer.end()
        if self.every_n_batches > 1:
            self._observer.pause()  # what is not counted runs as if nobody watched

    def _stands_for_loader(self, trainer: Any, batch_idx: int, dataloader_idx: int) -> bool:
        """Tell whether a batch may be the one of its loader that is recorded.

        Among sampled batches one that is not counted, where there is one: it is news.
        """
        others = 1 < trainer.num_val_batches[dataloader_idx] < math.inf
        return bool(self.every_n_batches == 1 or batch_idx % self.every_n_batches or not others)

    @warns_beside_bar
    @guarded
    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop counting."""
        if self.reviver is not None:
            self.reviver.end_recording(outputs, training=False)
        counted = self._is_counted(batch_idx)
        self._end_batch(batch_idx)
        if counted and self.reviver is not None and not trainer.sanity_checking:
            self.reviver.end_measuring(in_validation=True)

    @warns_beside_bar
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge the whole epoch, of all processes, and log the verdicts."""
        report = self._judge(trainer, pl_module)
        if report is None:
            return
        self._take_note(trainer, pl_module, report)
        if trainer.state.fn == "fit":
            self._judge_due(trainer, pl_module, report, of_validation=True)

    @guarded_alone
    def _judge_due(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport, of_validation: bool
    ) -> None:
        if self._active_reviver is not None:
            told = self._active_reviver.judge(
                trainer, pl_module, report, of_validation=of_validation
            )
            self._tell_outcome(trainer, told)

    def _judge(self, trainer: Any, pl_module: Any) -> DeadUnitsReport | None:
        """Return the verdicts by what all processes saw; None if there are none."""
        # Whoever saves or copies the model at the end of the epoch must not save our hooks with it.
        self._let_go()
        if self._guard.all_know:
            return None
        if not self._checked:
            self._checked = check_selection(
                trainer, self._observer, self._guard, self.layers, self.exclude,
                of_sample(self.every_n_batches), self.reinit,
            )  # fmt: skip
        if trainer.sanity_checking:
            self._note_fired_before()
            return None
        seen = self._seen() or Seen()
        rules: dict[str, Any] = dict(
            dead_threshold=self.dead_threshold, atol=self.atol, names=self._names
        )
        report = report_of_all(
            trainer, pl_module, seen, self._guard, agreement=self._agreement, **rules
        )
        return None if report is None else replace(report, every_n_batches=self.every_n_batches)

    @guarded
    def _note_fired_before(self) -> None:
        if (seen := self._seen()) is not None:
            # What this process saw is enough: a unit that fired here was not born dead.
            found = report_of(seen, dead_threshold=self.dead_threshold, atol=self.atol)
            self._circumstances.note_fired_before(found)

    @guarded
    def _take_note(self, trainer: Any, pl_module: Any, report: DeadUnitsReport) -> None:
        in_fit = trainer.state.fn == "fit"
        step = logged_step(trainer)
        if in_fit:
            known = self._circumstances.end_window(trainer, pl_module, report, step)
            self.report = self.history.record(report, step, known)
        else:
            self.report = self.history.complete(report)
        if trainer.state.fn in ("fit", "validate"):  # the metrics of a test are the user's own
            log_scalars(trainer, pl_module, self.report)
        self._speaker.note(trainer, self.report)

    @guarded
    def _seen(self) -> Seen | None:
        if self._observer is None:
            return None
        seen, sampled = self._observer.seen(), of_sample(self.every_n_batches)
        return seen._replace(unseen={name: why + sampled for name, why in seen.unseen.items()})

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what only TensorBoard shows."""
        if trainer.sanity_checking or self.report is None or trainer.state.fn != "fit":
            return
        step = logged_step(trainer)
        write_report(trainer, self.report, self.per_unit, self.custom_scalars, step)
        log_tables(trainer, self.report, step)

    # --- test and prediction: a report, and nothing in the logs --------------------------------

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """As at validation."""
        self.on_validation_start(trainer, pl_module)

    @guarded
    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start counting."""
        self._begin_batch(batch_idx)

    @guarded
    def on_test_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop counting."""
        self._end_batch(batch_idx)

    @warns_beside_bar
    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge the whole pass, of all processes."""
        report = self._judge(trainer, pl_module)
        if report is not None:
            self._take_note(trainer, pl_module, report)

    on_predict_start = on_test_start
    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end
    on_predict_epoch_end = on_test_epoch_end

    # --- training -----------------------------------------------------------------------------

    @warns_beside_bar
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Re-initialise what the last verdicts found: checkpoints hold what was evaluated."""
        self._revive(trainer, pl_module)
        if self._windows is not None:
            self._windows.begin_batch(pl_module)
        if self._active_reviver is not None:
            ends = self._windows is not None and self._windows.ends_next
            self._active_reviver.record_batch(trainer, pl_module, TRAINING, ends_window=ends)

    @guarded_alone
    def _revive(self, trainer: Any, pl_module: Any) -> None:
        if self._active_reviver is not None:
            event = self._active_reviver.before_train_batch(trainer, pl_module)
            if event is not None:
                self._tell(trainer, pl_module, event)

    @guarded
    def _tell(self, trainer: Any, pl_module: Any, event: ReinitReport) -> None:
        histories = [self.history]
        if self._windows is not None and self._windows.history is not self.history:
            histories.append(self._windows.history)
        for history in histories:
            for name, units in event.reinitialised.items():
                history.note_reinitialised(name, units)
        series = [""] if self._windows is None else list(dict.fromkeys(["", self._windows.prefix]))
        known = self.report or self.window_report
        log_event(trainer, pl_module, event, known, logged_step(trainer), series)

    @guarded
    def _after_train_batch(self, trainer: Any, pl_module: Any) -> None:
        if self._active_reviver is not None:
            self._active_reviver.after_train_batch(trainer, pl_module)

    @guarded
    def _tell_outcome(self, trainer: Any, event: ReinitReport | None) -> None:
        if event is not None:
            say(trainer, event.outcome, logged_step(trainer))

    @warns_beside_bar
    @guarded
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The step has ended, where the Trainer itself runs backward and steps the optimizer."""
        if self.reviver is not None and pl_module.automatic_optimization:
            self.reviver.end_recording(training=True)

    @warns_beside_bar
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count training batches where that was asked for; judge when a window is full."""
        if self.reviver is not None:
            self.reviver.end_recording(outputs, training=True)
        if self._windows is not None:
            self._windows.end_batch()
        self._take_back(trainer, pl_module)
        self._after_train_batch(trainer, pl_module)
        if self._windows is None or not self._windows.full or self._guard.all_know:
            return
        report = self._windows.judge(trainer, pl_module)
        if report is None:
            return
        if not trainer.enable_validation:
            self.report, self.history = report, self._windows.history
            self._speaker.keep(report)
        self._judge_due(trainer, pl_module, report, of_validation=False)

    @warns_beside_bar
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Forget a batch that was skipped: ``on_train_batch_start`` may return -1."""
        self._detach_windows()

    @warns_beside_bar
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what came of re-initialisation, and if training was too short to be judged."""
        if self._windows is not None:
            self._windows.end_fit()
        self._tell_summary(trainer)

    @guarded
    def _tell_summary(self, trainer: Any) -> None:
        if self.reviver is not None:
            say(trainer, self.reviver.told(), logged_step(trainer))

    @warns_beside_bar
    @guarded
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read the learning rate, which a diagnosis looks at, and what has gradients."""
        self._circumstances.before_step(optimizer)
        if self._active_reviver is not None:
            self._active_reviver.note_step(optimizer)
        self._take_back(trainer, pl_module, optimizer)

    def _take_back(self, trainer: Any, pl_module: Any, optimizer: Any = None) -> None:
        """Give up units whose weights became NaN as soon as they were revived."""
        if self._active_reviver is not None:
            event = self._active_reviver.take_back_(trainer, optimizer)
            if event is not None:
                self._tell(trainer, pl_module, event)

    @property
    def _active_reviver(self) -> Reviver | None:
        """What re-initialises, until any process gives up: then all of them stop together."""
        return None if self._guard.all_know else self.reviver

    # --- the end, whatever it is --------------------------------------------------------------

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing behind: after an exception Lightning calls no teardown."""
        self._detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Say what the last report holds, and leave nothing behind."""
        self._say_report(trainer)
        self._detach()
        self._observer = None

    @guarded
    def _say_report(self, trainer: Any) -> None:
        self._speaker.end(trainer)

    def _let_go(self) -> None:
        if self._observer is not None:
            self._observer.detach()

    def _detach_windows(self) -> None:
        if self._windows is not None:
            self._windows.detach()
        if self.reviver is not None:
            self.reviver.after_train_epoch()

    def _detach(self) -> None:
        self._agreement = Agreement()
        self._let_go()
        if self._windows is not None:
            self._windows.leave()
        if self.reviver is not None:
            self.reviver.detach()

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only: a resume loads with ``weights_only=True``."""
        reviver = {} if self.reviver is None else self.reviver.state_dict()
        windows = {} if self._windows is None else self._windows.state_dict()
        return {
            "history": self.history.state_dict(),
            "reviver": reviver,
            "windows": windows,
            "names": self._names.state_dict(),
            "circumstances": self._circumstances.state_dict(),
        }

    @warns_beside_bar
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add to the state what only other processes know; all of them save together."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and self._windows is not None and not self._guard.all_know:
            self._windows.complete_state(trainer, state["windows"])
        if state and self.reviver is not None:
            self.reviver.complete_state(trainer, state["reviver"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        if "names" not in state_dict:
            warnings.warn(
                "DeadUnitCallback: the checkpoint is of a version that named layers by the order "
                "of their calls; the history of its units and its re-initialisations start anew.",
                stacklevel=2,
            )
            return
        self._names.load_state_dict(state_dict["names"])
        self.history.load_state_dict(state_dict["history"])
        self._speaker.resume(self.history.latest)
        self._circumstances.load_state_dict(state_dict["circumstances"])
        if self.reviver is not None and state_dict["reviver"]:
            self.reviver.load_state_dict(state_dict["reviver"])
        if self._windows is not None and state_dict.get("windows"):
            self._windows.load_state_dict(state_dict["windows"])

    def __getstate__(self) -> dict[str, Any]:
        # An observer belongs to the modules of one process; a copy of the callback makes its own.
        return {**self.__dict__, "_observer": None, "_fitted": None}


def _reinit_config(reinit: bool | ReinitConfig) -> ReinitConfig | None:
    if isinstance(reinit, ReinitConfig):
        return reinit
    if not isinstance(reinit, bool):
        way_out = ""
        if isinstance(reinit, dict):
            options = ", ".join(f"{name}={value!r}" for name, value in reinit.items())
            way_out = f" Write `reinit=ReinitConfig({options})`."
        raise TypeError(
            f"Expected `reinit` to be True, False or a ReinitConfig, but got {given(reinit)}."
            f"{way_out}"
        )
    return ReinitConfig() if reinit else None


def window_length(every_n_train_steps: int | None, reinit: ReinitConfig | None) -> int | None:
    """Return how many training batches are a window, None if none are to be counted.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is below 1, or re-initialisation decides by other windows.
    """
    decides = None if reinit is None else reinit.every_n_train_steps
    if every_n_train_steps is None:
        return decides
    if isinstance(every_n_train_steps, bool) or not isinstance(every_n_train_steps, int):
        raise TypeError(
            f"Expected `every_n_train_steps` to be an int, but got {every_n_train_steps!r}."
        )
    if every_n_train_steps < 1:
        raise ValueError(
            f"Expected `every_n_train_steps` to be at least 1, but got {every_n_train_steps}."
        )
    if decides not in (None, every_n_train_steps):
        raise ValueError(
            f"Expected `every_n_train_steps` to be that of `reinit`, {decides}, or to be left out, "
            f"but got {every_n_train_steps}: the windows that are logged are those that decide."
        )
    return every_n_train_steps
