"""How large should the fresh weights of a revived unit be? Digits, many seeds side by side.

Of a 64-64-64-10 network, made as `nn.Linear` makes it, seven of eight units of both hidden layers
are killed by their biases, at the start or in the tenth of 30 epochs, and revived two epochs
later as `reinit_dead_units` does: outgoing weights zero, bias centred, Adam's steps counted anew.
Only the scale of the fresh incoming weights differs: as `nn.Linear` draws them, at the median norm
of the live units ("matched"), or at Kaiming's scale for ReLU. Reported: accuracy on 397 held-out
digits at the end minus that of a network of the same seed that nothing happened to.

Run with (a minute on a free core)::

    python -m tests.benchmarks.fresh_scale --output tests/benchmarks/results/fresh_scale.json
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.plasticity.networks import Learner, Networks, Optimizer
from tests.benchmarks.plasticity.problems import HELD_OUT, PROBLEMS, digits
from tests.benchmarks.plasticity.training import judged
from tests.benchmarks.result_file import mean_and_ci, write_results

SIZES, ALIVE, EPOCHS, BATCH, WAIT = (64, 64, 64, 10), 8, 30, 64, 2
RATES = {"SGD": 0.1, "Adam": 1e-3}
KILLED = (0, 10)
SCALES = ("not revived", "as nn.Linear", "matched", "Kaiming")


def new_learner(optimizer: str, seeds: int) -> Learner:
    """Return networks as `nn.Linear` makes them, one per seed, and their optimizer."""
    networks = Networks(SIZES, list(range(seeds)))
    for seed in range(seeds):
        torch.manual_seed(seed)
        for layer, weight in enumerate(networks.own.weights):
            linear = nn.Linear(weight.shape[2], weight.shape[1])
            weight[seed] = linear.weight.detach()
            networks.own.biases[layer][seed, 0] = linear.bias.detach()
    rates = torch.full((seeds,), RATES[optimizer])
    steps = Optimizer(networks, rates, optimizer == "Adam", "unit")
    return Learner(networks, steps, torch.Generator().manual_seed(1))


def learn(optimizer: str, seeds: int, killed: int | None, scale: str) -> Tensor:
    """Return the accuracy at the end in %, shape ``(seeds,)``.

    Args:
        optimizer: "SGD" or "Adam".
        seeds: How many networks.
        killed: In which epoch units are killed, None for never.
        scale: Of the fresh weights.
    """
    learner, (images, classes) = new_learner(optimizer, seeds), digits()
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    trained = len(images) - HELD_OUT
    for epoch in range(EPOCHS):
        if epoch == killed:
            for layer in learner.networks.hidden:
                learner.networks.own.biases[layer][..., ALIVE:] = -10.0
        if killed is not None and epoch == killed + WAIT:
            revive_(learner, scale, images[HELD_OUT : HELD_OUT + 8])
        orders = torch.stack([torch.randperm(trained, generator=g) for g in generators])
        for chosen in (orders + HELD_OUT).split(BATCH, dim=1):
            outputs = learner.predict(images[chosen])
            gradient, _ = judged(PROBLEMS["random labels"], outputs, classes[chosen])
            learner.networks.backward(gradient)
            learner.optimizer.step()
    outputs = learner.networks.forward(images[:HELD_OUT].expand(seeds, -1, -1))
    return (outputs.argmax(-1) == classes[:HELD_OUT]).float().mean(1) * 100


def revive_(learner: Learner, scale: str, example: Tensor) -> None:
    """Give the killed units fresh weights of some scale, layer by layer."""
    networks = learner.networks
    for layer in networks.hidden if scale != "not revived" else ():
        networks.forward(example.expand(networks.lanes, -1, -1).contiguous())
        dead = torch.ones(networks.lanes, SIZES[layer + 1], dtype=torch.bool)
        dead[:, :ALIVE] = False
        weight = networks.own.weights[layer]
        size = weight[:, :ALIVE].norm(dim=-1).median(1).values
        learner.reinit_(layer, dead)
        fresh = weight[:, ALIVE:]
        if scale == "as nn.Linear":
            fresh *= 6**-0.5
        if scale == "matched":
            fresh *= (size[:, None] / fresh.norm(dim=-1))[..., None]
        entering = networks.inputs[layer]
        networks.own.biases[layer][:, 0, ALIVE:] = -(entering @ fresh.mT).median(1).values


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for optimizer in RATES:
        healthy = learn(optimizer, options.seeds, None, "")
        for killed, scale in product(KILLED, SCALES):
            gaps = (learn(optimizer, options.seeds, killed, scale) - healthy).tolist()
            row = {"optimizer": optimizer, "killed in epoch": killed, "fresh weights": scale}
            rows.append(row | {"healthy": mean_and_ci(healthy.tolist()), "gap": mean_and_ci(gaps)})
            print({**rows[-1], "healthy": rows[-1]["healthy"]["mean"]}, flush=True)
            write_results(options.output, seeds=options.seeds, epochs=EPOCHS, rows=rows)
    return rows


if __name__ == "__main__":
    main()
