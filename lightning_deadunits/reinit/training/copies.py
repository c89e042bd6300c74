"""Copies of a model that follow it get the same edits: averages (EMA, SWA), targets, teachers.

After a unit was re-initialised such a copy would take over its fresh incoming weights little by
little, while it still has the old outgoing ones: what it computes would move though nothing is
learnt.

An average is told by the class ``AveragedModel``, or by a name that says so. Of the others, a
target network or a mean teacher, nothing tells by a name that it follows. That a recorded step
blends weights into it does. Else its weights tell: they move though no optimizer steps them (it may
have them, and never gets a gradient for them), and not to those of what it is a copy of. That is
what a snapshot does that is taken from time to time; it stays as it is.
"""

from __future__ import annotations

import functools
import itertools
import re
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.names import module_names
from lightning_deadunits.reinit.optimizers.state import optimizers_of
from lightning_deadunits.reinit.plan import tensors_of
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.report import ReinitReport
from lightning_deadunits.reinit.weights import Edit, WeightSlice

_MOST_LOOKS = 64
_FEWEST_MOVES = 2

# Words as in `ema_model`, `ModelEmaV2`, `_average_model`, `shadow_params`, but not as in `schema`.
_AN_AVERAGE = re.compile(
    r"[Aa]verag|[Ss]hadow|(?<![a-z])(ema|swa)(?![a-z])|(Ema|EMA|Swa|SWA)|slow_(weight|param)"
)

Pairs = dict[int, Tensor]
"""The tensors of one copy, by the identity of those they are copies of."""


class Copies:
    """Knows which of the copies that a training keeps follow it.

    Attributes:
        names: Of those that were seen to follow.
        followed: Modules that copies were found of, and these.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = set(names)
        self.followed: list[tuple[nn.Module, nn.Module]] = []
        self._known: tuple[nn.Module, int] | None = None
        self._candidates: list[_Candidate] = []
        self._following: list[Pairs] = []
        self._stepped: set[Tensor] = set()
        self._idle: set[Tensor] = set()

    def note_step(self, optimizer: Any) -> None:
        """Take note of which parameters have a gradient when their optimizer steps, which not."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                (self._idle if parameter.grad is None else self._stepped).add(parameter)

    def watch(self, trainer: Any, model: nn.Module) -> None:
        """Find the copies that there are, in the module and in callbacks, unless they are known."""
        # Of what an optimizer has nothing is known before its first step.
        known = model, len(self._idle)
        if self._known != known:
            self._known = known
            found = self._found(trainer, model)
            self._candidates = [each for each in found if not each.is_average]

    def look(self) -> None:
        """Take a few numbers of every copy, and of what it may be a copy of; wait for nothing."""
        sampled = functools.cache(_sample)  # many may be like the same originals
        for candidate in self._candidates:
            if candidate.name not in self.names:
                candidate.look(sampled)

    def judge(self, tapes: Iterable[Tape] = ()) -> None:
        """Say of which copies it was seen that they follow, by their numbers or on a tape."""
        if not self._candidates:
            return
        blended = set().union(*(tape.blended for tape in tapes))
        for candidate in self._candidates:
            own = set(candidate.copy.parameters())
            if any(p.requires_grad and p in self._stepped for p in own):
                self.names.discard(candidate.name)
            elif candidate.follows() or not own.isdisjoint(blended):
                self.names.add(candidate.name)

    def find(self, trainer: Any, model: nn.Module) -> None:
        """Find all copies that follow, by how alike they are to weights before these are edited."""
        self.followed = [
            (each.nearest(), each.copy)
            for each in self._found(trainer, model)
            if each.is_average or each.name in self.names
        ]
        self._following = [_paired(*map(tensors_of, both)) for both in self.followed]
        weights = list(model.parameters())
        for ways in _held(trainer, model):
            likeness, pairs = max(
                ((_likeness(weights, pairs), pairs) for pairs in ways), key=itemgetter(0)
            )
            # There are averages of gradients, too, and of their squares.
            if likeness > _LIKE:
                self._following.append(pairs)

    def edit_(self, edited: list[WeightSlice]) -> Edit:
        """Write into every copy that was found what was written into the model.

        Returns:
            What was written, which can be taken back.
        """
        edit, following, self._following = Edit(), self._following, []
        for copy in following:
            for weights in edited:
                target = copy.get(id(weights.parameter))
                if target is not None:
                    values = weights.read(weights.parameter).to(target.device, target.dtype)
                    edit.set(WeightSlice(target, weights.positions.to(target.device)), values)
        edit.apply_()
        return edit

    def tell_(self, report: ReinitReport, names: LayerNames, model: nn.Module) -> None:
        """Have a report tell of layers that belong to copies what was done to them."""
        paths = module_names(model)
        for original, copy in self.followed:
            if not paths.get(original) or not paths.get(copy):
                continue  # the whole model, or kept by a callback
            moved = functools.partial(_moved, original=paths[original], copy=paths[copy])
            for layer in list(report.reinitialised):
                key = names.key(layer)
                own = key and moved(key)
                if own and own != key:
                    report.follow(layer, names.get(own), moved)

    def _found(self, trainer: Any, model: nn.Module) -> Iterator[_Candidate]:
        kept = list(_modules_of(trainer, model))
        # What is an average or follows is no original.
        copies = {
            part
            for name, module, is_average in kept
            if is_average or name in self.names
            for part in module.modules()
        }
        groups = (g for each in optimizers_of(trainer, model) for g in each.param_groups)
        trainable = {p for group in groups for p in group["params"] if p.requires_grad}
        stepped = trainable - (self._idle - self._stepped)
        shapes_of = [(own, _shapes_of(own)) for own in model.modules() if own not in copies]
        inside: set[nn.Module] = set()
        for name, outer, is_average in kept:
            module = outer.module if isinstance(outer, AveragedModel) else outer
            shapes = _shapes_of(module)
            if shapes is None or module in inside:
                continue
            originals = [own for own, theirs in shapes_of if theirs == shapes and own is not module]
            is_average = is_average and len(originals) == 1
            if not is_average:
                if name not in self.names and not stepped.isdisjoint(module.parameters()):
                    continue  # what an optimizer steps follows nobody
                originals = [own for own in originals if not stepped.isdisjoint(own.parameters())]
            if originals:
                inside.update(module.modules())
                yield _Candidate(name, module, originals, is_average)


