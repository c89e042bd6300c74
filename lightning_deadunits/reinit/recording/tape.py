"""A tape: the torch calls of one pass of the user's code, and the values that they started from.

A pass is a list of calls on numbered values. What no call of the pass has made is a *leaf*: a
parameter (held by reference, so that a replay computes with the weights as they are then), or
anything else (the batch, buffers, constants), of which the value at first sight is copied. Results
are not kept: a replay computes them anew, and each is dropped after its last use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from lightning_deadunits.observation.site import Site
from lightning_deadunits.reinit.parameters import storage_of
from lightning_deadunits.reinit.recording.functions import (
    CUTS,
    DRAWS,
    FROM_PYTHON,
    VIEWS,
    name_of,
    sets_attribute,
)

if TYPE_CHECKING:
    from lightning_deadunits.reinit.recording.layout import Layout


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor (or a generator) in the arguments of a recorded call."""

    index: int


@dataclass(slots=True, eq=False)
class Call:
    """One torch call.

    Attributes:
        function: The function.
        args: Its positional arguments, with references in the place of tensors.
        kwargs: Its keyword arguments, likewise.
        given: The values among them.
        module: Qualified name of the module whose forward made it.
        gradients: Whether gradients were on.
        autocast: Device types that were under autocast, each with its dtype.
        dtype: The default dtype, which precision plugins change around a step.
        random_state: State of the default generators before it, if it may draw from them.
        writes: The values that it wrote in place.
        outs: Which value each item of its flattened result is, None for what is no tensor.
        reads_values: Whether Python read values by it, and nothing else came of it.
        scalar: Whether it returned a single number.
        empty: Whether it was given a tensor of no values, and did nothing for that.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: tuple[int, ...]
    module: str
    gradients: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    dtype: torch.dtype
    random_state: RandomState | None
    writes: tuple[int, ...] = ()
    outs: tuple[int | None, ...] = ()
    reads_values: bool = False
    scalar: bool = False
    empty: bool = False

    @property
    def made(self) -> tuple[int, ...]:
        """The values that it returned."""
        return tuple(value for value in self.outs if value is not None)


@dataclass(slots=True, eq=False)
class SiteCall:
    """An activation: the value that it is, and the key of its layer."""

    site: Site
    value: int
    num_units: int

    @property
    def layer(self) -> str:
        """Key of the layer."""
        return self.site.name


class Obstacle(NamedTuple):
    """Where a pass did something that no call shows; units that came before may flow into it.

    Attributes:
        position: How many entries of the tape came before.
        reason: What it was, for the user.
    """

    position: int
    reason: str


class RandomState:
    """The states of torch's default generators: the CPU's and those of some CUDA devices."""

    def __init__(self, devices: Sequence[int] = ()) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


@dataclass(eq=False)
class Tape:
    """The calls of one pass.

    Attributes:
        training: Whether it is a training step, rather than one of validation.
        devices: CUDA devices whose generators it may draw from.
        layout: What the model consisted of.
        entries: Calls and activations, in their order.
        leaves: Values that no call of the pass made.
        parameters: Those of the leaves that are parameters.
        buffers: Those that are buffers of the model, beside the copies of what they were.
        written: Leaves that a call of the pass wrote to.
        before: What parameters among them were before; until the pass has ended.
        received: Values that were written over by what other processes sent.
        kept: Values that calls made and somebody held when the pass had ended.
        perhaps_kept: Those that autograd held, and nobody else perhaps, by where their memory was.
        kept_until_freed: Those of ``kept`` that autograd may hold for backward alone, such as what
            a layer read without a gradient.
        obstacles: What could not be followed.
        numbers: Whole numbers in tensors that something was indexed by.
        modules: Names of the modules in whose forward a call was made, on more than no values.
    """

    training: bool
    devices: tuple[int, ...]
    layout: Layout
    entries: list[Call | SiteCall] = field(default_factory=list)
    leaves: dict[int, Tensor | Generator] = field(default_factory=dict)
    parameters: dict[int, nn.Parameter] = field(default_factory=dict)
    buffers: dict[int, Tensor] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    before: dict[int, Tensor] = field(default_factory=dict)
    received: set[int] = field(default_factory=set)
    kept: frozenset[int] = frozenset()
    perhaps_kept: dict[int, int] = field(default_factory=dict)
    kept_until_freed: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)

    def keep(self, outputs: Any) -> None:
        """Take what the step returned, be it detached since, for results of the pass.

        What is gone by then, as after backward, is none.
        """
        homes = set(map(storage_of, tensors_of(outputs)))
        found = {index for home, index in self.perhaps_kept.items() if home in homes}
        freed = {index for index, held in self.kept_until_freed.items() if held() is None}
        self.kept_until_freed = {}
        kept = (self.kept - freed) | found
        if kept != self.kept:
            self.kept = kept
            self.forget_derived()

    def forget_derived(self) -> None:
        """Have what follows from the entries worked out anew: the recording goes on."""
        for name, value in vars(Tape).items():
            if isinstance(value, cached_property):
                self.__dict__.pop(name, None)

    @property
    def calls(self) -> Iterator[Call]:
        """The calls alone."""
        return (entry for entry in self.entries if isinstance(entry, Call))

    @cached_property
    def structure(self) -> list[Any]:
        """What the pass does, call by call: equal for two passes through the same code.

        But for booleans (an eval and a training pass differ by ``training``) and the counting of
        integer buffers (a BatchNorm's ``num_batches_tracked``).
        """
        held = {v: id(t) for v, t in (*self.parameters.items(), *self.buffers.items())}
        numbers: dict[int, int] = {}

        def number(value: int) -> int:
            return held[value] if value in held else numbers.setdefault(value, -len(numbers))

        def plain(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return number(leaf.index)
            return leaf if isinstance(leaf, _PLAIN) and not isinstance(leaf, bool) else type(leaf)

        rows: list[Any] = []
        for entry in self.entries:
            if isinstance(entry, SiteCall):
                rows.append((entry.layer, number(entry.value)))
            elif not self._counts(entry):
                given = mapped(entry.args, plain), mapped(entry.kwargs, plain)
                outs = [None if value is None else number(value) for value in entry.outs]
                rows.append((entry.function, given, outs, entry.module, entry.empty))
        return rows

    def _counts(self, call: Call) -> bool:
        """Tell whether a call does nothing but change integer buffers."""
        leaves = (self.leaves.get(value) for value in call.given if value in self.buffers)
        integers = [t for t in leaves if isinstance(t, Tensor) and not t.is_floating_point()]
        return 0 < len(call.given) == len(integers)

    @property
    def num_units(self) -> dict[str, int]:
        """Units per layer that ran, by key, see :mod:`lightning_deadunits.observation.identity`."""
        return {e.layer: e.num_units for e in self.entries if isinstance(e, SiteCall)}

    @cached_property
    def last_uses(self) -> list[list[int]]:
        """Per entry the values that nothing needs after it.

        What the pass comes to is looked at in the end, if other views of it are written to.
        """
        last: dict[int, int] = {}
        for position, entry in enumerate(self.entries):
            uses = (entry.value,) if isinstance(entry, SiteCall) else (*entry.given, *entry.made)
            last |= dict.fromkeys(uses, position)
        for value in self.final_values & last.keys():
            if self._base_of.get(value, value) in self._written_bases:
                last[value] = len(self.entries) - 1
        dropped: list[list[int]] = [[] for _ in self.entries]
        for value, position in last.items():
            dropped[position].append(value)
        return dropped

    @cached_property
    def _base_of(self) -> dict[int, int]:
        """What values are views of, or may be: the value at the bottom."""
        found: dict[int, int] = {}
        for call in self.calls:
            if call.given and name_of(call.function) in CUTS | VIEWS:
                base = found.get(call.given[0], call.given[0])
                found |= dict.fromkeys(set(call.made) - {base}, base)
        return found

    @cached_property
    def _written_bases(self) -> set[int]:
        """The values that were written to, perhaps by way of a view."""
        written = (value for call in self.calls for value in call.writes)
        return {self._base_of.get(value, value) for value in written}

    @cached_property
    def final_values(self) -> set[int]:
        """What the pass comes to: the values that no later call is given, and those that were kept.

        Losses, what was logged, what the model returned, state that was written. A parameter that
        was written is none of them unless data were written into it, nor is what was computed from
        parameters alone: fresh weights change both. Nor is a view that was written to, if the whole
        of what it is a view of is read later.
        """
        final: set[int] = set()
        parts: set[int] = set()
        written: dict[int, set[int]] = {}
        for call in self.calls:
            name = name_of(call.function)
            final -= set(call.given)
            if name in CUTS or (name in VIEWS and not parts.isdisjoint(call.given[:1])):
                parts.update(call.made)
            elif name not in VIEWS:
                for value in set(call.given) - parts:
                    final -= written.pop(self._base_of.get(value, value), set())
            final.update(call.made, call.writes)
            for value in set(call.writes) & self._base_of.keys():
                written.setdefault(self._base_of[value], set()).add(value)
        state = self._written_bases & self.leaves.keys() - self.parameters.keys()
        final |= state | self.kept
        return final - self.weight_values - self.received | self._data_in_parameters

    def penalties(self, sums: Collection[Callable[..., Any]]) -> tuple[set[int], set[int]]:
        """Return the calls by which a penalty on weights is computed and added to a loss.

        That is what weights alone make, as a single number, and what does nothing but being added
        to another single number. Fresh weights change it, as they should.

        Returns:
            All calls of penalties, and those among them that return the penalty itself.
        """
        spoilt: set[int] = set()
        summands: set[int] = set()
        calls, results = set(), set()
        for position, entry in reversed(list(enumerate(self.entries))):
            if not isinstance(entry, Call):
                continue
            outs = set(entry.made)
            if not self.weight_values.issuperset(entry.given):
                added = entry.scalar and entry.function in sums
                (summands if added else spoilt).update(entry.given)
            elif outs & spoilt or (outs & summands and not entry.scalar):
                spoilt.update(entry.given)
            elif outs & summands and name_of(entry.function) in CUTS | VIEWS:
                continue  # a weight itself, as in `v[0] + loss`
            elif entry.given and not entry.reads_values:
                calls.add(position)
                results |= {position} if outs & summands else set()
        return calls, results

    @property
    def weight_values(self) -> set[int]:
        """The values that were computed from parameters and constants alone.

        What was drawn at random in the pass is none of them, as a generator's input, nor what was
        made of lists and arrays: it is data.
        """
        return self._of_weights[0]

    @property
    def _data_in_parameters(self) -> set[int]:
        """The parameters into which data were written."""
        return self._of_weights[1]

    @cached_property
    def _of_weights(self) -> tuple[set[int], set[int]]:
        found, rooted = set(self.parameters), set(self.parameters)
        into: set[int] = set()
        for call in self.calls:
            of_weights = not rooted.isdisjoint(call.given)
            made = call.function in FROM_PYTHON and not call.scalar
            drawn = not of_weights and (made or name_of(call.function).strip("_") in DRAWS)
            if found.issuperset(call.given) and not drawn:
                found.update(call.made)
                rooted.update(call.made if of_weights else ())
            elif call.writes:
                # What is written into a view is written into what it is a view of.
                bases = {self._base_of.get(value, value) for value in call.writes}
                written = {value for value in found if self._base_of.get(value, value) in bases}
                found -= written - self.parameters.keys()
                into |= written & self.parameters.keys()
        return found, into

    @cached_property
    def upkeep(self) -> set[int]:
        """The calls that write into parameters what parameters alone make.

        A teacher's average, a clipping: they change the weights of the next pass, as an optimizer
        does, and no replay repeats them.
        """
        found: set[int] = set()
        own = set(self.parameters)
        for position, call in enumerate(self.entries):
            if not isinstance(call, Call) or not self.weight_values.issuperset(call.given):
                continue
            if call.given and call.given[0] in own and name_of(call.function) in _ALIASES:
                own.update(call.made)
                found |= {position} if sets_attribute(call.function) else set()
            elif call.writes and own.issuperset(call.writes):
                found.add(position)
        return found

    @property
    def blended(self) -> set[nn.Parameter]:
        """The parameters into which upkeep writes what it makes of themselves and of others."""
        found: set[nn.Parameter] = set()
        made_of = {index: {parameter} for index, parameter in self.parameters.items()}
        for position, call in enumerate(self.entries):
            if not isinstance(call, Call) or not call.given:
                continue
            given = [made_of.get(index, set()) for index in call.given]
            replaces = sets_attribute(call.function) or name_of(call.function) == "copy_"
            if position in self.upkeep and (call.writes or sets_attribute(call.function)):
                among = set().union(*given[replaces:])
                found |= given[0] & among if len(among) > 1 else set()
            if name_of(call.function) in _ALIASES:
                given = given[:1]
            if not replaces:
                values = {*call.writes, *call.made} - self.parameters.keys()
                made_of |= {index: set().union(*given) for index in values}
        return found


_ALIASES = ("data", "detach")
_PLAIN = (int, float, complex, str, type(None), type(...), torch.dtype, torch.device, torch.layout)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return arguments with every leaf of nested containers changed, the bounds of slices too."""
    kind = type(value)
    # By hand where that is enough: torch's walker takes as long as a small product.
    if kind is tuple or kind is list:
        return kind([mapped(item, change) for item in value])
    if kind is dict:
        return {key: mapped(item, change) for key, item in value.items()}
    if kind is slice:
        return slice(change(value.start), change(value.stop), change(value.step))
    if isinstance(value, (tuple, list, dict)):
        return tree_map(change, value)
    return change(value)


def leaves_of(value: Any) -> list[Any]:
    """Return the leaves of nested containers, in the order of :func:`mapped`."""
    if isinstance(value, Tensor):
        return [value]
    leaves: list[Any] = []
    mapped(value, leaves.append)
    return leaves


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in nested containers."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor)]
