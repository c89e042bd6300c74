"""In a terminal, under a real progress bar: what is said stands on lines of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyte
import pytest

ROOT = Path(__file__).parents[2]
COLUMNS, LINES = 110, 120


def on_screen(bar: str, stage: str) -> list[str]:
    """Return the lines of a terminal after a training in it, as a terminal shows them."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "CI"):
        environment.pop(name, None)
    training = subprocess.Popen(
        [sys.executable, "-m", "tests.lightning.barred_training", bar, stage],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(theirs)
    try:
        while chunk := _read(ours):
            stream.feed(chunk)
        assert training.wait(120) == 0, screen.display
    finally:
        training.kill()
        os.close(ours)
    return [line.rstrip() for line in screen.display]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so that the other end has closed
        return b""


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
def test_a_training_says_its_report_beside_the_bar(bar: str) -> None:
    lines = on_screen(bar, "fit")
    text = " ".join(line.strip() for line in lines)
    warning = next(line for line in lines if "The dead fraction rose" in line)
    assert "it/s" not in warning
    # The screen wraps lines wherever it has to.
    assert "from10.7%to32.1%betweensteps3and7" in text.replace(" ", "")
    header = lines.index("layer     units       dead  zero rate  made by  dead since")
    assert lines[header - 1] == ""
    figures = "net.act      16  9 (56.3%)      0.785  net.fc1  3 born dead, 6 at step 7"
    assert lines[header + 2] == figures
    assert lines[header + 5].split() == ["total", "28", "9", "(32.1%)"]


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
def test_every_event_has_a_line_of_its_own(bar: str) -> None:
    lines = on_screen(bar, "reinit")
    said = [line for line in lines if "e-initialised" in line or "No unit is dead" in line]
    assert len(said) >= 5
    for line in said:
        assert line.startswith(("Re-initialis", "Of those re-initialised", "No unit is dead")), line


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
def test_an_event_that_fails_warns_on_a_line_of_its_own(bar: str) -> None:
    lines = on_screen(bar, "broken")
    begun = [line for line in lines if "reinit/training/reviver.py" in line]
    assert len(begun) == 2
    assert all(line.startswith("/") for line in begun), begun
    assert "no such distribution" in " ".join(lines)


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
def test_validate_leaves_its_report(bar: str) -> None:
    lines = on_screen(bar, "validate")
    assert any(line.startswith("net.act      16  3 (18.8%)      0.") for line in lines), lines