def _moved(key: str, original: str, copy: str) -> str:
    """Return the name of a parameter, or the key of a layer, as a copy has it, by both paths."""
    return re.sub(rf"(?<![\w.]){re.escape(original)}(?![\w])", copy, key)


def _held(trainer: Any, model: nn.Module) -> Iterator[list[Pairs]]:
    """Yield what is called an average and is no copy of a module: buffers, lists, mappings.

    In all the ways in which it may be paired with weights, one at least.
    """
    for _, module, is_average in _modules_of(trainer, model):
        if is_average and next(module.parameters(), None) is None:
            yield _by_name(model, dict(module.named_buffers()))
    groups = (each.param_groups for each in optimizers_of(trainer, model))
    orders = [list(model.parameters())]
    orders += [[p for group in own for p in group["params"]] for own in groups]
    orders += [[p for p in order if p.requires_grad] for order in orders]
    for _, name, value in _attributes(trainer, model):
        if not isinstance(value, (Mapping, list, tuple)) or not _is_average(name, value):
            continue
        if isinstance(value, Mapping):
            yield _by_name(model, value)
            continue
        # One after the other, or by the groups of an optimizer, as Lookahead has its slow weights.
        flat = [
            it for part in value for it in (part if isinstance(part, (list, tuple)) else [part])
        ]
        fitting = [order for order in orders if len(order) == len(flat)]
        if fitting:
            yield [_paired(dict(enumerate(own)), dict(enumerate(flat))) for own in fitting]


_LIKE = 0.3
"""How like weights an average of them is, at least, see :func:`_likeness`."""


@dataclass(eq=False)
class _Candidate:
    """What may be a copy, the modules that it may be a copy of, and how both moved."""

    name: str
    copy: nn.Module
    originals: list[nn.Module]
    is_average: bool
    samples: deque[list[Tensor]] = field(default_factory=lambda: deque(maxlen=_MOST_LOOKS))
    moves: int = 0

    def look(self, sampled: Callable[[nn.Module], Tensor]) -> None:
        self.samples.append([sampled(module) for module in (self.copy, *self.originals)])

    def follows(self) -> bool:
        looks = [[sample.cpu() for sample in samples] for samples in self.samples]
        while len(self.samples) > 1:
            self.samples.popleft()
        for (before, *theirs_before), (now, *theirs_now) in itertools.pairwise(looks):
            moved = bool((now != before).any() and now.isfinite().all() and before.isfinite().all())
            same = any(torch.equal(now, theirs) for theirs in (*theirs_before, *theirs_now))
            self.moves += moved and not same
        return self.moves >= _FEWEST_MOVES

    def nearest(self) -> nn.Module:
        """Return the one of which the weights are most alike: of two critics that have a target."""

        def distance(original: nn.Module) -> float:
            pairs = zip(self.copy.parameters(), original.parameters(), strict=True)
            return sum(float((own.to(other) - other).abs().sum()) for own, other in pairs)

        if len(self.originals) == 1:
            return self.originals[0]
        with torch.no_grad():
            return min(self.originals, key=distance)


