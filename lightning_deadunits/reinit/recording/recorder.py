"""Recorder: notes the torch calls of one real pass while the user's code runs, once, as always.

It sits on the stack of function modes, as the one that counts does, and sees every call that is
made in Python. It keeps references by number and no result alive. What it leaves out: arithmetic
of optimizers and on gradients, and everything inside of backward. What it cannot see, an extension
that writes memory, say, it notices where it can and notes as an obstacle.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lightning_deadunits.observation.lineage.ways import WRITES
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sites import SiteMode
from lightning_deadunits.private_api import (
    is_functorch_tensor,
    is_running_backward,
    version_of,
    without_torch_function,
)
from lightning_deadunits.reinit.parameters import storage_of
from lightning_deadunits.reinit.recording.functions import (
    BACKWARD,
    EMPTY,
    METADATA,
    RANDOM,
    SCALERS,
    exchanged,
    is_exchange,
    is_own_code,
    name_of,
    overwrites,
    sets_attribute,
    writes_in_place,
)
from lightning_deadunits.reinit.recording.known import KnownTensors
from lightning_deadunits.reinit.recording.layout import Layout
from lightning_deadunits.reinit.recording.soundness import Samples
from lightning_deadunits.reinit.recording.tape import (
    Call,
    Obstacle,
    RandomState,
    Ref,
    SiteCall,
    Tape,
    leaves_of,
    mapped,
    tensors_of,
)

Function = Callable[..., Any]


class Recorder(SiteMode):
    """Records one pass at a time: :meth:`begin`, any code of the user's, :meth:`end`.

    Args:
        model: The module whose layers and parameters are meant.
        layers: Patterns of layers that the user has named; a module of that very name is a layer.
        in_step: Tells whether what is meant is running; what runs between ``begin`` and ``end``
            beside it, other callbacks, say, is not recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...] | None = None,
        in_step: Callable[[], bool] = lambda: True,
    ) -> None:
        named = None if layers is None else ("*", *layers)
        super().__init__(model, named, never_zero=True, in_step=in_step)
        self._stack = ExitStack()
        self._tape: Tape | None = None
        self._known = KnownTensors()
        self._pending: _Pending | None = None
        self._inside_optimizer = 0
        self._samples = Samples()

    # --- one pass ---------------------------------------------------------------------------------

    def begin(self, *, training: bool) -> None:
        """Start to record a pass; one that was begun and never ended is forgotten."""
        self.cancel()
        devices = sorted({p.get_device() for p in self.model.parameters() if p.is_cuda})
        self._tape = Tape(training, tuple(devices), Layout(self.model))
        self._known.start_pass(self.model)
        self._pending, self._inside_optimizer = None, 0
        self._samples = Samples()
        with ExitStack() as stack:
            stack.callback(self.detach)
            self.attach()
            stack.enter_context(_Eagerly())
            for register, hook in (
                (register_optimizer_step_pre_hook, self._before_step),
                (register_optimizer_step_post_hook, self._after_step),
            ):
                stack.callback(register(hook).remove)
            stack.enter_context(self)
            self._stack = stack.pop_all()

    def end(self) -> Tape | None:
        """Stop; return the tape, None if nothing was recorded. Harmless if nothing was begun.

        What the user's code returned must still be held then: what outlives the pass counts as its
        result.
        """
        tape, self._tape = self._tape, None
        self._stack.close()
        if tape is None or not tape.entries:
            self._known.forget()
            return None
        alive = self._known.alive(self.model.modules())
        self._known.forget()
        tape.kept = frozenset(alive.kept - tape.leaves.keys())
        tape.perhaps_kept = {h: i for h, i in alive.perhaps.items() if i not in tape.leaves}
        tape.kept_until_freed = alive.until_freed
        self._samples.check(tape)
        tape.layout.settle(self.model)
        tape.before.clear()
        return tape

    def cancel(self) -> None:
        """Stop, and forget what was recorded. Harmless if nothing was begun."""
        self._tape = None
        self.end()

    @contextmanager
    def recording(self, *, training: bool) -> Iterator[Box]:
        """Record what runs inside; ``tape`` of what is returned is set at the end."""
        box = Box()
        self.begin(training=training)
        try:
            yield box
            box.tape = self.end()
        finally:
            self.cancel()

    # --- optimizers -------------------------------------------------------------------------------

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Leave out the arithmetic of an optimizer, but for the closure that it may call."""
        closure = len(args) > 1 or kwargs.get("closure") is not None
        if self._tape is not None and not self._inside_optimizer and not closure:
            self._check_before_move(_weights_of(optimizer))
        self._inside_optimizer += 1
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._closure(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._closure(optimizer, kwargs["closure"])}
        return None

    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside_optimizer -= 1

    def _check_before_move(self, weights: Sequence[Tensor]) -> None:
        """Check what was recorded since weights were last stepped: they are about to be again."""
        if self._tape is not None:
            self._samples.check(self._tape)
            with without_torch_function():
                self._samples.move(len(self._tape.entries), weights)

    def _closure(self, optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
        def recorded() -> Any:
            outside, self._inside_optimizer = self._inside_optimizer, 0
            try:
                result = closure()
                self._check_before_move(_weights_of(optimizer))
                return result
            finally:
                self._inside_optimizer = outside

        return recorded

    # --- calls ------------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note a call, and make it."""
        kwargs = dict(kwargs or {})
        if self._tape is None or self._inside_optimizer or is_running_backward():
            return func(*args, **kwargs)
        if not self.in_step():
            return func(*args, **kwargs)
        with without_torch_function():
            try:
                self._pending = self._noted(self._tape, func, args, kwargs)
            except Exception as error:  # a failure of ours costs the tape, never the user's pass
                self._obstacle(f"could not be recorded ({type(error).__name__}: {error})")
        try:
            out = super().__torch_function__(func, types, args, kwargs)
            self._finish(out)
        finally:
            self._pending = None
        return out

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Note an activation, after the call that made it."""
        with without_torch_function():
            try:
                self._note_site(site, output)
            except Exception as error:  # a failure of ours costs the tape, never the user's pass
                self._obstacle(f"could not be recorded ({type(error).__name__}: {error})")
        return output

    def _note_site(self, site: Site, output: Tensor) -> None:
        call = None if self._pending is None else self._pending.call
        self._finish(None if call is not None and call.function in WRITES else output)
        value = self._known.number(output)
        if self._tape is not None and value is not None and not is_functorch_tensor(output):
            sizes = [site.values(output).shape[axis] for axis in site.unit_dims]
            self._samples.take(len(self._tape.entries), output)
            self._tape.entries.append(SiteCall(site, value, math.prod(sizes)))

    def _noted(
        self, tape: Tape, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Pending | None:
        """Take down what a call is given, None for one that is no part of what is computed."""
        name = name_of(func)
        if name in METADATA or func in BACKWARD or (sets_attribute(func) and name != "data"):
            return None
        if is_exchange(func):
            self._note_exchange(tape, func, args, kwargs)
            return None
        if is_own_code(func):
            self._obstacle(f"runs {name}, which is no code of torch's: a replay would run it again")
            return None
        leaves = leaves_of((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(map(is_functorch_tensor, tensors)):
            self._obstacle(_FUNCTORCH)
            return None
        if name == "grad" and getattr(func, "__name__", "") == "__get__":
            return _Pending(None)
        if name in SCALERS or self._known.are_of_gradients(tensors):
            stepped = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
            if stepped and writes_in_place(name):  # an optimizer of the user's own
                self._check_before_move(stepped)
            return _Pending(None, [(tensor, version_of(tensor)) for tensor in tensors])
        refs: dict[int, Ref] = {}
        unread = tensors[0] if tensors and overwrites(name) else None
        for leaf in leaves:
            if isinstance(leaf, (Tensor, Generator)) and id(leaf) not in refs:
                refs[id(leaf)] = Ref(self._read(tape, leaf, matters=leaf is not unread))
        call = Call(
            func,
            mapped(args, lambda leaf: refs.get(id(leaf), leaf)),
            mapped(kwargs, lambda leaf: refs.get(id(leaf), leaf)),
            tuple(ref.index for ref in refs.values()),
            self.running,
            torch.is_grad_enabled(),
            _autocast(),
            torch.get_default_dtype(),
            RandomState(tape.devices) if name.strip("_") in RANDOM else None,
        )
        if name == "__getitem__":
            # Torch reads such a number as well: nothing more is waited for.
            numbers = [t for t in tensors[1:] if t.ndim == 0 and t.dtype in _WHOLE]
            tape.numbers |= {refs[id(t)].index: int(t) for t in numbers}
        if writes_in_place(name) or "out" in kwargs or sets_attribute(func):
            self._keep_before(tape, tensors)
        return _Pending(call, [(tensor, version_of(tensor)) for tensor in tensors])

    def _note_exchange(
        self, tape: Tape, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note what a collective sends as a result, and what it receives as data.

        A replay would wait for the other processes. What each of them sends stays the same, and so
        what all of them receive.
        """
        found = exchanged(func, args, kwargs)
        sent, received = map(tensors_of, found or ((), ()))
        if sent and all(map(self._known.is_gradient, sent)):
            return None  # what is averaged for an optimizer
        if not sent or not all(map(self._known.is_alone, received)):
            return self._obstacle("exchanges tensors with other processes")
        given = tuple(dict.fromkeys(self._read(tape, tensor, matters=True) for tensor in sent))
        call = Call(func, (), {}, given, self.running, False, (), torch.get_default_dtype(), None)
        call.reads_values = True
        tape.entries.append(call)
        for tensor in received:
            if (index := self._known.number(tensor)) is not None:
                tape.received.add(index)
            self._known.note_received(tensor)
        return None

    def _keep_before(self, tape: Tape, tensors: list[Tensor]) -> None:
        """Copy the parameters that a call may write to, for the check: they are held, not kept."""
        for tensor in tensors:
            for parameter in self._known.parameters_in(tensor):
                index = self._known.number(parameter)
                if index is not None and index not in tape.before:
                    tape.before[index] = _copied(parameter)

    def _read(self, tape: Tape, leaf: Tensor | Generator, *, matters: bool) -> int:
        """Return the number of a value that a call is given; a new one is a leaf.

        What is in one that the call overwrites does not matter, wherever it comes from.
        """
        known = self._known
        if isinstance(leaf, Tensor) and (problem := known.problem(leaf)) is not None:
            if matters:
                self._obstacle(problem)
            # From here on it is what it was found to be.
            known.unknown(leaf)
        if (index := known.number(leaf)) is not None:
            return index
        index = known.add(leaf)
        if isinstance(leaf, Generator):
            tape.leaves[index] = leaf.clone_state()
        elif isinstance(leaf, nn.Parameter):
            tape.leaves[index] = tape.parameters[index] = leaf
        else:
            tape.leaves[index] = _copied(leaf)
            known.note_plain([index])
            if known.is_buffer(leaf):
                tape.buffers[index] = leaf
        return index

    def _finish(self, out: Any) -> None:
        """Add the pending call to the tape, now that it has returned."""
        pending, self._pending = self._pending, None
        if pending is None or self._tape is None:
            return
        with without_torch_function():
            try:
                self._add(self._tape, pending, leaves_of(out))
            except Exception as error:  # as above
                self._obstacle(f"could not be recorded ({type(error).__name__}: {error})")

    def _add(self, tape: Tape, pending: _Pending, results: list[Any]) -> None:
        call, known = pending.call, self._known
        made = [item for item in results if isinstance(item, Tensor)]
        if call is None:
            for tensor in made:
                known.add_gradient(tensor)
            for tensor, before in pending.versions:
                if version_of(tensor) != before and not isinstance(tensor, nn.Parameter):
                    known.unknown(tensor)
                    known.add_gradient(tensor)
            return None
        if any(map(is_functorch_tensor, made)):
            return self._obstacle(_FUNCTORCH)
        name, position = name_of(call.function), len(tape.entries)
        wrote = [(t, before) for t, before in pending.versions if version_of(t) != before]
        call.reads_values = not (made or wrote or sets_attribute(call.function))
        if call.reads_values and (name == "type" or not pending.versions):
            return None
        for tensor, before in wrote:
            known.note_write(tensor, before, position)
            sharing = (known.number(other) for other in (tensor, *known.parameters_in(tensor)))
            tape.written |= {index for index in sharing if index in tape.leaves}
        if sets_attribute(call.function) and name == "data":
            # No version moves, and a replay must not write to the parameter itself.
            tape.written |= {index for index in call.given[:1] if index in tape.leaves}
        # Running statistics are no results, as those of a batch norm, whose version never moves.
        written = [] if name == "instance_norm" else wrote
        call.writes = tuple(known.add(tensor) for tensor, _ in written)
        self._check_written(pending, made)
        for tensor in made:
            known.note_made(tensor, empty=name in EMPTY)
        call.outs = tuple(known.add(item) if isinstance(item, Tensor) else None for item in results)
        known.note_plain({*call.writes, *call.made}, call.given, (tensor for tensor, _ in wrote))
        for tensor in (*(tensor for tensor, _ in pending.versions), *made):
            known.seen(tensor, position)
        nothing_given = any(not tensor.numel() for tensor, _ in pending.versions)
        call.empty = nothing_given and (bool(wrote) or not any(own.numel() for own in made))
        if not call.empty:
            tape.modules.update({frame.name for frame in self._frames} or {""})
        call.scalar = len(made) == 1 and made[0].ndim == 0 and made[0].is_floating_point()
        if call.scalar:
            self._samples.take(position, made[0])
        tape.entries.append(call)
        return None

    def _check_written(self, pending: _Pending, made: list[Tensor]) -> None:
        """Note an obstacle if a call reads memory that came from ``empty``, but to view it."""
        for tensor, _ in pending.versions:
            views = map(storage_of, made)
            if self._known.is_unwritten(tensor) and storage_of(tensor) not in views:
                self._obstacle("reads memory that no torch call has written")

    def _obstacle(self, what: str) -> None:
        if self._tape is not None:
            where = f" in {self.running}" if self.running else ""
            self._tape.obstacles.append(Obstacle(len(self._tape.entries), f"code{where} {what}"))

    @property
    def running(self) -> str:
        """Name of the module whose forward is running."""
        return self._frames[-1].name if self._frames else ""


