"""What observing costs on a GPU, in one run of a few minutes: time, kernels and memory.

``python -m tests.benchmarks.gpu --json tests/benchmarks/results/gpu.json`` times evaluation passes
of ResNet-50 with and without an observer, in turn, in one process: wall time of several passes up
to the moment when the device has done all of them. One model serves both, as in a validation that
follows a training. Then it counts by torch.profiler what observing launches for an activation, and
measures the memory that it takes beside the activation.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.utils
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lightning_deadunits.counting import count_columns, device
from lightning_deadunits.observation.observer import Observer
from tests.benchmarks.result_file import write_results

TARGETS = {"eager": 1.10, "compiled": 1.03, "kernels per activation": 3, "bytes per value": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": dict(dtype=torch.float32),
    "float32, channels last": dict(dtype=torch.float32, channels_last=True),
    "bfloat16": dict(dtype=torch.bfloat16),
    "bfloat16, channels last": dict(dtype=torch.bfloat16, channels_last=True),
    "bfloat16, channels last, compiled": dict(
        dtype=torch.bfloat16, channels_last=True, compiled=True
    ),
    "float32, compiled": dict(dtype=torch.float32, compiled=True),
}
_SECONDS_PER_TURN = 0.15
_WARM_UPS = 2


def resnet50() -> nn.Module:
    """Return ResNet-50 with random weights, from the library that is there."""
    try:
        from torchvision.models import resnet50 as made
    except ImportError:
        from transformers import ResNetConfig, ResNetModel

        return ResNetModel(ResNetConfig())
    return made()


def laid_out(
    model: nn.Module, inputs: Tensor, dtype: torch.dtype, channels_last: bool
) -> tuple[nn.Module, Tensor]:
    """Return both on the GPU, in a precision and a layout."""
    model, inputs = model.to("cuda", dtype).eval(), inputs.to("cuda", dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return model, inputs


def seconds(run: Callable[[], None], passes: int) -> float:
    """Return the wall time of some passes until the device has done them."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(passes):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / passes


def measure(
    model: nn.Module, inputs: Tensor, pairs: int, *, compiled: bool = False
) -> dict[str, Any]:
    """Time plain and observed passes in turn.

    Compiled models are two, each compiled as it will run; hooks that come and go would have one
    compiled anew, and given up in the end.

    Returns:
        Milliseconds of the plain pass, the median ratio with quartiles, how many activations, and
        how many graphs were compiled.
    """
    observer = Observer(model)
    bare = torch.compile(copy.deepcopy(model)) if compiled else model
    observed = torch.compile(model) if compiled else model
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if compiled else 0

    def plain() -> None:
        with torch.no_grad():
            bare(inputs)

    def watched() -> None:
        with torch.no_grad(), observer.one_pass():
            observed(inputs)

    def timed(run: Callable[[], None], passes: int) -> float:
        with observer.watching() if run is watched else nullcontext():
            return seconds(run, passes)

    for run in (plain, watched):
        timed(run, 3)
    if compiled:
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        print({name: dict(own) for name, own in torch._dynamo.utils.counters.items()}, flush=True)
    passes = max(1, min(50, int(_SECONDS_PER_TURN / timed(plain, 3))))
    ratios, plains = [], []
    order = random.Random(0)
    for turn in range(pairs + _WARM_UPS):
        spent = {run: timed(run, passes) for run in order.sample([plain, watched], 2)}
        if turn >= _WARM_UPS:
            ratios.append(spent[watched] / spent[plain])
            plains.append(1000 * spent[plain])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "plain_ms": round(statistics.median(plains), 3),
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "activations": len(observer.counts),
        "pairs": pairs,
        "passes_per_turn": passes,
        "graphs": graphs,
    }


def launched(run: Callable[[], None]) -> int:
    """Count what a call launches on the device: kernels, and memory that is set or copied."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiler.events())


def launches_per_activation(model: nn.Module, inputs: Tensor) -> float:
    """Return what observing launches for an activation, summing of passes included."""
    observer = Observer(model)

    def plain() -> None:
        with torch.inference_mode():
            model(inputs)

    def watched() -> None:
        with torch.inference_mode(), observer.one_pass():
            model(inputs)

    before = launched(plain)
    with observer.watching():
        after = launched(watched)
    return (after - before) / len(observer.counts)


def bytes_per_value(dtype: torch.dtype, channels_last: bool, atol: float) -> float:
    """Return the memory that counting takes at its peak, beside the activation."""
    activation = torch.randn(64, 256, 56, 56, device="cuda").relu_().to(dtype)
    if channels_last:
        activation = activation.contiguous(memory_format=torch.channels_last)
    kept = [count_columns(activation, (1,), atol)]  # loads the kernel
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept.append(count_columns(activation, (1,), atol))
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / activation.numel()


def gigabytes_per_second(dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool) -> float:
    """Return how fast counting reads an activation."""
    activation = torch.randn(shape, device="cuda").relu_().to(dtype)
    if channels_last:
        activation = activation.contiguous(memory_format=torch.channels_last)
    spent = [seconds(lambda: count_columns(activation, (1,), 0.0), 20) for _ in range(3)]
    return round(activation.nbytes / min(spent) / 1e9, 1)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--budget", type=float, default=200.0, help="seconds; the rest is left out")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "triton": device.kernels() is not None,
        "targets": TARGETS,
        "cost": {},
    }
    model, inputs = resnet50(), torch.randn(options.batch, 3, 224, 224)
    small = laid_out(resnet50(), torch.randn(8, 3, 224, 224), torch.float32, False)
    results["launches per activation"] = round(launches_per_activation(*small), 2)
    results["bytes per value"] = {
        f"{dtype}, {'channels last' if last else 'contiguous'}, atol {atol}": round(
            bytes_per_value(dtype, last, atol), 4
        )
        for dtype in (torch.float32, torch.bfloat16)
        for last in (False, True)
        for atol in (0.0, 1e-3)
    }
    results["GB/s"] = {
        f"{dtype}, {shape}, {'channels last' if last else 'contiguous'}": gigabytes_per_second(
            dtype, shape, last
        )
        for dtype in (torch.float32, torch.bfloat16)
        for shape in ((128, 64, 112, 112), (128, 256, 56, 56), (128, 2048, 7, 7))
        for last in (False, True)
    }
    print(results, flush=True)
    for name in options.variants:
        variant = VARIANTS[name]
        if time.perf_counter() - started > options.budget:
            results["cost"][name] = {"error": "left out: no time was left"}
            continue
        torch.compiler.reset()
        compiled = variant.get("compiled", False)
        ready = laid_out(model, inputs, variant["dtype"], variant.get("channels_last", False))
        try:
            results["cost"][name] = measure(*ready, options.pairs, compiled=compiled)
        except Exception as error:
            results["cost"][name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, results["cost"][name], flush=True)
        model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_results(options.json, **results)
    return results


if __name__ == "__main__":
    main()
