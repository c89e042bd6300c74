"""What observing costs: an evaluation pass with and without, paired in one process.

``python -m tests.benchmarks.overhead`` prints, for this package and its peers, the ratio of CPU
times (of device times on CUDA), the median over paired runs on one thread; ``--compiled`` adds
the same under torch.compile. The floor reads every activation once, by ``x.sum()``. Peak memory
is what the pass holds beyond its start, by torch's own account of allocations.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.cost import keep_heap, peak_bytes, seconds
from tests.benchmarks.overhead_nets import NETS, ON_CPU
from tests.benchmarks.peers import Tool, installed, versions
from tests.benchmarks.result_file import write_results

TARGETS = {
    "conv blocks": 1.05,
    "mlp": 1.10,
    "resnet-18": 1.03,
    "conv blocks, compiled": 1.10,
    "resnet-50": 1.10,
    "resnet-50, compiled": 1.03,
}
_WARM_UPS = 3


class Floor(Tool):
    """The least that anyone who looks at every activation pays: one read of each."""

    package = "floor"

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        super().__init__(model)
        self.sums: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, (nn.ReLU, nn.GELU)):
                module.register_forward_hook(lambda *call: self.sums.append(call[2].sum()))

    def __call__(self, batch: Tensor) -> None:
        self.sums.clear()
        self.model(batch)


CONTENDERS: dict[str, type[Tool]] = {tool.package: tool for tool in (Floor, *installed())}


def measure(
    model: nn.Module,
    inputs: Tensor,
    pairs: int,
    tools: dict[str, type[Tool]],
    *,
    compiled: bool = False,
    passes: int = 1,
) -> dict[str, Any]:
    """Time plain and observed passes in turn.

    Args:
        model: The model, in eval mode.
        inputs: What it is called with.
        pairs: How many rounds; in each the plain pass runs once, and once under every tool.
        tools: The tools.
        compiled: Whether everything runs under torch.compile.
        passes: How many passes are timed together, in a loop of nothing else.

    Returns:
        Tool to its median ratio with quartiles and memory ratio, and the plain pass's time.
    """
    runs = {"plain": _pass(model, inputs, Tool, compiled)}
    runs |= {name: _pass(model, inputs, tool, compiled) for name, tool in tools.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    order = random.Random(0)
    for turn in range(pairs + _WARM_UPS):
        # In another order each time: what ran before leaves the allocator and caches in its state.
        for name in order.sample(list(runs), len(runs)):
            if name in failed:
                continue
            try:
                spent = seconds(partial(_loop, runs[name], passes), inputs.device) / passes
            except Exception as error:
                if name == "plain":
                    raise
                failed[name] = type(error).__name__
                continue
            if turn >= _WARM_UPS:
                times[name].append(spent)
    memory = {n: peak_bytes(run, inputs.device) for n, run in runs.items() if n not in failed}
    result: dict[str, Any] = {"plain_ms": round(1000 * statistics.median(times["plain"]), 2)}
    for name in tools:
        if name in failed:
            result[name] = {"error": failed[name]}
            continue
        ratios = [a / b for a, b in zip(times[name], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {
            "ratio": round(middle, 4),
            "quartiles": [round(low, 4), round(high, 4)],
            "memory_ratio": round(memory[name] / memory["plain"], 4),
        }
    return result


def _loop(run: Callable[[], None], times: int) -> None:
    for _ in range(times):
        run()


def _pass(model: nn.Module, inputs: Tensor, tool: type[Tool], compiled: bool) -> Callable[[], None]:
    """Return a function that runs a copy of the model, watched by a tool for good."""
    # With the same weights: where in memory copies lie makes a difference of several per cent.
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    watched = copy.deepcopy(model, weights)
    # Before compilation: Dynamo skips hooks that come later, and those of a second instance of a
    # class that was compiled before, unless it is told to guard on hooks.
    torch._dynamo.config.skip_nnmodule_hook_guards = not compiled
    attached = tool(watched)
    if compiled:
        attached.model = torch.compile(watched)  # type: ignore[assignment]

    def run() -> None:
        with torch.no_grad():
            attached(inputs)

    return run


def machine(device: torch.device) -> str:
    """Name the GPU, or the CPU's architecture."""
    return torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()


def table(results: dict[str, dict[str, Any]], tools: list[str]) -> str:
    """Return all ratios as a table in markdown: time, and memory in brackets."""
    rows = ["| pass | plain | " + " | ".join(tools) + " | target |"]
    rows.append("|---" * (len(tools) + 3) + "|")
    for label, result in results.items():
        cells = [_cell(result[tool]) for tool in tools]
        target = f"{TARGETS[label]:.2f}" if label in TARGETS else ""
        rows.append(f"| {label} | {result['plain_ms']} ms | {' | '.join(cells)} | {target} |")
    return "\n".join(rows)


def _cell(measured: dict[str, Any]) -> str:
    if "error" in measured:
        return f"raises {measured['error']}"
    return f"{measured['ratio']:.2f} ({measured['memory_ratio']:.2f})"


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure, print a table and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument(
        "--passes", type=int, default=1, help="timed together, in a loop of nothing else"
    )
    parser.add_argument("--nets", nargs="*", default=ON_CPU, choices=list(NETS))
    parser.add_argument("--tools", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument(
        "--compiled", nargs="*", default=[], choices=list(NETS), help="also under torch.compile"
    )
    parser.add_argument("--bf16", action="store_true", help="weights and inputs in bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="images as NHWC in memory")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_heap()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    tools = {name: CONTENDERS[name] for name in options.tools}
    results: dict[str, dict[str, Any]] = {}
    for name in options.nets:
        model, inputs = NETS[name]()
        model, inputs = model.to(device, dtype).eval(), inputs.to(device, dtype)
        if options.channels_last and inputs.ndim == 4:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        for compiled in (False, True) if name in options.compiled else (False,):
            torch.compiler.reset()
            label = name + (", compiled" if compiled else "")
            results[label] = measure(
                model, inputs, options.pairs, tools, compiled=compiled, passes=options.passes
            )
            print(label, "done", flush=True)
    print(table(results, list(tools)))
    settings = {
        "device": machine(device),
        "dtype": str(dtype),
        "channels_last": options.channels_last,
        "pairs": options.pairs,
        "passes": options.passes,
        "load_average": os.getloadavg()[0],  # how busy others kept the machine
    }
    write_results(
        options.json, settings=settings, versions=versions(), ratios=results, targets=TARGETS
    )
    return results


if __name__ == "__main__":
    main()
