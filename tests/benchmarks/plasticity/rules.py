"""Which units are re-initialised, when and how: published rules, ours, and random controls.

A rule is told once what it has, then called twice per training step: `adjust` between the
gradients and the optimizer's step, `act` after it. Settings that a rule is tuned over are given
per lane, as tensors of shape ``(L,)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.plasticity.networks import Learner, Steps

Settings = Mapping[str, Tensor]


class Rule:
    """Leaves everything alone; the base of all others.

    Args:
        settings: What the rule is tuned over, a value per lane.
    """

    layer_norm = False
    steps: Steps = "kept"

    def __init__(self, settings: Settings) -> None:
        self.settings, self.resets = settings, 0

    def begin(self, learner: Learner) -> None:
        """Look at the networks before the first step."""
        lanes = learner.networks.lanes
        self.resets = torch.zeros(lanes, dtype=torch.int64)

    def adjust(self, learner: Learner) -> None:
        """Change the gradients before the optimizer takes its step."""

    def act(self, learner: Learner, step: int) -> None:
        """Look at the last pass, and re-initialise what is due; steps count from 1."""


class LayerNorm(Rule):
    """Layer norm before every hidden ReLU (Ba et al. 2016, "Layer normalization")."""

    layer_norm = True


class L2Init(Rule):
    """Pulls all parameters towards where they began.

    Kumar et al. 2023, "Maintaining plasticity in continual learning via regenerative
    regularization": the loss gets ``strength * |parameters - initial ones|^2``.
    """

    def begin(self, learner: Learner) -> None:
        super().begin(learner)
        self._initial = learner.networks.rows.clone()
        self._pull = 2 * self.settings["strength"][:, None]

    def adjust(self, learner: Learner) -> None:
        networks = learner.networks
        networks.gradients.addcmul_(networks.rows - self._initial, self._pull)


class Windowed(Rule):
    """Judges the units every so many steps by what they did since the last time.

    Settings: ``every``, the steps of a window. Lanes may have windows of different lengths.
    """

    centred, outgoing = False, True

    def begin(self, learner: Learner) -> None:
        super().begin(learner)
        networks = learner.networks
        self._seen = [torch.zeros(networks.lanes, n) for n in networks.sizes[1:-1]]
        self._lengths = sorted({int(every) for every in self.settings["every"]})

    def activity(self, learner: Learner, layer: int) -> Tensor:
        """Return what is summed over a window, shape ``(L, units)``; it is never below zero."""
        return learner.networks.activations(layer).sum(1)

    def chosen(self, activity: Tensor, layer: int) -> Tensor:
        """Return which units are due, of any lane, as bool of shape ``(L, units)``."""
        raise NotImplementedError

    def act(self, learner: Learner, step: int) -> None:
        for layer, seen in enumerate(self._seen):
            seen += self.activity(learner, layer)
        lengths = [length for length in self._lengths if step % length == 0]
        if not lengths:
            return
        due = torch.isin(self.settings["every"].long(), torch.tensor(lengths))
        for layer, seen in enumerate(self._seen):
            self.judge(learner, layer, seen, due)
            seen[due] = 0.0

    def judge(self, learner: Learner, layer: int, seen: Tensor, due: Tensor) -> None:
        """Re-initialise what is due in one layer of the lanes whose window is over."""
        chosen = self.chosen(seen, layer) & due[:, None]
        learner.reinit_(layer, chosen, centred=self.centred, outgoing=self.outgoing)
        self.resets += chosen.sum(1)


class Ours(Windowed):
    """What `DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=...))` does.

    Units that never fired within the window; fresh weights as at the start, bias such that half of
    8 recent inputs fire, outgoing weights zero, and under Adam a step count of their own.
    """

    centred = True
    steps: Steps = "unit"

    def chosen(self, activity: Tensor, layer: int) -> Tensor:
        return activity == 0


class OursDormant(Ours):
    """The same with ``criterion="dormant"``: mean activation at most tau times the layer's mean."""

    def chosen(self, activity: Tensor, layer: int) -> Tensor:
        return activity <= self.settings["tau"][:, None] * activity.mean(1, keepdim=True)


