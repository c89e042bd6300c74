"""What is known of tensors in an eager pass: a table, and what came of calls that were met before.

Python runs at every call of every pass here, so this is where counting is fast or slow; under
Dynamo :class:`Lineage` itself is traced, once.
"""

from __future__ import annotations

import functools
import re
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_deadunits.observation.identity import MOST_CALLS, Descent, Producer
from lightning_deadunits.observation.lineage.axes import Args, Axes, Kwargs
from lightning_deadunits.observation.lineage.call import Invocation, rule_of
from lightning_deadunits.observation.lineage.following import ATTRIBUTE, Lineage, passed
from lightning_deadunits.observation.lineage.gates import ZEROS, makes_zero
from lightning_deadunits.observation.lineage.ways import CHOICES, PIECES, WRITES, pieces_of
from lightning_deadunits.observation.transforms import is_wrapped, levels_of, outside

_LONG = 16
_MOST_FAMILIAR = 1 << 14
_ANEW = PIECES | CHOICES | WRITES | ZEROS
"""Functions whose results depend on values, or on what was done with their source before."""
_UNLIKE = Descent(None, ())
"""Stands for what is not told by the table: subclasses, nested tensors, those of a transform."""
_SIMPLE = {int, float, bool, str}
_rule_once = functools.lru_cache(maxsize=4096)(rule_of)


def _equals(value: Any, known: Any) -> bool:
    """Tell whether two arguments are equal, for which no code of other classes is run."""
    return value is known or (
        type(value) is type(known) and type(value) in _SIMPLE and bool(value == known)
    )


_Known = tuple["weakref.ref[Tensor]", Descent, tuple[list[str], ...]]
"""A tensor of a pass, its descent, and its lists of calls; made at every call, and therefore plain.

The lists are its own; the rest is the same in every pass, and kept once.
"""


class _Given(NamedTuple):
    """A tensor that was an argument, by all that matters of it.

    Attributes:
        weight: Itself, if it is a parameter of the model, else None.
        shape: Its shape.
        descent: What is known of it, None for nothing.
    """

    weight: weakref.ref[Tensor] | None
    shape: torch.Size
    descent: Descent | None


@dataclass(slots=True, eq=False)
class Step:
    """A call that was met before, and what came of it.

    Attributes:
        function: What was called.
        where: The module that called it.
        shape: The shape of its result.
        args: What it was given; of tensors see :class:`_Given`.
        kwargs: The same by name, none of them a tensor.
        descent: Where the units of the result come from, None if nothing is known; after the
            activation, if it is one.
        made: Whether weights made them.
        places: The arguments whose lists of calls are the result's, None if it has a new one.
        memo: What whoever follows the calls wants to keep of it.
        following: The call that came next last time.
    """

    function: Callable[..., Any] | None
    where: Any
    shape: torch.Size
    args: Args
    kwargs: Kwargs
    descent: Descent | None
    made: bool
    places: tuple[int, ...] | None
    memo: Any = None
    following: Step | None = None


def _start() -> Step:
    """Return what stands for no call, before the first one of a pass."""
    return Step(None, None, torch.Size(), (), {}, None, False, None)