def _sample(module: nn.Module) -> Tensor:
    parameters = list(module.parameters())
    some = (parameters[0], parameters[len(parameters) // 2], parameters[-1])
    return torch.stack([p.detach().float().sum().to(some[0].device) for p in some])


def _modules_of(trainer: Any, model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield modules with their names, and whether that says that they are averages.

    Those of the model, the outer ones first, and those hidden in attributes.
    """
    for path, module in model.named_modules():
        yield path, module, bool(path) and _is_average(path.rpartition(".")[2], module)
    for path, name, value in _attributes(trainer, model):
        items = value.values() if isinstance(value, Mapping) else value
        many = items if isinstance(value, (list, tuple, Mapping)) else [value]
        for number, item in enumerate(many):
            if isinstance(item, nn.Module) and item is not model and name != "_modules":
                yield f"{path}.{number}", item, _is_average(name if item is value else "", item)


def _attributes(trainer: Any, model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Yield what may hold copies beside the model's modules, with a path and a name."""
    # What is kept in an attribute may be an average, or hold one.
    owners = [model, *trainer.callbacks]
    apart = [
        value
        for owner in owners
        for name, value in vars(owner).items()
        if hasattr(value, "__dict__") and name[0] != "_" and value is not model
    ]
    for holder in (*owners, *trainer.optimizers, *apart):
        for name, value in vars(holder).items():
            yield f"{type(holder).__name__}.{name}", name, value


def _is_average(name: str, value: Any) -> bool:
    return isinstance(value, AveragedModel) or any(
        map(_AN_AVERAGE.search, (name, type(value).__name__))
    )


def _shapes_of(module: nn.Module) -> dict[str, torch.Size] | None:
    """Return the shapes of a module's parameters, None if it has none or they have none yet."""
    named = dict(module.named_parameters())
    if not named or any(map(is_lazy, named.values())):
        return None
    return {name: parameter.shape for name, parameter in named.items()}


_SPELLINGS = ((".", ""), ("", ""), ("_", ""), (".", "module."), (".", "model."))
"""What stands for dots in names, and before them: ``LitEma`` of latent diffusion has no dots."""


def _by_name(model: nn.Module, held: Mapping[Any, Any]) -> list[Pairs]:
    """Pair what is held by the names of parameters, of the model or of each of its modules."""
    found: list[Pairs] = [{}]
    for module in model.modules():
        tensors = tensors_of(module)
        for dot, prefix in _SPELLINGS:
            ours = {prefix + name.replace(".", dot): own for name, own in tensors.items()}
            trained = [name for name, own in ours.items() if own.requires_grad]
            if trained and all(name in held for name in trained):
                found.append(_paired(ours, held))
                break
    return found


def _likeness(weights: Iterable[Tensor], pairs: Pairs) -> float:
    """Return the cosine of the angle between weights and what may be their average, by tensor.

    The median of all: some may have been trained for a short while only.
    """
    found = []
    for own in weights:
        if id(own) in pairs and own.is_floating_point() and own.ndim > 1:
            other = pairs[id(own)].detach().to(own.device)
            one, two = own.detach().double().flatten(), other.double().flatten()
            found.append(float(nn.functional.cosine_similarity(one, two, dim=0)))
    return statistics.median(found) if found else 0.0


def _paired(ours: Mapping[Any, Tensor], theirs: Mapping[Any, Any]) -> Pairs:
    """Pair tensors by key; none unless all have the same shape and a memory of their own."""
    pairs = [(tensor, theirs[key]) for key, tensor in ours.items() if key in theirs]
    for tensor, other in pairs:
        if not isinstance(other, Tensor) or other.shape != tensor.shape:
            return {}
        if tensor.numel() and other.data_ptr() == tensor.data_ptr():
            return {}  # the weights themselves
    return {id(tensor): other for tensor, other in pairs}
