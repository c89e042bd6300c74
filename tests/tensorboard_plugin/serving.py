"""Real TensorBoard processes on loopback."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard import default, program
from tensorboard.backend import application
from werkzeug.test import Client

from lightning_deadunits.tensorboard_plugin import DeadUnitsPlugin

ROUTE = "/data/plugin/dead_units"


@contextlib.contextmanager
def tensorboard(logdir: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """Start TensorBoard on a free port; yield its address once it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield _address(process)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(r"http://\S+:\d+/\S*", line):
            # Somebody must go on reading, or TensorBoard stops when the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return match[0].rstrip("/")
    raise AssertionError("TensorBoard did not start:\n" + "".join(seen))


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read()


def wait_until(condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Poll until ``condition()`` is true; return what it returned."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{condition} did not come true in {timeout} s"
        time.sleep(0.1)
    return answer


def client(logdir: Path, *options: str) -> Client:
    """TensorBoard's WSGI application in this process, with all data loaded."""
    board = program.TensorBoard([*default.get_static_plugins(), DeadUnitsPlugin])
    argv = ["", "--logdir", str(logdir), "--load_fast=false", "--reload_task=blocking"]
    board.configure([*argv, "--reload_interval=0", *options])
    provider, multiplexer = board._make_data_provider()
    return Client(
        application.TensorBoardWSGIApp(
            board.flags, board.plugin_loaders, provider, board.assets_zip_provider, multiplexer
        )
    )


def heat_map(url: str, run: str, layer: str, order: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fetch a heat map, its matrix turned so that a row is a unit."""
    path = f"{ROUTE}/layer?run={run}&layer={layer}&order={order}"
    header, arrays = unpack(get(url + path))
    return header, {**arrays, "rates": arrays["rates"].T}


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a bundle as HTTP.md describes it."""
    length = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + length])
    body = content[4 + length :]
    arrays = {
        name: np.frombuffer(
            body, np.dtype(it["dtype"]), int(np.prod(it["shape"])), it["offset"]
        ).reshape(it["shape"])
        for name, it in header["arrays"].items()
    }
    return header, arrays
