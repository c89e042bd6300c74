"""What makes the units of a tensor: its producers, the way from them to it, and a layer's key.

A layer is *(the activation, the weights that make its units, the way from these to it)*. On a
siamese encoder that reads two inputs::

    a = relu(fc(x))         producers (fc,)      way ()       key "relu|fc"
    b = relu(fc(y))         producers (fc,)      way ()       the same key: the counts are summed
    c = relu(-fc(x))        producers (-fc,)     way ()       another way to the units: "relu|-fc"
    d = relu(fc(x) - 99)    producers (fc,)      way ("sub",) "relu|fc|sub"
    e = relu(gc(x))         producers (gc,)      way ()       other weights: "relu|gc"

A producer is a module, where the weights are its own, or else a parameter. A contraction (linear
layer, convolution, product with a parameter) starts anew, for its result is what its weights make;
a norm or an added bias joins. In a sum, what is an activation already (a skip connection) is
carried along and makes nothing, unless there is nothing else. A norm of a sum stands alone: which
blocks contributed may change from pass to pass (LayerDrop, stochastic depth), what its scale and
shift make does not.

All of it is made of tuples and strings, which Dynamo traces as constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from sys import maxsize
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.axes import Axes

MOST_CALLS = 4


class Producer(NamedTuple):
    """Weights that make units.

    Attributes:
        joined: Whether they only join what others make, value by value, as an added bias does.
        order: Place among the model's parameters, by which producers are sorted.
        name: Qualified name of the module or parameter.
        part: Which part of the units it makes are meant, "" for all: ``0`` of ``x.chunk(2)``.
        negative: Whether they are negated, as in CReLU's ``relu(-h)``.
        columns: Whether the units are the columns of the weights, not their rows: ``h @ w`` beside
            ``x @ w.t()``, as in an autoencoder with tied weights.
    """

    joined: bool
    order: int
    name: str
    part: str = ""
    negative: bool = False
    columns: bool = False

    def __str__(self) -> str:
        part = f"[{self.part}]" if self.part else ""
        return f"{'-' * self.negative}{'+' * self.joined}{'^' * self.columns}{self.name}{part}"


class Members(NamedTuple):
    """Which of several stacked weights ``(E, *, *)`` made each row of a tensor.

    Attributes:
        number: How many weights there are, E.
        rows: Int64 of the shape of the tensor's first axes: the weight of each row; or, with
            ``ends``, int of shape ``(E,)``: the row before which each weight's rows end.
        ends: Whether ``rows`` holds ends, as ``torch.nn.functional.grouped_mm`` takes them.
        names: Names of the tensors that hold them, () for all that make the units.
        apart: Whether each of them is a tensor of its own, named in this order.
    """

    number: int
    rows: Tensor
    ends: bool
    names: tuple[str, ...] = ()
    apart: bool = False

    def joined_with(self, other: Members) -> Members | None:
        """Return both, as of a gated expert's two projections; None if they mean other rows."""
        own, rows = self.rows, other.rows
        if self.number != other.number or own.shape != rows.shape:
            return None
        if self.ends != other.ends or self.apart or other.apart:
            return None
        # Not to be read while Dynamo traces; no verdict comes of it there.
        same = own is rows or torch.compiler.is_compiling() or bool(torch.equal(own, rows))
        return self._replace(names=joined(self.names, other.names)) if same else None


class Joint(NamedTuple):
    """What a tensor was joined of, side by side: a part that is cut out again is what it was.

    Attributes:
        axis: The axis along which it was joined.
        sizes: How many places of it each part takes.
        parts: Where the units of each come from, None if nothing is known of it.
    """

    axis: int
    sizes: tuple[int, ...]
    parts: tuple[Descent | None, ...]


