"""What observing costs: an evaluation pass with and without, paired in one process.

``python -m tests.benchmarks.overhead`` prints the ratio of CPU times (of device times on CUDA),
the median over paired runs, on one thread. Peak memory is what the pass holds beyond its start,
by torch's own account of allocations.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import ResNetConfig, ResNetModel

from lightning_deadunits.observation.observer import Observer

TARGETS = {"conv blocks": 1.05, "mlp": 1.10, "resnet-18": 1.03, "conv blocks, compiled": 1.10}


def conv_blocks() -> tuple[nn.Module, Tensor]:
    """Six Conv-BN-ReLU blocks at (32, 3, 32, 32)."""
    widths = [3, 64, 64, 64, 64, 64, 64]
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(32, 3, 32, 32)


def mlp() -> tuple[nn.Module, Tensor]:
    """Six layers of width 512 at batch 256."""
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(256, 512)


def resnet18() -> tuple[nn.Module, Tensor]:
    """ResNet-18 as transformers writes it, at (8, 3, 224, 224)."""
    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    return ResNetModel(config), torch.randn(8, 3, 224, 224)


def transformer_mlp() -> tuple[nn.Module, Tensor]:
    """Three MLP blocks of a transformer of width 384, 196 tokens, batch 8."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.LayerNorm(384), nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)]
    return nn.Sequential(*layers), torch.randn(8, 196, 384)


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "conv blocks": conv_blocks,
    "mlp": mlp,
    "resnet-18": resnet18,
    "transformer mlp": transformer_mlp,
}


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


def measure(model: nn.Module, inputs: Tensor, device: torch.device, pairs: int) -> dict[str, Any]:
    """Time plain and observed passes in turn and return the median ratio and its quartiles."""
    model = model.to(device).eval()
    inputs = inputs.to(device)
    observer = Observer(model)

    def plain() -> None:
        with torch.no_grad():
            model(inputs)

    def observed() -> None:
        with torch.no_grad(), observer.one_pass():
            model(inputs)

    ratios, times = [], []
    for pair in range(pairs + 2):
        bare = seconds(plain, device)
        with observer.watching():
            counted = seconds(observed, device)
        if pair >= 2:  # the first two warm up
            ratios.append(counted / bare)
            times.append(bare)
    bare_memory = peak_bytes(plain, device)
    with observer.watching():
        memory = peak_bytes(observed, device)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "plain_ms": round(1000 * statistics.median(times), 2),
        "memory_ratio": round(memory / bare_memory, 4),
    }


def machine(device: torch.device) -> dict[str, str]:
    """Say what the figures were measured on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--compiled", action="store_true", help="also under torch.compile")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    results: dict[str, Any] = {"machine": machine(device), "ratios": {}}
    for name in options.nets:
        for compiled in (False, True) if options.compiled else (False,):
            model, inputs = NETS[name]()
            model = torch.compile(model) if compiled else model  # type: ignore[assignment]
            label = name + (", compiled" if compiled else "")
            result = measure(model, inputs, device, options.pairs)
            results["ratios"][label] = result
            target = f"target {TARGETS[label]:.2f}" if label in TARGETS else ""
            print(
                f"{label:28s} {result['ratio']:.3f} {result['quartiles']} of "
                f"{result['plain_ms']} ms, memory {result['memory_ratio']:.3f}  {target}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