class RandomUnits(Ours):
    """The control: as many units as ours, at the same times, by the same surgery, but any of them.

    The first half of the lanes are ours; in the second half as many units are drawn at random,
    live ones included, as the lane of the first half had re-initialised at that moment.
    """

    def chosen(self, activity: Tensor, layer: int) -> Tensor:
        half = len(activity) // 2
        ours = activity[:half] == 0
        order = torch.rand((half, activity.shape[1]), generator=self._generator).argsort(1)
        drawn = order.argsort(1) < ours.sum(1, keepdim=True)
        return torch.cat([ours, drawn])

    def begin(self, learner: Learner) -> None:
        super().begin(learner)
        self._generator = torch.Generator().manual_seed(1)


class ReDo(Windowed):
    """Dormant units, whose mean activation is at most tau times the mean of their layer.

    Sokar et al. 2023, "The dormant neuron phenomenon in deep reinforcement learning": incoming
    weights as at the start, outgoing ones zero, Adam's moments zero.
    """

    def chosen(self, activity: Tensor, layer: int) -> Tensor:
        return activity <= self.settings["tau"][:, None] * activity.mean(1, keepdim=True)


class ReGraMa(Windowed):
    """Units whose incoming weights get gradients of at most tau times the mean of their layer.

    Liu et al. 2025, "Measure gradients, not activations! Enhancing neuronal activity in deep
    reinforcement learning". As the authors' code has it, incoming weights and their moments are
    reset, the steps of these tensors start anew, and outgoing weights stay. Theirs looks at the
    gradients of one batch; here magnitudes are summed over the window, for batches may be of one.
    """

    outgoing = False
    steps: Steps = "tensor"

    def activity(self, learner: Learner, layer: int) -> Tensor:
        return learner.networks.gradient.weights[layer].abs().mean(-1)

    def chosen(self, activity: Tensor, layer: int) -> Tensor:
        return activity <= self.settings["tau"][:, None] * activity.mean(1, keepdim=True)


class SelfNormalizedResets(Rule):
    """Units that have been silent for longer than their own history makes likely.

    Farias & Jozefiak 2024, "Self-normalized resets for plasticity in continual learning": reset if
    the probability of so long a silence is at most eta. The distribution of a unit's silences is
    taken as geometric, with the rate at which it has fired since it was made; a step counts as
    fired if any example of the batch does. Incoming weights as at the start, outgoing ones, bias
    and Adam's moments zero. Settings: ``eta``; ``floor``, the least steps of silence, and what a
    unit without a history is taken to wait between two firings (in the authors' code, too,
    thresholds have a floor, and those of new units are long).
    """

    def begin(self, learner: Learner) -> None:
        super().begin(learner)
        networks = learner.networks
        shapes = [(networks.lanes, n) for n in networks.sizes[1:-1]]
        self._age = [torch.zeros(shape) for shape in shapes]
        self._fired = [torch.zeros(shape) for shape in shapes]
        self._silent = [torch.zeros(shape) for shape in shapes]
        self._log_eta = self.settings["eta"].log()[:, None]
        self._floor = self.settings["floor"][:, None]

    def act(self, learner: Learner, step: int) -> None:
        for layer in learner.networks.hidden:
            fires = (learner.networks.activations(layer).amax(1) > 0).float()
            self._age[layer] += 1
            self._fired[layer] += fires
            # Silence ends with a step that fires, and grows by one with any other.
            self._silent[layer].add_(1).mul_(1 - fires)
            if step % 5 == 0:
                self._judge(learner, layer)

    def _judge(self, learner: Learner, layer: int) -> None:
        """Re-initialise whom it hits; every 5 steps, which halves the price and shifts little."""
        age, fired, silent = self._age[layer], self._fired[layer], self._silent[layer]
        chosen = improbable(age, fired, silent, self._log_eta, self._floor)
        if chosen.any():
            learner.reinit_(layer, chosen)
            self.resets += chosen.sum(1)
            for state in (age, fired, silent):
                state[chosen] = 0.0