class Descent(NamedTuple):
    """Where the units of a tensor come from.

    Attributes:
        axes: Axes that index the units, () if there are none, None where weights are concerned.
        sizes: The finer shape that ``axes`` are about, () if it is the tensor's own, see
            :class:`Folded`.
        producers: What makes them, sorted; () if unknown.
        way: What was done to them since, sorted, each once.
        calls: What was activated of the very values that each producer returned, by key.
        activated: Whether they have passed an activation.
        summed: Whether several producers were added up.
        weight: Whether these are weights: parameters, or computed from nothing else.
        members: Which of several stacked weights made each row, None if all rows are alike.
        gate: ``KEEPS`` for the comparison of units with something, true where they are kept, such
            as ``h > 0``; ``DROPS`` where it is true for those that are dropped; ``ZERO`` for zeros.
        mixed: Whether some rows (samples, positions) are made by other weights than others, and
            nothing tells which.
        partial: Whether rows were added to some of a tensor of zeros: others may be made elsewhere.
        levels: Levels of ``torch.vmap`` over stacked weights: they hide an axis of the units.
        turned: Whether these are weights transposed.
        unsure: Whether each place beside the units has weights of its own, and may be a position or
            a member, whose units are others. Of weights: whether places are copies of one another.
        blended: Whether something else than weights flowed into these: noise, or data.
        stacked: Along which axis the rows stand that are made by different weights, if one is
            known: a sum over it is a sum of layers.
        joint: What it was joined of, if that is known and nothing was done to it since.
        flaw: Why some of the units are none of their own: ``PADDED`` or ``REPEATED``; "" if all
            are.
    """

    axes: Axes | None
    producers: tuple[Producer, ...]
    way: tuple[str, ...] = ()
    calls: tuple[list[str], ...] = ()
    activated: bool = False
    summed: bool = False
    weight: bool = False
    members: Members | None = None
    gate: int = 0
    levels: tuple[int, ...] = ()
    mixed: bool = False
    partial: bool = False
    turned: bool = False
    unsure: bool = False
    sizes: tuple[int, ...] = ()
    blended: bool = False
    stacked: int | None = None
    flaw: str = ""
    joint: Joint | None = None


KEEPS, DROPS, ZERO = 1, -1, 2
MIXED = (
    "some of its rows or units are made by other weights than others, and nothing tells which; let "
    "what each layer makes pass an activation of its own"
)
"""Why what has rows of several layers, or is partly written over, is not judged."""
PADDED = (
    "some of its units are made by no weights: they are padding, or raw inputs that were joined to "
    "what its weights make; activate these before they are joined"
)
"""Why what has units and something else side by side is not judged."""
REPEATED = (
    "each of its units stands in it several times, and would be counted as many; activate what its "
    "weights make before it is repeated"
)
"""Why what has its units several times over is not judged."""
IN_PART = (
    "its units are used as a whole in one call and in part in another, or in parts that overlap, "
    "and neither tells which are silent in both; validate one of these uses at a time"
)
"""Why what some stacked weights make is not judged where others make it along with them."""
_SIGNS = "-+^"
WEIGHT = "_deadunits_weight"
"""Attribute by which parameters tell their names to what Dynamo traces."""


