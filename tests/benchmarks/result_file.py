"""How a benchmark writes down what it measured, and on what."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def mean_and_ci(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with the half width of its 95 % confidence interval (normal)."""
    runs = np.asarray(values, dtype=float)
    spread = runs.std(ddof=1) / math.sqrt(len(runs)) if len(runs) > 1 else math.nan
    return {"mean": round(float(runs.mean()), 4), "ci95": round(1.96 * float(spread), 4)}


def machine() -> dict[str, str]:
    """The processor and the versions that a number depends on."""
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def write_results(path: Path | None, **measured: object) -> None:
    """Write measurements with their machine as JSON; to nowhere if there is no path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **measured}, indent=1) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
