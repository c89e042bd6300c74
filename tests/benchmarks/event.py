"""What a re-initialisation costs, in plain passes of the recorded batch.

50 units of a ResNet-18 die and are revived, on 8 images of 224 x 224. Measured are recording beside
an evaluation pass, and the event on an eval tape and a training tape, from the first replay to the
optimizer's state. Plain passes are timed in turn with both, in one process; a ratio is the median
over rounds.

Run with::

    python -m tests.benchmarks.event --output tests/benchmarks/results/event.json
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_deadunits import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.recording import Recorder, Tape
from lightning_deadunits.reinit.revive import record_both
from tests.benchmarks.cost import seconds
from tests.benchmarks.overhead_nets import resnet18
from tests.benchmarks.result_file import write_results

DEAD = 50


def inner_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The norm of every block's first convolution, by the name of the activation behind it."""
    return {
        name.removesuffix("normalization") + "activation": module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.endswith("layer.0.normalization")
    }


def kill(model: nn.Module) -> dict[str, list[int]]:
    """Silence units of all blocks in turn; return them by layer."""
    norms = inner_norms(model)
    units: dict[str, list[int]] = {name: [] for name in norms}
    for number in range(DEAD):
        name = list(norms)[number % len(norms)]
        units[name].append(number // len(norms))
    with torch.no_grad():
        for name, norm in norms.items():
            norm.bias[units[name]] = -100.0
    return units


def revive(model: nn.Module, units: dict[str, list[int]], tapes: list[Tape]) -> int:
    """Re-initialise all units; return the number of replays."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    event = Event(model, tapes, OptimizerMemory([optimizer]), ReinitConfig(), step=0)
    event.operate_(units)
    event.commit_()
    if event.report.num_reinitialised != DEAD:
        raise RuntimeError(f"Expected {DEAD} units to be re-initialised, but got: {event.report}")
    return event.report.passes


def rounds(number: int) -> dict[str, dict[str, float]]:
    model, x = resnet18()
    model.eval()
    device = torch.device("cpu")
    recorder = Recorder(model)
    ratios: dict[str, list[float]] = {"recording": [], "event": []}
    replays = [0]

    def plain() -> None:
        with torch.no_grad():
            model(x)

    def recorded() -> Tensor:
        with torch.no_grad():
            return model(x)

    for turn in range(number + 1):
        units = kill(model)
        tapes = record_both(model, x)
        before = seconds(plain, device)
        event = seconds(lambda: replays.append(revive(model, units, tapes)), device)  # noqa: B023
        between = seconds(plain, device)
        recorder.begin(training=False)
        recording = seconds(recorded, device)
        recorder.cancel()
        after = seconds(plain, device)
        if turn:  # the first round warms up
            ratios["event"].append(2 * event / (before + between))
            ratios["recording"].append(2 * recording / (between + after))
    return {
        name: {
            "replays": replays[-1] if name == "event" else 0,
            "ratio": round(statistics.median(own), 3),
            "least": round(min(own), 3),
            "most": round(max(own), 3),
        }
        for name, own in ratios.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = rounds(arguments.rounds)
    for name, row in table.items():
        print(f"{name:12s}", row)
    write_results(arguments.output, dead=DEAD, rounds=arguments.rounds, events=table)


if __name__ == "__main__":
    main()
