"""The mode that meets every activation site of a forward pass.

A ``TorchFunctionMode`` sees ``nn.ReLU``, ``F.relu``, ``torch.relu`` and ``x.relu_()`` alike; a
module that is called twice passes twice. Dynamo traces through it and guards on the mode stack:
a model compiled earlier gets a second graph while the mode is on, and its plain one back
afterwards. Only names need hooks, which are there for as long as ``watching`` lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _pop_mode,
    _push_mode,
)

from lightning_deadunits.observation.activations import (
    BOUNDED,
    FUNCTION_NAMES,
    Kind,
    function_kind,
    plain_function,
)
from lightning_deadunits.observation.compiled import is_opaque, keep_eager
from lightning_deadunits.observation.hidden_writes import HIDES_WRITES, HiddenWrites
from lightning_deadunits.observation.hidden_writes import REASON as HIDDEN
from lightning_deadunits.observation.hooks import ModuleHooks
from lightning_deadunits.observation.identity import (
    MIXED,
    Descent,
    key_of,
    numbered,
    read_key,
)
from lightning_deadunits.observation.lineage.axes import Args, Axes, Kwargs
from lightning_deadunits.observation.lineage.eager import EagerLineage, Step
from lightning_deadunits.observation.lineage.following import Lineage, mark_weights
from lightning_deadunits.observation.lineage.gates import COMPARISONS, GATES, is_gated
from lightning_deadunits.observation.lineage.moves import MOVES
from lightning_deadunits.observation.lineage.ways import PIECES, WRITES, is_in_place
from lightning_deadunits.observation.names import module_names, selects, weights_of
from lightning_deadunits.observation.padding import Padding
from lightning_deadunits.observation.regions import OPERATORS, REASON, Regions
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.stack import ROOT, Frame, Stack, Teller, frame_of


class _Met(NamedTuple):
    """An activation, as far as it is the same at every call that is alike.

    ``key`` is "" for what does not count, ``site`` None for what is never zero, too.
    """

    key: str
    kind: Kind
    site: Site | None
    descent: Descent | None
    way: str


ASIDE = (
    "it ran on what is no layer's output (attention scores, a loss); its full name in `layers` has "
    "it counted all the same"
)
"""Why an activation that ran was not counted."""
_NO_ACTIVATION = _Met("", "never", None, None, "")


class SiteMode(TorchFunctionMode):
    """Calls :meth:`on_site` with every activation of the model while it is entered.

    Args:
        model: The model whose modules give the names.
        layers: Patterns of layers to track, None for all that can be zero at rest.
        exclude: Patterns of layers not to track.
        never_zero: Whether activations that are never zero at rest are sites too.

    Attributes:
        met: Keys of the layers that ran, in order.
        never_met: Keys of the activations that ran and are never zero at rest.
        aside: Names of activations that ran on what no layer made, and whether it was parameters.
        expected: Names of what ought to run, each with the likely cause if it does not.
        unjudged: Keys of layers that cannot be judged, with reasons.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...] | None = None,
        exclude: tuple[str, ...] | None = None,
        never_zero: bool = False,
        in_step: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.exclude = exclude
        self.never_zero = never_zero
        self.in_step = in_step
        self.lineage = EagerLineage()
        self._traced_lineage = Lineage()
        self._all = layers is None and exclude is None
        self.met: dict[str, bool] = {}
        self.never_met: dict[str, bool] = {}
        self.aside: dict[str, bool] = {}
        self.expected: dict[str, str] = {}
        self.unjudged: dict[str, str] = {}
        self._frames: Stack = []
        self._paddings: list[Padding] = []
        self._sources: list[Any] = []
        self._selected: dict[str, bool] = {}
        self._calls: dict[str, int] = {}
        self._ran: dict[str, Kind] = {}
        self._aside: dict[str, bool] = {}
        self._marked = ExitStack()
        self._regions = Regions()
        self._hidden_writes = HiddenWrites(self._regions)
        self._hooks: dict[nn.Module, ModuleHooks] = {}
        self._hooked: dict[nn.Module, str] = {}

    # --- what subclasses say ------------------------------------------------------------------

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Receive one activation; what is returned takes its place."""
        return output

    def on_call(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any) -> Any:
        """Receive every other torch function call; what is returned takes its result's place."""
        return out

    # --- one forward pass ---------------------------------------------------------------------

    def start_pass(self) -> None:
        """Forget the last forward pass but for the names it met: calls are numbered anew."""
        for name, kind in self._ran.items():
            never = kind == "never" and not self.never_zero
            (self.never_met if never else self.met)[name] = True
        for name, of_parameters in self._aside.items():
            self.aside[name] = of_parameters and self.aside.get(name, True)
        self._refuse(self._regions.met, REASON)
        self._refuse(self._hidden_writes.met(), HIDDEN)
        # Empty at the start of every pass, or Dynamo's guards on it would fail in the second.
        self._ran.clear()
        self._aside.clear()
        self.lineage.forget()
        self._frames.clear()
        self._paddings.clear()
        self._sources.clear()
        self._calls.clear()

    def _refuse(self, bases: Iterable[str], reason: str) -> None:
        for base in bases:
            # What ran elsewhere as well was counted by half.
            counted = [key for key in self.met if read_key(key).base == base]
            for key in counted or [base]:
                self.met[key] = True
                if self._selects(key):
                    self.unjudged[key] = reason

    def __exit__(self, *exception: object) -> None:
        """Leave the stack of modes, wherever on it: two callbacks leave in the order they came."""
        above: list[TorchFunctionMode] = []
        while (mode := _get_current_function_mode()) not in (self, None):  # type: ignore[no-untyped-call]  # torch's
            _pop_mode()  # type: ignore[no-untyped-call]  # torch's
            above.append(mode)
        if mode is self:
            _pop_mode()  # type: ignore[no-untyped-call]  # torch's
        for other in reversed(above):
            _push_mode(other)  # type: ignore[no-untyped-call]  # torch's

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            if func is Tensor.unflatten:
                # The method calls its superclass's, which Dynamo cannot trace inside of a mode.
                func = torch.unflatten
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and func not in MOVES and is_in_place(func, kwargs):
                out = args[0] if args else out  # for Dynamo what was returned is another one
            if isinstance(func, OPERATORS):
                self._regions.look(self._frame().name)
                return out
            return self._meet(func, args, kwargs, out)
        out = func(*args, **kwargs)
        if not torch._C._len_torch_function_stack():
            return self._meet(func, args, kwargs, out)
        # Modes below, another callback's that records, say, must not see what this one computes.
        with torch._C.DisableTorchFunction():
            return self._meet(func, args, kwargs, out)

    def _meet(self, func: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any) -> Any:
        if isinstance(func, _OPERATORS):
            func = plain_function(func)
        step = None
        if torch.compiler.is_compiling():
            try:
                if func in PIECES:
                    return self._traced_lineage.follow_parts(func, args, kwargs, out)
                self._traced_lineage.follow(func, args, kwargs, out)
            except Exception:
                pass  # an unforeseen signature must not cost the graph: nothing is known then
            if HIDES_WRITES and func in COMPARISONS and self._traced_lineage.descent(out):
                self._hidden_writes.suspect(self._frame().name)
        else:
            frame = self._frames[-1] if self._frames else ROOT
            try:  # noqa: SIM105  # `suppress` costs half a microsecond at every call
                step = self.lineage.follow(func, args, kwargs, out, frame)
            except Exception:
                pass  # an unforeseen signature must not cost the pass: the axis is unknown then
            if step is not None and step.memo is not None:
                if step.memo is _NO_ACTIVATION or self._is_aside(frame):
                    return self.on_call(func, args, kwargs, out)
                return self._again(step.memo, out)
        kind = function_kind(func, args, kwargs) if func in FUNCTION_NAMES else None
        if kind is not None:
            made = self._activation(func, args, kwargs, out, FUNCTION_NAMES[func], kind, step)
            if torch.compiler.is_compiling() and isinstance(made, Tensor):
                self._traced_lineage.note_written(func, args, kwargs, made)
            return made
        if func in GATES:
            made = args[0] if func in WRITES else out  # h[h < 0] = 0 returns nothing
            if self._is_gated(func, args, kwargs, made):
                made = self._activation(func, args, kwargs, made, GATES[func], "exact", None)
                return out if func in WRITES else made
        elif step is not None:
            step.memo = _NO_ACTIVATION
        return self.on_call(func, args, kwargs, out)

    def _frame(self) -> Frame:
        return self._frames[-1] if self._frames else ROOT

    def _is_aside(self, frame: Frame) -> bool:
        """Tell whether a call is made by no module, beside the step: in another callback's hook."""
        return frame is ROOT and not torch.compiler.is_compiling() and not self.in_step()

    def _is_gated(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any) -> bool:
        lineage = self._traced_lineage if torch.compiler.is_compiling() else self.lineage
        try:
            return is_gated(lineage, function, args, kwargs, out)
        except Exception:  # an unforeseen signature
            return False

    def _activation(
        self,
        function: Callable[..., Any],
        args: Args,
        kwargs: Kwargs,
        out: Any,
        name: str,
        kind: Kind,
        step: Step | None,
    ) -> Any:
        frame = self._frame()
        if self._is_aside(frame):
            return self.on_call(function, args, kwargs, out)
        if frame.whole or frame.silent:
            if step is not None:
                step.memo = _NO_ACTIVATION
            return self.on_call(function, args, kwargs, out)
        if frame.kind is not None:
            return self._site(frame.name, frame.kind, out, out, name, certain=True, step=step)
        base = f"{frame.name}.{name}" if frame.name else name
        certain = function not in BOUNDED
        return self._site(base, kind, out, out, name, certain=certain, step=step)

    def _site(
        self,
        base: str,
        kind: Kind,
        output: Any,
        source: Any,
        way: str,
        certain: bool,
        step: Step | None = None,
    ) -> Any:
        """Receive an activation.

        Args:
            base: The activation's name.
            kind: Its kind.
            output: What it returned.
            source: What has the descent of its units: the same, or what a module was given.
            way: What its units have passed now.
            certain: Whether it is an activation wherever it is called.
            step: The call, if the same was met before, to remember what it is.
        """
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        compiling = torch.compiler.is_compiling()
        lineage = self._traced_lineage if compiling else self.lineage
        descent, calls = lineage.recall(output)
        if descent is None and source is not output and _alike(source, output):
            descent, calls = lineage.recall(source)  # of what a kernel of one's own returned
        if descent is not None and (descent.weight or descent.axes is None):
            own = descent.weight and not descent.blended and descent.members is None
            if own and not self._is_named(base):
                self._aside[base] = True  # a scale of a prior, say: no data flow through it
                return output
            descent = None
        if output.ndim == 0 and (descent is None or not descent.sizes):
            return output  # a number, but for one of a layer that was squeezed
        site = None
        if kind != "never" or self.never_zero:
            site = self._site_of(lineage, base, kind, descent, output, certain)
            key = "" if site is None else site.name
            if site is None and certain:
                self._aside[base] = False
        else:
            key = key_of(base, descent)
        met = _Met(key, kind, site, descent, way)
        counted = self._count_call(met, calls, output)
        if descent is not None:
            after = lineage.activated(descent, calls, counted, way)
            # Of stacked weights and of unknown descent, another pass may show something else.
            if step is not None and descent.members is None:
                step.memo, step.descent = met, after
        return counted

    def _again(self, met: _Met, output: Tensor) -> Tensor:
        """Receive an activation of which all is known."""
        calls = self.lineage.calls(output)
        counted = self._count_call(met, calls, output)
        if counted is not output and met.descent is not None:
            self.lineage.activated(met.descent, calls, counted, met.way)
        return counted

    def _count_call(self, met: _Met, calls: tuple[list[str], ...], output: Tensor) -> Tensor:
        """Take note of an activation; return what takes its place."""
        site, descent = met.site, met.descent
        if site is None:
            if met.key:
                self._ran[met.key] = met.kind
            return output
        number = self._number(site.name, descent, calls)
        if number > 1:
            site = site._replace(name=numbered(site.name, number))
        layers = (site.name,) if site.members is None else site.layers()
        for key in layers:
            self._ran[key] = met.kind
        if descent is not None and (descent.mixed or descent.flaw):
            self.unjudged[site.name] = MIXED if descent.mixed else descent.flaw
        elif self._all or torch.compiler.is_compiling() or any(map(self._selects, layers)):
            return self.on_site(site, output)
        return output

    def _site_of(
        self,
        lineage: Lineage,
        base: str,
        kind: Kind,
        descent: Descent | None,
        output: Tensor,
        certain: bool,
    ) -> Site | None:
        """Return what an activation is, None if it is none that counts."""
        sites = lineage.sites
        if sites is not None and descent is not None:
            site = sites.get((base, id(descent)))
            if site is not None:
                return site
        axes, assumed = (None, False) if descent is None else (descent.axes, descent.unsure)
        if axes is None:
            guessed = None if output.is_nested else lineage.guess(output)
            # A clamp of what no layer made is arithmetic (boxes, losses), as is a ReLU of scalars.
            if guessed is None and (not certain or output.ndim == 1):
                return None
            axes, assumed = conventional(output) if guessed is None else guessed, True
        if not axes:
            if not self._is_named(base):
                return None
            axes, assumed = conventional(output), True
        if descent is None or not descent.producers:
            sizes = () if descent is None else descent.sizes
            return Site(key_of(base, descent), kind, axes, assumed, sizes=sizes)
        site = Site(
            *(key_of(base, descent), kind, axes, assumed, descent.members, descent.levels),
            sizes=descent.sizes,
        )
        if sites is not None and descent.members is None:
            sites[base, id(descent)] = site
        return site

    def _number(self, key: str, descent: Descent | None, lists: tuple[list[str], ...]) -> int:
        """Return which call of the same values it is, or of an activation of unknown descent."""
        if descent is None or not descent.producers:
            self._calls[key] = number = self._calls.get(key, 0) + 1
            return number
        if not lists:
            return 1
        number = 1
        if lists[0]:  # else it is the first activation of what they are made of
            number += min([calls.count(key) for calls in lists])
        for calls in lists:
            calls.append(key)
        return number

    def _is_named(self, base: str) -> bool:
        """Tell whether an activation was asked for by its very name, whatever flows through it."""
        return base in (self.layers or ())

    def _selects(self, key: str) -> bool:
        chosen = self._selected.get(key)
        if chosen is None:
            chosen = self._selected[key] = selects(key, self.layers, self.exclude)
        return chosen

    def beside(self) -> frozenset[str]:
        """Return the keys of the layers that ran and are not tracked."""
        return frozenset(() if self._all else (key for key in self.met if not self._selects(key)))

    def unseen(self) -> dict[str, str]:
        """Return the layers that ought to have run and have not, each with the likely cause."""
        ran = {read_key(key).base for key in self.met}
        ran |= {name for name, of_parameters in self.aside.items() if of_parameters}
        return {
            name: ASIDE if name in self.aside else why
            for name, why in self.expected.items()
            if name not in ran
        }

    def padding(self) -> Padding | None:
        """Return which positions are padding inside the module that is running, if it was told."""
        return self._paddings[-1] if self._paddings else None

    # --- names --------------------------------------------------------------------------------

    def attach(self) -> None:
        """Let the modules of the model tell when they run."""
        names = module_names(self.model)
        self._drop_hooks(names)
        self._marked.close()
        self._marked.enter_context(mark_weights(named := weights_of(names)))
        self.lineage.know_weights(named, lambda: weights_of(module_names(self.model)))
        inner: set[nn.Module] = set()  # parts of activations that count as a whole
        for module, name in names.items():
            if isinstance(module, nn.RNN) and module.nonlinearity == "relu":
                self.expected.setdefault(name, "its hidden units are inside of a fused kernel")
            if isinstance(module, torch.jit.ScriptModule):
                self.expected.setdefault(name, "a ScriptModule runs outside of Python")
            elif module not in self._hooks and not is_opaque(module):
                frame = self._hook(module, name, expected=module not in inner)
                self._hooked[module] = name
                if frame.whole and frame.silent:
                    inner.update(module.modules())
        self.resume()

    def resume(self) -> None:
        """Have the modules tell again, after :meth:`pause`."""
        for hooks in self._hooks.values():
            hooks.attach()

    def pause(self) -> None:
        """Have the modules tell nothing for a while: they run as if nobody watched."""
        for hooks in self._hooks.values():
            hooks.detach()

    def detach(self) -> None:
        """Take every hook away again."""
        self.pause()
        self.lineage.know_weights({})  # a parameter that is referred to weakly cannot be swapped
        self._marked.close()
        self.start_pass()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Attach for a while; every hook is gone afterwards."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    def _drop_hooks(self, names: dict[nn.Module, str]) -> None:
        """Forget modules that are called otherwise now, or are gone: a network may have grown."""
        for module in [m for m, name in self._hooked.items() if names.get(m) != name]:
            self.expected.pop(self._hooked.pop(module), None)
            if (hooks := self._hooks.pop(module, None)) is not None:
                hooks.detach()

    def needs_frame(self, module: nn.Module, frame: Frame) -> bool:
        """Tell whether a module must tell when it runs."""
        return True

    def _hook(self, module: nn.Module, name: str, expected: bool) -> Frame:
        frame = frame_of(module, name, self.layers)
        self._regions.know(module, name, frame.kind)
        counts = expected and frame.kind not in (None, "never")
        if counts and selects(name, self.layers, self.exclude):
            self.expected[name] = "it did not run"
        if self.needs_frame(module, frame):
            teller = Teller(
                module,
                frame,
                self._frames,
                self._paddings,
                self._sources,
                self._whole_output,
                self.in_step,
            )
            self._hooks[module] = ModuleHooks(module, teller.enter, teller.leave)
        return frame

    def _whole_output(self, frame: Frame, source: Any, output: Any) -> Any:
        assert frame.kind is not None
        if isinstance(output, (tuple, list)):
            return self._first_of_whole(frame, source, output)
        if torch.compiler.is_compiling():
            return self._site(frame.name, frame.kind, output, source, "act", certain=True)
        # A hook runs while the mode is on: what counting calls is none of the model's functions.
        with torch._C.DisableTorchFunction():
            return self._site(frame.name, frame.kind, output, source, "act", certain=True)

    def _first_of_whole(self, frame: Frame, source: Any, output: Any) -> Any:
        """Count the first tensor of what a module returns, as in an LSTM's or a spiking layer's."""
        place = next((i for i, item in enumerate(output) if isinstance(item, Tensor)), None)
        if place is None:
            return output
        first = self._whole_output(frame, source, output[place])
        if first is output[place]:
            return output
        items = [*output[:place], first, *output[place + 1 :]]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def conventional(output: Tensor) -> Axes:
    """Return the unit axes by PyTorch's convention: channels second for images, else the last."""
    return (1,) if output.ndim > 3 else (output.ndim - 1,)


def _alike(source: Any, output: Tensor) -> bool:
    return isinstance(source, Tensor) and source.shape == output.shape


keep_eager(SiteMode.__torch_function__, SiteMode._meet)
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


@contextmanager
def unobserved() -> Iterator[None]:
    """Have those who observe pause: what runs inside is our own, and no pass of the user's."""
    paused: list[SiteMode] = []
    try:
        # Torch can set aside the topmost mode only, and for one call.
        while isinstance(mode := _get_current_function_mode(), SiteMode):  # type: ignore[no-untyped-call]  # torch's
            _pop_mode()  # type: ignore[no-untyped-call]  # torch's
            paused.append(mode)
            mode.pause()
        yield
    finally:
        for mode in reversed(paused):
            mode.resume()
            _push_mode(mode)  # type: ignore[no-untyped-call]  # torch's
