"""Text beside a progress bar: what is said starts on a line of its own.

A progress bar leaves the cursor behind itself, so that what the logger or a warning writes next
would be glued to it. tqdm clears its bars for as long as something else writes, and draws them
again. Rich keeps its bar at the bottom and wants to write what goes above it; the logger's handlers
got hold of ``sys.stderr`` before Rich replaced it, so they are handed Rich's stream meanwhile.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar, cast

from lightning_utilities.core import rank_zero
from tqdm import tqdm

_Hook = TypeVar("_Hook", bound=Callable[..., Any])


def announce(trainer: Any, text: str) -> None:
    """Log a text of one or more lines through the rank-zero logger, beside no progress bar."""
    with beside_progress_bar(trainer):
        rank_zero.rank_zero_info(text)


@contextmanager
def beside_progress_bar(trainer: Any) -> Iterator[None]:
    """Let the logger and warnings write on lines of their own."""
    with ExitStack() as stack:
        # One lock for all of tqdm's bars: it is held while we write, as in `tqdm.write`.
        stack.enter_context(tqdm.external_write_mode(file=sys.stderr))
        live = _live(trainer.progress_bar_callback)
        if live is not None:
            # Rich works out what to erase before it writes. Its thread that draws the bar would, in
            # between, erase a line too many when the bar has grown: the one that was said before.
            stack.enter_context(getattr(live, "_lock", nullcontext()))
            stack.enter_context(_handlers_write_to(live.console))
        yield


def warns_beside_bar(hook: _Hook) -> _Hook:
    """Have whatever warns in a hook of the callback do so beside the progress bar.

    Warnings come from rooms that know no terminal, and from torch. The bar is cleared for each of
    them, rather than for every hook: that would cost time at every batch.
    """

    @functools.wraps(hook)
    def told(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with _warnings_beside(trainer):
            return hook(self, trainer, *args, **kwargs)

    return cast(_Hook, told)


@contextmanager
def _warnings_beside(trainer: Any) -> Iterator[None]:
    before = warnings.showwarning

    def show(*args: Any, **kwargs: Any) -> None:
        with beside_progress_bar(trainer):
            before(*args, **kwargs)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:  # else somebody has put another one in place meanwhile
            warnings.showwarning = before


def _live(bar: Any) -> Any:
    """Return the display of a Rich progress bar that is on the screen, None if there is none."""
    live = getattr(getattr(bar, "progress", None), "live", None)
    return live if getattr(live, "is_started", False) else None


@contextmanager
def _handlers_write_to(console: Any) -> Iterator[None]:
    """Hand the console to those handlers of the rank-zero logger that write to the terminal."""
    from rich.file_proxy import FileProxy

    replaced: list[tuple[logging.StreamHandler[Any], Any]] = []
    try:
        for handler in _handlers(rank_zero.log):
            if _is_of_terminal(handler):
                proxy = FileProxy(console, handler.stream)
                replaced.append((handler, handler.setStream(proxy)))
        yield
    finally:
        for handler, stream in replaced:
            handler.stream.flush()
            handler.setStream(stream)


def _is_of_terminal(handler: logging.Handler) -> bool:
    """Tell whether a handler writes to stdout or stderr, as they were before Rich came."""
    streams = (sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in streams


def _handlers(logger: logging.Logger | None) -> Iterator[logging.StreamHandler[Any]]:
    """Yield the handlers that a logger's records reach."""
    while logger is not None:
        yield from logger.handlers  # type: ignore[misc]  # those of other kinds are left out above
        logger = logger.parent if logger.propagate else None