class EagerLineage(Lineage):
    """Remembers in a table that holds no tensor alive and leaves none marked.

    Most passes are alike: what came of a call on tensors of the same descent and shape is looked
    up, not worked out again. Most calls are followed by the one that followed them last time, and
    to see that it is that one takes a third of the time that looking it up does.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._weights: dict[int, _Known] = {}
        self._weights_now: Callable[[], Mapping[Tensor, Producer]] | None = None
        self._foreign: dict[int, weakref.ref[Tensor]] = {}
        self._latest: dict[tuple[int, ...], Axes] = {}
        self._zeros: dict[int, weakref.ref[Tensor]] = {}
        self._once: dict[Descent, Descent] = {}
        self._familiar: dict[tuple[Any, ...], Step] = {}
        self._start = _start()
        self._latest_step = self._start
        self._passed: dict[tuple[int, str], Descent] = {}
        self.sites = {}
        self._made_last = False

    def know_weights(
        self,
        named: Mapping[Tensor, Producer],
        now: Callable[[], Mapping[Tensor, Producer]] | None = None,
    ) -> None:
        """Know the parameters of a model, over all passes.

        Args:
            named: What each makes units for.
            now: Returns the same anew: FSDP2 puts other parameters in place while a module runs.
        """
        self._weights, self._weights_now = {}, now
        self._add_weights(named)

    def _add_weights(self, named: Mapping[Tensor, Producer]) -> None:
        self._forget_familiar()
        self._weights = {k: own for k, own in self._weights.items() if own[0]() is not None} | {
            id(t): (weakref.ref(t), Descent(None, (own,), weight=True), ())
            for t, own in named.items()
        }

    def _found_anew(self, weight: Tensor) -> Descent | None:
        """Return the descent of a parameter that was not there when the model was looked through.

        One that is none of the model's is looked for once.
        """
        known = self._foreign.get(id(weight))
        if self._weights_now is None or (known is not None and known() is weight):
            return None
        named = self._weights_now()
        if weight in named:
            self._add_weights(named)
            return self._weights[id(weight)][1]
        self._foreign = {k: own for k, own in self._foreign.items() if own() is not None}
        self._foreign[id(weight)] = weakref.ref(weight)
        return None

    def follow(
        self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any, where: Any = None
    ) -> Step | None:
        """Take note of one call, each tensor that it returned (Dynamo can mark none in a tuple).

        Args:
            function: What was called.
            args: What it was given.
            kwargs: What it was given by name.
            out: What it returned.
            where: What called it: calls from elsewhere are others.

        Returns:
            The call, if the same was met before.
        """
        step = self._latest_step.following
        if step is not None and self._is_again(step, function, args, kwargs, out, where):
            self._meet_again(step, args, out)
            return step
        if isinstance(out, Tensor):
            if function in _ANEW:
                self._follow_result(function, _rule_once(function), args, kwargs, out)
                if function in ZEROS and makes_zero(function, args):
                    self._zeros[id(out)] = weakref.ref(out)
                return None
            situation = self._situation(function, args, kwargs, out, where)
            try:
                step = None if situation is None else self._familiar.get(situation)
            except TypeError:  # a list of tensors cannot be hashed
                situation = step = None
            if step is not None:
                self._latest_step.following = step
                self._meet_again(step, args, out)
                return step
            self._follow_result(function, _rule_once(function), args, kwargs, out)
            if situation is not None:
                self._learn(situation, function, args, kwargs, out, where)
        elif isinstance(out, (tuple, list)):
            rule = _rule_once(function)
            pieces = pieces_of(function, args, kwargs, out) if function in PIECES else ()
            for number, item in enumerate(out):
                if isinstance(item, Tensor):
                    piece = pieces[number] if pieces else None
                    call = Invocation(function, args, kwargs, item, piece)
                    self._follow(rule.of_result(number), call)
        elif out is None and function in WRITES:
            self._write(args)
        return None

    def _is_again(
        self,
        step: Step,
        function: Callable[..., Any],
        args: Args,
        kwargs: Kwargs,
        out: Any,
        where: Any,
    ) -> bool:
        """Tell whether a call is one that was met before."""
        if function is not step.function or where is not step.where or type(out) is not Tensor:
            return False
        if len(args) != len(step.args) or len(kwargs) != len(step.kwargs) or out.is_nested:
            return False
        if out.shape != step.shape:
            return False
        for value, known in zip(args, step.args, strict=True):
            if type(known) is not _Given:
                if value is not known and not _equals(value, known):
                    return False
            elif known.weight is not None:
                if known.weight() is not value:
                    return False
            elif self._of_argument(value) is not known.descent or value.shape != known.shape:
                return False
        if kwargs:
            known_kwargs = step.kwargs
            for name, value in kwargs.items():
                if name not in known_kwargs or not _equals(value, known_kwargs[name]):
                    return False
        return True

    def _situation(
        self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Tensor, where: Any
    ) -> tuple[Any, ...] | None:
        """Return all that the descent of a result depends on, None if that cannot be said."""
        if out.is_nested:  # which has no shape
            return None
        found: list[Any] = [function, id(where), out.shape]
        for value in args:
            if isinstance(value, Tensor):
                descent = self._of_argument(value)
                if descent is _UNLIKE or (descent is not None and descent.members is not None):
                    return None
                found += (value.shape, id(descent))
            elif isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
                return None  # no tensor is kept
            else:
                found.append(value)
        if kwargs:
            found.extend(kwargs.items())
            if any(isinstance(value, Tensor) for value in kwargs.values()):
                return None
        return tuple(found)

    def _of_argument(self, value: Any) -> Descent | None:
        """Return what the table has of a tensor, ``_UNLIKE`` if more is to be asked."""
        place = id(value)
        entry = self._known.get(place) or self._weights.get(place)
        if entry is not None and entry[0]() is value:
            return entry[1]
        plain = type(value) is Tensor and not value.is_nested
        return (
            None if plain and not is_wrapped(value) and not hasattr(value, ATTRIBUTE) else _UNLIKE
        )

    def _meet_again(self, step: Step, args: Args, out: Tensor) -> None:
        self._latest_step = step
        descent = step.descent
        if descent is None:
            return
        places = step.places
        if places is None:
            calls: tuple[list[str], ...] = ([],)
        elif len(places) == 1:
            calls = self._known[id(args[places[0]])][2]
        else:
            calls = sum((self._known[id(args[place])][2] for place in places), ())[:MOST_CALLS]
        self._known[id(out)] = (weakref.ref(out), descent, calls)
        if step.made and descent.axes is not None:
            self._latest[step.shape] = descent.axes

    def _learn(
        self,
        situation: tuple[Any, ...],
        function: Callable[..., Any],
        args: Args,
        kwargs: Kwargs,
        out: Tensor,
        where: Any,
    ) -> None:
        """Keep what came of a call, if that depends on nothing else."""
        if any(value is out for value in args):  # it has become another one, or is lost
            return
        given = tuple(self._given(v) if isinstance(v, Tensor) else v for v in args)
        descent, made = None, False
        places: tuple[int, ...] | None = ()
        entry = self._entry(out)
        if entry is not None:
            (_, descent, calls), made = entry, self._made_last
            if descent.members is not None:
                return
            if calls == ([],) and self._is_own(calls, args):
                places = None
            elif calls:
                places = tuple(
                    place
                    for place, value in enumerate(args)
                    if isinstance(value, Tensor)
                    and (source := self._entry(value)) is not None
                    and any(given is own for given in source[2] for own in calls)
                )
                if not places:
                    return
        step = Step(function, where, out.shape, given, kwargs, descent, made, places)
        self._familiar[situation] = self._latest_step.following = step
        self._latest_step = step

    def _given(self, value: Tensor) -> _Given:
        descent = self._of_argument(value)
        own = self._weights.get(id(value))
        weight = own[0] if own is not None and own[1] is descent else None
        return _Given(weight, value.shape, descent)

    def _entry(self, value: Any) -> _Known | None:
        """Return what is known of a tensor, not of one that is gone and had the same address."""
        entry = self._known.get(id(value))
        return entry if entry is not None and entry[0]() is value else None

    def _is_own(self, calls: tuple[list[str], ...], args: Args) -> bool:
        """Tell whether a list of calls is none of an argument's."""
        sources = (self._entry(value) for value in args)
        return not any(calls[0] is own for known in sources if known for own in known[2])

    def forget(self) -> None:
        """Start the next forward pass with an empty memory of tensors."""
        self._known.clear()
        self._latest.clear()
        self._zeros.clear()
        self._latest_step = self._start
        if len(self._familiar) > _MOST_FAMILIAR:  # constants that are others in every pass
            self._forget_familiar()

    def _forget_familiar(self) -> None:
        # All at once: what is familiar is known by the identity of descents.
        self._familiar.clear()
        self._latest_step = self._start = _start()
        self._passed.clear()
        self._once.clear()
        self.sites = {}

    def recall(self, tensor: Any) -> tuple[Descent | None, tuple[list[str], ...]]:
        """Return where the units of a tensor come from, and its lists of calls."""
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1], entry[2]
        known = self.descent(tensor)
        if known is None:
            return None, ()
        plain = known._replace(calls=())
        if known.members is None:
            plain = self._once.setdefault(plain, plain)
        return plain, known.calls

    def calls(self, tensor: Tensor) -> tuple[list[str], ...]:
        """Return the lists of calls of a tensor of this pass."""
        return self._known[id(tensor)][2]

    def descent(self, tensor: Any) -> Descent | None:
        """Return where the units of a tensor come from, None if nothing is known of it."""
        key = id(tensor)
        entry = self._known.get(key) or self._weights.get(key)
        if entry is not None and entry[0]() is tensor:
            _, descent, calls = entry
            return descent._replace(calls=calls) if calls else descent
        if is_wrapped(tensor):
            return self._of_stacked(tensor)
        if type(tensor) is Parameter:
            return self._found_anew(tensor)
        return getattr(tensor, ATTRIBUTE, None)

    def _of_stacked(self, tensor: Tensor) -> Descent | None:
        """Return the descent of weights over which ``torch.vmap`` is mapped."""
        stacked = outside(tensor)
        entry = self._weights.get(id(stacked))
        if entry is None or entry[0]() is not stacked:
            return None
        return entry[1]._replace(levels=tuple(sorted(levels_of(tensor))))

    def is_zero(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is known to hold nothing but zeros."""
        made = self._zeros.get(id(tensor))
        if made is not None and made() is tensor:
            return True
        # One number in host memory is looked at; elsewhere that would wait for the device.
        return tensor.is_cpu and tensor.numel() == 1 and not bool(tensor)

    def lose(self, tensor: Tensor) -> None:
        """Know nothing of a tensor any more, which was written to."""
        self._known.pop(id(tensor), None)

    def guess(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of the last conv, linear or norm output of the same shape."""
        return self._latest.get(tensor.shape)

    def remember(self, tensor: Tensor, descent: Descent, made: bool) -> None:
        """Remember where the units of a tensor come from: weights made them, or they were moved."""
        weight = self._weights.get(id(tensor))
        if weight is not None and weight[0]() is tensor:
            return  # whatever is written into a parameter, it makes what it makes
        calls = descent.calls
        if calls:
            descent = descent._replace(calls=())
        if descent.members is None:  # which row is whose is another matter in every pass
            descent = self._once.setdefault(descent, descent)
        self._made_last = made
        self._known[id(tensor)] = (weakref.ref(tensor), descent, calls)
        if made and descent.axes is not None:
            self._latest[tensor.shape] = descent.axes

    def activated(
        self, known: Descent, calls: tuple[list[str], ...], out: Tensor, way: str
    ) -> Descent:
        """Note that units have passed an activation; return what is known of them now."""
        after = self._passed.get((id(known), way)) if known.members is None else None
        if known.members is not None:
            after = passed(known, way)
        elif after is None:
            after = passed(known, way)
            after = self._once.setdefault(after, after)
            self._passed[id(known), way] = after
        self._known[id(out)] = (weakref.ref(out), after, calls)
        return after

    def chosen_by(self, places: list[tuple[Any, int]]) -> tuple[str, bool] | None:
        """Return a word for the units that lists of places choose, and whether some come twice.

        The lists are read, on a device too: which units they are is nowhere else.
        """
        lists = [
            [it % size if type(it) is int else it for it in listed]
            for given, size in places
            for listed in [torch.as_tensor(given).reshape(-1).tolist()]
        ]
        read = str(lists)
        one = lists[0] if len(lists) == 1 and all(type(it) is int for it in lists[0]) else []
        twice = len(set(one)) < len(one)
        # Words that are not to be taken for a range, nor all units in an order for a part of them.
        word = "order" if one and not twice and len(one) == places[0][1] else "at"
        short = word + "_".join(re.findall(r"\w+", read))
        return short if len(short) < _LONG else f"{zlib.crc32(read.encode()):08x}", twice

    def row(self, source: Tensor, out: Tensor) -> int | None:
        """Return which row of stacked weights a view is, None if that cannot be told."""
        if out._base is None or not source.stride(0):
            return None
        return (out.storage_offset() - source.storage_offset()) // source.stride(0)
