"""Keeps training alive: monitoring that fails in an unforeseen way warns once and stops."""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lightning_deadunits.observation.selection import SelectionError

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Guard:
    """Whether monitoring gave up.

    Attributes:
        gave_up: Whether it did on this process.
        all_know: Whether all processes know, so that none waits for another.
    """

    def __init__(self) -> None:
        self.gave_up = False
        self.all_know = False

    def give_up(self, error: Exception) -> None:
        """Warn, once, with the traceback."""
        if self.gave_up:
            return
        self.gave_up = True
        trace = "".join(traceback.format_exception(error))
        warnings.warn(
            f"DeadUnitCallback failed and watches no longer; training goes on. Please report "
            f"this.\n{trace}",
            stacklevel=3,
        )


def guarded(method: _Method) -> _Method:
    """Make a hook harmless: what it raises is a warning, and the hooks after it do nothing.

    Errors in the configuration are meant for the user and come through.
    """

    @functools.wraps(method)
    def safe(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._guard.gave_up:
            return None
        try:
            return method(self, *args, **kwargs)
        except SelectionError:
            raise
        except Exception as error:
            self._let_go()
            self._guard.give_up(error)
            return None

    return cast(_Method, safe)


def guarded_alone(method: _Method) -> _Method:
    """Make what processes do together harmless where one trains; where several do, all fail.

    One that went on alone would leave the others waiting.
    """
    harmless = guarded(method)

    @functools.wraps(method)
    def safe(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        return (harmless if trainer.world_size == 1 else method)(self, trainer, *args, **kwargs)

    return cast(_Method, safe)
