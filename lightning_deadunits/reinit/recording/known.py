"""Which tensors of a running pass are known, and whether what is in them is what calls have made.

Sound is a record only if every value that is read comes from somewhere visible. Four things show
that it does not: a tensor that no call made and that was not there before the pass (NumPy, an
extension), one whose version moved although no call wrote it, one that came from ``empty`` and was
never written, and a gradient that backward left.
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_deadunits.private_api import version_of
from lightning_deadunits.reinit.parameters import storage_of

_OF_MODULES = ("_parameters", "_buffers", "_modules")
"""Attributes in which a module holds what is no result of a pass."""

_DEEPEST = 4


def _tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors in containers, which may contain themselves."""
    if isinstance(value, Tensor):
        yield value
    elif depth < _DEEPEST and isinstance(value, (list, tuple, deque, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(item, depth + 1)


class Before:
    """Tells whether a tensor was there before a pass.

    ``gc.freeze`` sets all that there is aside, at no cost, until the pass has ended: what the
    collector still lists has come since. Where objects are frozen already, by the user or for
    another recorder, the tensors that are still listed are written down.
    """

    _open = 0

    def __init__(self) -> None:
        frozen = gc.get_freeze_count() > 0
        self._shares = Before._open > 0 or not frozen
        self._there: dict[int, weakref.ref[Any]] = {}
        if frozen:
            types = list(map(type, objects := gc.get_objects()))
            # Not `isinstance`: a lazy proxy would be asked what it is.
            kinds = {kind for kind in set(types) if issubclass(kind, Tensor)}
            tensors = compress(objects, map(kinds.__contains__, types))
            self._there = {id(tensor): weakref.ref(tensor) for tensor in tensors}
        else:
            gc.freeze()
        Before._open += self._shares

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._there.get(id(tensor))
        if entry is not None and entry() is tensor:
            return True
        return not any(thing is tensor for thing in gc.get_objects())

    def close(self) -> None:
        """Let the collector have everything again, once nobody else needs it set aside."""
        Before._open -= self._shares
        if self._shares and not Before._open:
            gc.unfreeze()


class Alive(NamedTuple):
    """Which values are alive at the end of a pass.

    Attributes:
        kept: Those that somebody holds.
        perhaps: Those that have a graph, and that autograd alone holds, perhaps, by their memory.
        until_freed: Those of ``kept`` that have none and may be held for backward alone.
    """

    kept: set[int]
    perhaps: dict[int, int]
    until_freed: dict[int, weakref.ref[Tensor]]


class KnownTensors:
    """Numbers the values of a pass; holds none of them alive."""

    def __init__(self) -> None:
        self._before: Before | None = None
        self.forget()

    def forget(self) -> None:
        """Forget all."""
        if self._before is not None:
            self._before.close()
            self._before = None
        self._entries: dict[int, tuple[Callable[[], Any], int]] = {}
        self._parameters: dict[int, list[nn.Parameter]] = {}
        self._buffers: set[int] = set()
        self._versions: dict[int, tuple[int, int]] = {}
        self._writes: dict[int, list[tuple[int, int]]] = {}
        self._unwritten: set[int] = set()
        self._gradients: dict[int, weakref.ref[Tensor]] = {}
        self._received: dict[int, weakref.ref[Tensor]] = {}
        self._plain: set[int] = set()
        self._written_by_weights: set[int | None] = set()
        self.count = 0

    def start_pass(self, model: nn.Module) -> None:
        """Take note of what there is."""
        self.forget()
        self._before = Before()
        for parameter in model.parameters():
            if (key := storage_of(parameter)) is not None:
                self._parameters.setdefault(key, []).append(parameter)
        self._buffers = {id(buffer) for buffer in model.buffers()}

    # --- numbers ----------------------------------------------------------------------------------

    def number(self, value: Any) -> int | None:
        """Return the number of a value, None if it has none."""
        entry = self._entries.get(id(value))
        return entry[1] if entry is not None and entry[0]() is value else None

    def add(self, value: Any) -> int:
        """Number a value; one that has a number keeps it."""
        if (index := self.number(value)) is not None:
            return index
        index, self.count = self.count, self.count + 1
        try:
            reference: Callable[[], Any] = weakref.ref(value)
        except TypeError:  # a generator, before torch 2.13: it is held until the pass has ended

            def reference() -> Any:
                return value

        self._entries[id(value)] = reference, index
        return index

    def unknown(self, value: Any) -> None:
        """Forget the number of a value, if it has one: it is another one now."""
        self._entries.pop(id(value), None)

    def alive(self, modules: Iterable[nn.Module]) -> Alive:
        """Return the values that somebody holds, and those that perhaps autograd alone does.

        It holds masks, too, which have no gradient of their own: ``h > 0`` of ``h * (h > 0)``.
        Attributes of modules hold values certainly.
        """
        held = {
            id(tensor)
            for module in modules
            for name, value in vars(module).items()
            if name not in _OF_MODULES
            for tensor in _tensors_in(value)
        }
        alive = Alive(set(), {}, {})
        for reference, index in self._entries.values():
            tensor = reference()
            if not isinstance(tensor, Tensor) or tensor.dtype == torch.bool:
                continue
            if tensor.grad_fn is None or id(tensor) in held:
                alive.kept.add(index)
                if id(tensor) not in held:
                    alive.until_freed[index] = weakref.ref(tensor)
            elif (home := storage_of(tensor)) is not None:
                alive.perhaps[home] = index
        return alive

    def is_buffer(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a buffer of the model."""
        return id(tensor) in self._buffers

    # --- gradients --------------------------------------------------------------------------------

    def add_gradient(self, tensor: Tensor) -> None:
        """Take note of a gradient, or of what was computed from gradients alone."""
        if self.number(tensor) is None:
            self._gradients[id(tensor)] = weakref.ref(tensor)

    def is_gradient(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a gradient, or was computed from gradients alone."""
        entry = self._gradients.get(id(tensor))
        return entry is not None and entry() is tensor

    def are_of_gradients(self, tensors: list[Tensor]) -> bool:
        """Tell whether a call is arithmetic on gradients, be it to apply them to parameters.

        What no weights have made may take part: a constant, a running mean of norms.
        """
        if not self._gradients or not any(map(self.is_gradient, tensors)):
            return False
        return all(
            self.is_gradient(t) or isinstance(t, nn.Parameter) or self._is_plain(t) for t in tensors
        )

    def note_plain(
        self, made: Iterable[int], given: Iterable[int] = (), written: Iterable[Tensor] = ()
    ) -> None:
        """Take note that values were made of others; of no weights, if those were not."""
        if self._plain.issuperset(given):
            self._plain.update(made)
        else:
            self._plain.difference_update(made)
            self._written_by_weights.update(map(storage_of, written))

    def _is_plain(self, tensor: Tensor) -> bool:
        if storage_of(tensor) in self._written_by_weights:
            return False
        if (index := self.number(tensor)) is not None:
            return index in self._plain
        return self._descent_problem(tensor) is None

    def is_alone(self, tensor: Tensor) -> bool:
        """Tell whether no other value of the pass shares the memory of a tensor."""
        home = storage_of(tensor)
        others = (reference() for reference, _ in self._entries.values())
        return not any(
            isinstance(other, Tensor) and other is not tensor and storage_of(other) == home
            for other in others
        )

    def note_received(self, tensor: Tensor) -> None:
        """Take note that a tensor is received from other processes: it is data from now on."""
        self.unknown(tensor)
        self._unwritten.discard(storage_of(tensor) or 0)
        self._received[id(tensor)] = weakref.ref(tensor)

    def _is_received(self, tensor: Tensor) -> bool:
        entry = self._received.get(id(tensor))
        return entry is not None and entry() is tensor

    # --- what cannot be followed ------------------------------------------------------------------

    def _descent_problem(self, tensor: Tensor) -> str | None:
        """Say why a tensor that is seen for the first time is no leaf, None if it is one."""
        if isinstance(tensor, nn.Parameter) or tensor.numel() == 0:
            return None
        if self.is_buffer(tensor) or (self._before is not None and tensor in self._before):
            return None
        if self._is_received(tensor):
            return None
        if self.is_gradient(tensor):
            return "computes with gradients that backward left, which a replay has not"
        return (
            "uses a tensor that no torch call made (NumPy, an extension, a compiled or scripted "
            "module; constants should be made by `torch.tensor` or `torch.full`, not by "
            "`torch.Tensor`)"
        )

    def problem(self, tensor: Tensor) -> str | None:
        """Say why a tensor may hold something else than calls have made, None if not."""
        if (index := self.number(tensor)) is None:
            return self._descent_problem(tensor)
        if index not in self._versions or isinstance(tensor, nn.Parameter):
            return None
        before, since = self._versions[index]
        moved = version_of(tensor) - before
        if moved and moved > self._writes_since(tensor, since):
            return "writes into a tensor in a way that no torch call shows"
        return None

    def is_unwritten(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is of memory that came from ``empty`` and no call has written."""
        return bool(self._unwritten) and storage_of(tensor) in self._unwritten

    def seen(self, tensor: Tensor, position: int) -> None:
        """Take note of the version of a tensor after the call at a position of the tape."""
        if (index := self.number(tensor)) is not None:
            self._versions[index] = version_of(tensor), position

    def note_made(self, tensor: Tensor, *, empty: bool) -> None:
        """Take note of a result, be it of memory that nobody has written yet."""
        if empty and tensor.numel() and (key := storage_of(tensor)) is not None:
            self._unwritten.add(key)
        elif self._unwritten and not empty:  # it may be that of an empty tensor that is gone
            self._unwritten.discard(storage_of(tensor) or 0)

    def note_write(self, tensor: Tensor, before: int, position: int) -> None:
        """Take note that a call wrote into a tensor, and so into all that share its memory."""
        if (key := storage_of(tensor)) is None:
            return
        self._unwritten.discard(key)
        written = self._writes.setdefault(key, [])
        if not written or written[-1][0] != position:  # two views of one memory, in one call
            written.append((position, version_of(tensor) - before))

    def _writes_since(self, tensor: Tensor, position: int) -> int:
        written = self._writes.get(storage_of(tensor) or 0, ())
        return sum(times for own, times in written if own > position)

    def parameters_in(self, tensor: Tensor) -> list[nn.Parameter]:
        """Return the parameters whose memory a tensor shares."""
        return self._parameters.get(storage_of(tensor) or 0, [])
