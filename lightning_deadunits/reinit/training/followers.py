"""Copies of a module that follow it: a target network, a mean teacher, a momentum encoder.

After a unit was re-initialised such a copy would take over its fresh incoming weights little by
little, while it still has the old outgoing ones: what it computes would move though nothing is
learnt. So it gets the same edits, as an average does.

Nothing tells by its name that it follows. That a recorded step blends weights into it does. Else
its weights tell: they move though no optimizer has them, and not to those of what it is a copy of.
That is what a snapshot does that is taken from time to time; it stays as it is.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.reinit.optimizers.state import optimizers_of
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.training.averages import Copy, pair_of, shapes_of

_MOST_LOOKS = 64
_FEWEST_MOVES = 2


class Followers:
    """Knows which of the copies that a training keeps follow it.

    Attributes:
        names: Of those that were seen to follow.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = set(names)
        self._model: nn.Module | None = None
        self._candidates: list[_Candidate] = []

    def watch(self, trainer: Any, model: nn.Module) -> None:
        """Find the copies that there are, in the module and in callbacks, unless they are known."""
        if self._model is not model:
            self._model = model
            self._candidates = list(_candidates(trainer, model))

    def look(self) -> None:
        """Take a few numbers of every copy, and of what it may be a copy of; wait for nothing."""
        for candidate in self._candidates:
            if candidate.name not in self.names:
                candidate.look()

    def judge(self, tapes: Iterable[Tape] = ()) -> None:
        """Say of which copies it was seen that they follow, by their numbers or on a tape."""
        if not self._candidates:
            return
        blended = set().union(*(tape.blended for tape in tapes))
        for candidate in self._candidates:
            if candidate.follows() or not blended.isdisjoint(candidate.copy.parameters()):
                self.names.add(candidate.name)

    def copies(self, known: Iterable[Copy]) -> list[Copy]:
        """Return the copies that follow, but for those that are known to be averages."""
        averaged = {id(tensor) for copy in known for tensor in copy.values()}
        following = (each for each in self._candidates if each.name in self.names)
        found = (pair_of(each.nearest(), each.copy) for each in following)
        return [pairs for pairs in found if pairs and averaged.isdisjoint(map(id, pairs.values()))]


class _Candidate:
    """A module that no optimizer steps, and those that it may be a copy of."""

    def __init__(self, name: str, copy: nn.Module, originals: list[nn.Module]) -> None:
        self.name, self.copy = name, copy
        self._originals = originals
        self._samples: deque[list[Tensor]] = deque(maxlen=_MOST_LOOKS)
        self._moves = 0

    def look(self) -> None:
        self._samples.append([_sample(module) for module in (self.copy, *self._originals)])

    def follows(self) -> bool:
        looks = [[sample.cpu() for sample in samples] for samples in self._samples]
        while len(self._samples) > 1:
            self._samples.popleft()
        for (before, *theirs_before), (now, *theirs_now) in itertools.pairwise(looks):
            moved = bool((now != before).any() and now.isfinite().all() and before.isfinite().all())
            same = any(torch.equal(now, theirs) for theirs in (*theirs_before, *theirs_now))
            self._moves += moved and not same
        return self._moves >= _FEWEST_MOVES

    def nearest(self) -> nn.Module:
        """Return the one of which the weights are most alike: of two critics that have a target."""

        def distance(original: nn.Module) -> float:
            pairs = zip(self.copy.parameters(), original.parameters(), strict=True)
            return sum(float((own.to(other) - other).abs().sum()) for own, other in pairs)

        if len(self._originals) == 1:
            return self._originals[0]
        with torch.no_grad():
            return min(self._originals, key=distance)


def _sample(module: nn.Module) -> Tensor:
    parameters = list(module.parameters())
    some = (parameters[0], parameters[len(parameters) // 2], parameters[-1])
    return torch.stack([p.detach().float().sum().to(some[0].device) for p in some])


def _candidates(trainer: Any, model: nn.Module) -> Iterator[_Candidate]:
    groups = (g for each in optimizers_of(trainer, model) for g in each.param_groups)
    stepped = {parameter for group in groups for parameter in group["params"]}
    trained = [m for m in model.modules() if not stepped.isdisjoint(m.parameters())]
    shapes_of_trained = [(module, shapes_of(module)) for module in trained]
    inside: set[nn.Module] = set()
    for name, module in _modules_of(trainer, model):
        shapes = shapes_of(module)
        if shapes is None or module in inside or not stepped.isdisjoint(module.parameters()):
            continue  # what an optimizer steps follows nobody
        if originals := [own for own, theirs in shapes_of_trained if theirs == shapes]:
            inside.update(module.modules())
            yield _Candidate(name, module, originals)


def _modules_of(trainer: Any, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in the model, the outer ones first, and those hidden in attributes."""
    yield from model.named_modules()
    for holder in (model, *trainer.callbacks):
        for name, value in vars(holder).items():
            items = value.values() if isinstance(value, Mapping) else value
            many = items if isinstance(value, (list, tuple, Mapping)) else [value]
            for number, item in enumerate(many):
                if isinstance(item, nn.Module) and item is not model and name != "_modules":
                    yield f"{type(holder).__name__}.{name}.{number}", item