def improbable(
    age: Tensor, fired: Tensor, silent: Tensor, log_eta: Tensor, floor: Tensor
) -> Tensor:
    """Say of which units a silence this long has a probability of at most eta.

    Args:
        age: Steps since the unit was made.
        fired: How many of them it fired at.
        silent: Steps since it fired last.
        log_eta: Logarithm of the least probability.
        floor: No silence shorter than this is improbable; as a prior, one firing in so many steps.
    """
    rate = (fired + 1) / (age - silent + floor)
    return (silent * torch.log1p(-rate.clamp(max=1 - 1e-6)) <= log_eta) & (silent >= floor)


class ContinualBackprop(Rule):
    """Replaces at a steady rate the mature units of least utility.

    Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632:768: utility is
    the mean-corrected contribution over the mean incoming weight; what a replaced unit gave on
    average goes into the next layer's biases; fresh weights have a step count of their own under
    Adam. Settings: ``rate``, the share of mature units replaced per step; ``maturity`` in steps.
    """

    steps: Steps = "unit"
    decay = 0.99

    def begin(self, learner: Learner) -> None:
        super().begin(learner)
        networks = learner.networks
        shapes = [(networks.lanes, n) for n in networks.sizes[1:-1]]
        self._age, self._utility, self._mean = (
            [torch.zeros(shape) for shape in shapes] for _ in range(3)
        )
        self._owed = [torch.zeros(networks.lanes) for _ in shapes]

    def act(self, learner: Learner, step: int) -> None:
        for layer in learner.networks.hidden:
            mean, utility = self._average(learner, layer)
            eligible = self._age[layer] > self.settings["maturity"][:, None]
            owed = self._owed[layer]
            owed += self.settings["rate"] * eligible.sum(1)
            lanes = ((owed >= 1) & eligible.any(1)).nonzero().squeeze(1)
            if len(lanes):
                owed[lanes] -= 1
                least = utility[lanes].masked_fill(~eligible[lanes], torch.inf).argmin(1)
                self._replace(learner, layer, lanes, least, mean[lanes, least])

    def _average(self, learner: Learner, layer: int) -> tuple[Tensor, Tensor]:
        """Bias-corrected running means of activation and of utility, shape ``(L, units)``."""
        own, activation = learner.networks.own, learner.networks.activations(layer)
        self._age[layer] += 1
        known = 1 - self.decay ** self._age[layer]
        now = activation.mean(1)
        self._mean[layer].lerp_(now, 1 - self.decay)
        mean = self._mean[layer] / known
        deviation = (activation - mean[:, None]).abs().mean(1)
        ease = own.weights[layer].abs().mean(-1)
        contribution = own.weights[layer + 1].abs().sum(1) * deviation / ease
        self._utility[layer].lerp_(contribution, 1 - self.decay)
        return mean, self._utility[layer] / known

    def _replace(
        self, learner: Learner, layer: int, lanes: Tensor, units: Tensor, mean: Tensor
    ) -> None:
        own = learner.networks.own
        given = own.weights[layer + 1][lanes, :, units] * mean[:, None]
        own.biases[layer + 1][lanes, 0] += given
        chosen = torch.zeros_like(self._age[layer], dtype=torch.bool)
        chosen[lanes, units] = True
        learner.reinit_(layer, chosen)
        self.resets += chosen.sum(1)
        for state in (self._age[layer], self._utility[layer], self._mean[layer]):
            state[chosen] = 0.0


RULES: dict[str, type[Rule]] = {
    "nothing": Rule,
    "random units": RandomUnits,
    "ReDo": ReDo,
    "continual backprop": ContinualBackprop,
    "Self-Normalized Resets": SelfNormalizedResets,
    "ReGraMa": ReGraMa,
    "L2-Init": L2Init,
    "layer norm": LayerNorm,
    "ours": Ours,
    "ours, dormant": OursDormant,
}


def made(name: str, settings: Mapping[str, Any]) -> Rule:
    """Make a rule by name, its settings as tensors."""
    return RULES[name]({key: torch.as_tensor(value).float() for key, value in settings.items()})
