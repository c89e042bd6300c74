"""Real TensorBoard processes on loopback."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tensorboard(
    logdir: Path, *options: str, plugin: bool = True, env: dict[str, str] | None = None
) -> Iterator[str]:
    """Start TensorBoard on a free port; yield its address once it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield _address(process)
    finally:
        process.terminate()
        process.wait(timeout=20)
        assert process.stderr is not None
        process.stderr.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(r"http://\S+:\d+/\S*", line):
            return match[0].rstrip("/")
    raise AssertionError("TensorBoard did not start:\n" + "".join(seen))


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read()


def wait_until(condition, timeout: float = 20.0):
    """Poll until ``condition()`` is true; return what it returned."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{condition} did not come true in {timeout} s"
        time.sleep(0.1)
    return answer
