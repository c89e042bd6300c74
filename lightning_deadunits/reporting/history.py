"""What one validation cannot tell and all together can: since when units are dead, and the course.

Two records. Of every unit: since when it is dead, whether it ever was alive, whether it was
re-initialised; as much memory after a thousand validations as after one. Of every validation: the
figures that were logged, for ``to_dataframe()`` and ``plot()``; of very long trainings every second
validation is left out, then every second of those, so that this does not grow for ever either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_deadunits.reporting.course import Course, Figures
from lightning_deadunits.reporting.diagnosis import diagnose
from lightning_deadunits.reporting.evidence import Evidence
from lightning_deadunits.reporting.figures import plural
from lightning_deadunits.reporting.report import ALIVE, DeadUnitsReport, LayerReport

if TYPE_CHECKING:
    import pandas


@dataclass
class _Life:
    """What is known of one layer's units, each a tensor of shape ``(U,)``.

    Attributes:
        dead_since: Step at which each unit was first seen dead in a row, ``ALIVE`` if it is alive.
        ever_alive: Whether each unit was alive at any validation.
        was_dead: Whether an earlier validation than the latest saw it dead, since it was last
            re-initialised if it ever was.
    """

    dead_since: Tensor
    ever_alive: Tensor
    was_dead: Tensor


class History:
    """Follows every unit over validations; survives a resume by its ``state_dict``.

    Args:
        of: What it is called that each report is of, a validation or a window of training batches.
    """

    def __init__(self, of: str = "validation") -> None:
        self._of = of
        self._lives: dict[str, _Life] = {}
        self._reinitialised: dict[str, list[int]] = {}
        self._course = Course()

    def __len__(self) -> int:
        return len(self._course)

    def __bool__(self) -> bool:
        """Be a history, also before the first validation."""
        return True

    def __repr__(self) -> str:
        return f"<History of {plural(len(self), self._of)}>"

    @property
    def latest(self) -> Figures | None:
        """The total of the latest validation, None before the first one."""
        return self._course.latest

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a data frame with one row per validation and layer, and one for the total.

        Its columns are ``step``, ``layer`` (``total`` for the sum), ``num_units``, ``num_dead``,
        ``dead_fraction``, ``zero_rate`` and ``reinitialised``, how many units were re-initialised
        since the validation before.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        return self._course.to_dataframe()

    def plot(self, **kwargs: Any) -> Any:
        """Draw the dead fraction of every layer over the steps of training.

        Args:
            **kwargs: Passed on to ``matplotlib.pyplot.figure``.

        Returns:
            The matplotlib figure.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        from lightning_deadunits.reporting.plotting import draw_course

        return draw_course(self._course, **kwargs)

    def record(
        self, report: DeadUnitsReport, step: int, evidence: Evidence | None = None
    ) -> DeadUnitsReport:
        """Take note of one validation and return its report, completed with the history.

        Args:
            report: The verdicts of this validation.
            step: Training step at which it took place.
            evidence: What a diagnosis rests on beside the verdicts, if anything is known.
        """
        for layer in report.layers.values():
            self._record_layer(layer, step)
        self._course.record(report, step)
        completed = replace(self.complete(report), step=step)
        found = diagnose(completed, evidence or Evidence(self._course.windows, of=self._of))
        return (
            completed
            if found is None
            else replace(completed, diagnosis=found.text, cause=found.cause)
        )

    def note_reinitialised(self, layer: str, units: Iterable[int]) -> None:
        """Take note that units were re-initialised since the latest validation.

        What was before is no longer theirs: a new run of being dead is dated anew, and is never
        called born dead.

        Args:
            layer: Name of their layer.
            units: Their indices.
        """
        fresh = list(units)
        known = self._reinitialised.setdefault(layer, [])
        known += [unit for unit in fresh if unit not in set(known)]
        self._course.note_reinitialised(layer, len(fresh))
        life = self._lives.get(layer)
        if life is not None and fresh and max(fresh) < len(life.dead_since):
            life.dead_since[fresh], life.was_dead[fresh] = ALIVE, False

    def complete(self, report: DeadUnitsReport) -> DeadUnitsReport:
        """Return a report with what is known of its units, without taking note of it."""
        layers = {name: self._complete_layer(layer) for name, layer in report.layers.items()}
        return replace(report, layers=layers)

    def _record_layer(self, layer: LayerReport, step: int) -> None:
        if not layer.observations:
            return
        dead = layer.dead_mask
        life = self._lives.get(layer.name)
        if life is None or len(life.dead_since) != layer.num_units:
            nothing = torch.zeros_like(dead)
            self._lives[layer.name] = _Life(torch.where(dead, step, ALIVE), ~dead, nothing)
            return
        died = dead & (life.dead_since == ALIVE)
        self._lives[layer.name] = _Life(
            dead_since=torch.where(died, step, torch.where(dead, life.dead_since, ALIVE)),
            ever_alive=life.ever_alive | ~dead,
            was_dead=life.was_dead | (life.dead_since != ALIVE),
        )

    def _complete_layer(self, layer: LayerReport) -> LayerReport:
        life = self._lives.get(layer.name)
        if life is None or len(life.dead_since) != layer.num_units:
            return layer
        dead, again = layer.dead_mask, self._reinitialised_mask(layer)
        return replace(
            layer,
            dead_since=torch.where(dead, life.dead_since, ALIVE),
            born_dead=dead & ~life.ever_alive & ~again,
            reinitialised=again,
            was_dead=life.was_dead,
        )

    def _reinitialised_mask(self, layer: LayerReport) -> Tensor:
        mask = torch.zeros(layer.num_units, dtype=torch.bool)
        known = [unit for unit in self._reinitialised.get(layer.name, ()) if unit < len(mask)]
        mask[known] = True
        return mask

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only: Lightning resumes with ``weights_only=True``."""
        return {
            "lives": {name: dict(vars(life)) for name, life in self._lives.items()},
            "reinitialised": {name: list(units) for name, units in self._reinitialised.items()},
            "course": self._course.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._lives = {name: _Life(**life) for name, life in state["lives"].items()}
        self._reinitialised = {name: list(own) for name, own in state["reinitialised"].items()}
        self._course = Course()
        self._course.load_state_dict(state["course"])
