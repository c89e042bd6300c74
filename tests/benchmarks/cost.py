"""What one run of a function costs: seconds and bytes, on the CPU or on CUDA."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch.profiler import ProfilerActivity, profile


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Return the CPU time of one run, or the device's time."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.process_time()
    run()
    return time.process_time() - begin


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Return the most memory that a run holds at once, beyond what was held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    held = most = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def keep_heap() -> None:
    """Have the C library keep memory that was freed, where it can be told to.

    Otherwise glibc gives large activations back to the system and gets them anew in every pass, at
    the cost of a page fault per 4 KiB, in an order that any other allocation changes: the time of
    a pass then varies by more than what is measured, up and down.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, value in ((_TRIM_THRESHOLD, 1 << 30), (_MMAP_MAX, 0)):
            mallopt(parameter, value)


_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