def joined(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the items of two sorted tuples, sorted, each once."""
    if one == other or not other:
        return one
    if not one:
        return other
    # By hand: Dynamo of older versions traces neither sets nor `sorted` of tuples.
    merged: tuple[Any, ...] = ()
    i = j = 0
    while i < len(one) or j < len(other):
        if j == len(other) or (i < len(one) and _is_first(one[i], other[j])):
            j += j < len(other) and one[i] == other[j]
            merged += (one[i],)
            i += 1
        else:
            merged += (other[j],)
            j += 1
    return merged


def _is_first(one: Any, other: Any) -> bool:
    """Tell whether an item of a way, or a producer, is not behind another one.

    Field by field: Dynamo of torch 2.11 cannot compare named tuples, and gives up on the model.
    """
    if isinstance(one, str):
        return bool(one <= other)
    if one.joined != other.joined:
        return bool(other.joined)
    if one.order != other.order:
        return bool(one.order < other.order)
    if one.name != other.name:
        return bool(one.name < other.name)
    if one.part != other.part:
        return bool(one.part < other.part)
    if one.columns != other.columns:
        return bool(other.columns)
    return not one.negative or bool(other.negative)


def negated(producers: tuple[Producer, ...]) -> tuple[Producer, ...]:
    """Return producers of what is negated."""
    return tuple(producer._replace(negative=not producer.negative) for producer in producers)


def across(producers: tuple[Producer, ...]) -> tuple[Producer, ...]:
    """Return producers whose units are the columns of the weights."""
    return tuple(producer._replace(columns=True) for producer in producers)


def share_units(one: Descent, other: Descent) -> bool:
    """Tell whether the same weights make the units of both, whatever joins them there.

    As in a gated sparse autoencoder (Rajamanoharan et al., "Improving Dictionary Learning with
    Gated Sparse Autoencoders", 2024): its gate has a shift, its magnitude a scale and a shift.
    """
    if one.producers == other.producers:
        return True
    if one.axes != other.axes or one.sizes != other.sizes:
        return False
    mine, others = _mains(one), _mains(other)
    few, many = (mine, others) if len(mine) <= len(others) else (others, mine)
    # A scale that the weights were multiplied with is one of several, a summand is another layer.
    alike = len(few) == len(many) or not (one.summed or other.summed)
    return alike and len(few) > 0 and all(own in many for own in few)


def _mains(descent: Descent) -> list[Producer]:
    return [own for own in descent.producers if not own.joined]


def part_of(producers: tuple[Producer, ...], part: str) -> tuple[Producer, ...]:
    """Return producers of a part of the units."""
    return tuple(p._replace(part=f"{p.part}.{part}" if p.part else part) for p in producers)


def added(descents: Sequence[Descent], axes: Axes) -> Descent:
    """Return the descent of a sum, a product or a concatenation of several tensors."""
    fresh = [descent for descent in descents if not descent.activated] or list(descents)
    first = fresh[0]
    producers, way, calls, members = first.producers, first.way, first.calls, first.members
    summed, levels, mixed = first.summed, first.levels, any(own.mixed for own in fresh)
    for descent in fresh[1:]:
        summed = summed or descent.summed or descent.producers != producers
        producers = joined(producers, descent.producers)
        way = joined(way, descent.way)
        calls += tuple(c for c in descent.calls if not any(c is known for known in calls))
        if members is None:
            members = descent.members
        elif descent.members is not None:
            members = members.joined_with(descent.members)
            mixed = mixed or members is None  # each row is the sum of what two of them make
        levels = joined(levels, descent.levels)
    return Descent(
        *(axes, producers, way, calls[:MOST_CALLS], first.activated, summed),
        members=None if mixed else members,
        levels=levels,
        mixed=mixed,
        unsure=any(own.unsure for own in fresh),
        flaw=first.flaw if all(own.flaw for own in fresh) else "",
    )


def key_of(base: str, descent: Descent | None) -> str:
    """Return the key of a layer: ``base|producers|way``, what is empty at the end left out."""
    if descent is None or not descent.producers:
        return base
    producers = ",".join([str(producer) for producer in descent.producers])
    way = ".".join(descent.way)
    return f"{base}|{producers}|{way}" if way else f"{base}|{producers}"


def member_key(key: str, member: int, members: Members) -> str:
    """Return the key of a layer that one of several stacked weights makes.

    Args:
        key: The key of what all of them make.
        member: Which of them it is.
        members: All of them.

    Example:
        >>> gathered = Members(4, torch.zeros(9), ends=False, names=("up",))
        >>> member_key("act|up[0],shared", 3, gathered)
        'act|up.3[0],shared'
        >>> stacked = Members(2, torch.zeros(9), ends=False, names=("one", "two"), apart=True)
        >>> member_key("act|one,two", 1, stacked)
        'act|two'
    """
    base, producers, *way = key.split("|")
    parts = []
    for producer in producers.split(","):
        signed, bracket, part = producer.partition("[")
        name = signed.lstrip(_SIGNS)
        if members.names and name not in members.names:
            parts.append(producer)
        elif not members.apart:
            parts.append(f"{signed}.{member}{bracket}{part}")
        elif name == members.names[member]:
            parts.append(producer)
    return "|".join((base, ",".join(parts), *way))


class Call(NamedTuple):
    """What a key tells.

    Attributes:
        base: The activation's name.
        producers: Names of what makes its units, without parts and signs.
        parts: The same with them: ``-`` if negated, ``+`` if joined, ``^`` for columns.
        way: What was done since, "" for nothing.
        number: Which call of the same values it is, from 1 on.
    """

    base: str
    producers: tuple[str, ...]
    parts: tuple[str, ...]
    way: str
    number: int


def partly_mixed(keys: Iterable[str], mixed: Iterable[str]) -> list[str]:
    """Return those keys whose units have been counted in part only: elsewhere they are mixed.

    Args:
        keys: Keys of layers.
        mixed: Keys of layers that have rows made by several weights.
    """
    calls = [read_key(key) for key in mixed]

    def shares(own: Call, call: Call) -> bool:
        return own.base == call.base and not set(own.producers).isdisjoint(call.producers)

    return [key for key in keys if any(shares(read_key(key), call) for call in calls)]


def whole_and_in_part(keys: Iterable[str]) -> list[str]:
    """Return the keys of weights, or units, of which some are in another one, too.

    A unit of both has fired if it fired in either, which neither of the two counts tells.

    Example:
        >>> whole_and_in_part(["relu|w,+b", "relu|w.3,+b.3", "relu|v", "gelu|v.1"])
        ['relu|w,+b', 'relu|w.3,+b.3']
        >>> whole_and_in_part(["relu|w[0_4]", "relu|w[4_]", "relu|w[2_6]"])
        ['relu|w[0_4]', 'relu|w[2_6]', 'relu|w[4_]']
        >>> whole_and_in_part(["relu|w[at0_3]", "relu|w[1__2]", "relu|w[0__2]"])
        ['relu|w[at0_3]', 'relu|w[1__2]', 'relu|w[0__2]']
    """
    alike: dict[tuple[str, str, int], list[tuple[str, Call]]] = {}
    for key in keys:
        call = read_key(key)
        alike.setdefault((call.base, call.way, len(call.parts)), []).append((key, call))
    found = [
        (key, other)
        for calls in alike.values()  # most activations have one layer
        for (key, one), (other, two) in combinations(calls, 2)
        if one.parts != two.parts
        and (
            all(map(_is_in, two.parts, one.parts))
            or all(map(_is_in, one.parts, two.parts))
            or all(map(_overlap, one.parts, two.parts))
        )
    ]
    return list(dict.fromkeys(key for pair in found for key in pair))


def _is_in(part: str, whole: str) -> bool:
    """Tell whether weights are others, or one of several that these are stacked of."""
    return part == whole or part.startswith(f"{whole}.")


def _overlap(one: str, other: str) -> bool:
    """Tell whether producers are the same weights with some of their units in common."""
    (name, _, places), (others, _, theirs) = one.partition("["), other.partition("[")
    if name != others:
        return False
    mine, its = _places(places.rstrip("]")), _places(theirs.rstrip("]"))
    if mine is None or its is None:
        return False
    if isinstance(mine, list) and isinstance(its, list) and sorted(mine) == sorted(its):
        return False  # the same units in another order: that is another way to them
    if isinstance(mine, range) and isinstance(its, range):
        # What two steps have in common comes again after their product: no end is looked for.
        low = max(mine.start, its.start)
        first = low + (mine.start - low) % mine.step
        mine = range(first, min(mine.stop, its.stop, first + mine.step * its.step), mine.step)
    elif isinstance(mine, range):
        mine, its = its, mine
    return any(place in its for place in mine)


def _places(part: str) -> range | list[int] | None:
    """Return which units a part has, None if its word does not tell."""
    if part.startswith("at"):
        listed = part.removeprefix("at").split("_")
        return [int(place) for place in listed] if all(map(str.isdigit, listed)) else None
    if not part:
        return range(maxsize)
    start, *end = part.split("_")
    if not start.isdigit() or len(end) > 2 or not all(it.isdigit() for it in end if it):
        return None
    stop, step = (*end, "", "")[:2]
    last = int(start) + 1 if not end else int(stop) if stop else maxsize
    return range(int(start), last, int(step or 1))


def read_key(key: str) -> Call:
    """Read a key back.

    Example:
        >>> read_key("relu|-fc[1]|sub#2")
        Call(base='relu', producers=('fc',), parts=('-fc[1]',), way='sub', number=2)
    """
    key, _, number = key.partition("#")
    base, producers, way, *_ = [*key.split("|"), "", ""]
    parts = tuple(producers.split(",")) if producers else ()
    names = dict.fromkeys(part.lstrip(_SIGNS).partition("[")[0] for part in parts)
    return Call(base, tuple(names), parts, way, int(number or 1))


def numbered(key: str, number: int) -> str:
    """Return the key of a later call on the same values, or of one of which nothing else tells."""
    return key if number == 1 else f"{key}#{number}"
