"""Which modules are running: the stack of their frames, kept by a pair of hooks on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_deadunits.observation.activations import Kind, module_kind
from lightning_deadunits.observation.compiled import keep_eager
from lightning_deadunits.observation.padding import Padding, padding_of, reads_padding
from lightning_deadunits.observation.probing import probed_kind
from lightning_deadunits.observation.regions import in_region


class Frame(NamedTuple):
    """A module whose forward is running.

    ``kind`` is that of the activation which the module is, if it is one; ``whole`` says that its
    output counts, whatever it computes inside, and ``silent`` that nothing that its children
    compute counts.
    """

    name: str
    kind: Kind | None
    whole: bool
    silent: bool


ROOT = Frame("", None, False, False)
Stack = list[Frame]
Paddings = list[Padding]


def frame_of(module: nn.Module, name: str, layers: tuple[str, ...] | None) -> Frame:
    """Return the frame of a module.

    Args:
        module: The module.
        name: Its qualified name.
        layers: Patterns of layers to track; a module's very name has its output tracked.
    """
    ignored = isinstance(module, Metric)
    kind = module_kind(module)
    if kind is not None:
        own_forward = not type(module).forward.__module__.startswith("torch.nn.")
        return Frame(name, kind, own_forward, ignored)
    kind = probed_kind(module) if name else None
    if kind is not None:
        return Frame(name, kind, True, True)
    if name in (layers or ()):
        return Frame(name, "exact", True, ignored)  # asked for by its very name, whatever it is
    return Frame(name, None, False, ignored)


_FRAMELESS = {
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
}


def needs_frame(module: nn.Module, frame: Frame) -> bool:
    """Tell whether anything of interest can happen inside of a module, so that hooks pay.

    Torch's own layers compute no activation, unless one's own forward was put in place of theirs.
    """
    return frame.kind is not None or "forward" in vars(module) or type(module) not in _FRAMELESS


class Teller:
    """Tells that a module is running, by ``enter`` before its forward and ``leave`` afterwards.

    A copy of it, as in a copied or pickled model, does nothing: it belongs to another model.

    Args:
        module: The module.
        frame: What is told of it.
        stack: Where it is told.
        paddings: Where it is told what is padding, by a module that knows.
        sources: Where it is told what a module was given whose output counts as a whole.
        whole_output: Called with frame, input and output of such a module; what it returns takes
            the output's place.
        in_step: Tells whether what is meant is running; what others call meanwhile is silent.
    """

    def __init__(
        self,
        module: nn.Module,
        frame: Frame,
        stack: Stack,
        paddings: Paddings,
        sources: list[Any],
        whole_output: Callable[[Frame, Any, Any], Any],
        in_step: Callable[[], bool],
    ) -> None:
        self._active = True
        self._frame = frame
        self._silent = frame._replace(kind=None, whole=False, silent=True)
        self._stack = stack
        self._paddings = paddings if reads_padding(module) else None
        self._sources = sources if frame.whole else None
        self._whole_output = whole_output
        self._in_step = in_step

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Push the frame."""
        if not self._active or in_region():
            return
        stack = self._stack
        # What is compiled is not asked: the answer would be part of its graph.
        outside = not stack and not torch.compiler.is_compiling() and not self._in_step()
        stack.append(self._silent if outside or (stack and stack[-1].silent) else self._frame)
        if self._paddings is not None:
            self._paddings.append(padding_of(module, args, kwargs))
        if self._sources is not None:
            self._sources.append(args[0] if args and isinstance(args[0], Tensor) else None)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Pop the frame."""
        if not self._active or in_region():
            return None
        if self._paddings is not None:
            self._paddings.pop()
        source = self._sources.pop() if self._sources is not None else None
        whole = self._stack.pop().whole
        return self._whole_output(self._frame, source, output) if whole else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


def _inert() -> Teller:
    teller = Teller.__new__(Teller)
    teller._active = False
    return teller


keep_eager(Teller.enter, Teller.leave)