class Box:
    """Holds the tape of a pass that was recorded in a ``with`` block."""

    tape: Tape | None = None


def _weights_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@dataclass(slots=True)
class _Pending:
    """A call that has not returned yet, None for one on gradients; what it was given, and when."""

    call: Call | None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FUNCTORCH = "runs inside of a torch.func transform (vmap, grad and the like)"


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return copy.requires_grad_() if tensor.requires_grad and tensor.is_leaf else copy


_DEVICE_TYPES = ("cpu", "cuda")


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    return tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in _DEVICE_TYPES
        if torch.is_autocast_enabled(kind)
    )


class _Eagerly:
    """Runs compiled modules eagerly, so that every call is seen; their graphs stay valid.

    One stance for all recorders that are recording: they need not end in the order of their begin.
    """

    _stance: Any = None
    _recording = 0

    def __enter__(self) -> None:
        # Importing Dynamo takes a second.
        if not _Eagerly._recording and "torch._dynamo" in sys.modules:
            _Eagerly._stance = torch.compiler.set_stance("force_eager")
            _Eagerly._stance.__enter__()
        _Eagerly._recording += 1

    def __exit__(self, *exception: object) -> None:
        _Eagerly._recording -= 1
        if not _Eagerly._recording and _Eagerly._stance is not None:
            stance, _Eagerly._stance = _Eagerly._stance, None
            stance.__exit__(None, None, None)
