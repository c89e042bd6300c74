"""Module hooks that come and go under the same ids, so that compiled graphs stay valid.

Dynamo guards on the ids of some hooks. A hook that is registered anew for every validation has a
new id every time, and would have the counting graph compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class ModuleHooks:
    """A pre-hook and a hook of one module, attached and detached as often as wanted.

    Args:
        module: The module.
        enter: Called as ``enter(module, args, kwargs)`` before the module's forward.
        leave: Called as ``leave(module, args, output)`` afterwards, also after an exception that
            the caller may catch, then with output None; what it returns takes the output's place.
    """

    def __init__(
        self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]
    ) -> None:
        before = module.register_forward_pre_hook(enter, with_kwargs=True)
        after = module.register_forward_hook(leave, always_call=True)
        self._entries: list[tuple[dict[int, Any], int, Any]] = [
            (module._forward_pre_hooks, before.id, enter),
            (module._forward_pre_hooks_with_kwargs, before.id, True),
            (module._forward_hooks, after.id, leave),
            (module._forward_hooks_always_called, after.id, True),
        ]

    def attach(self) -> None:
        """Put the hooks in place; harmless when they are."""
        for hooks, key, value in self._entries:
            hooks[key] = value

    def detach(self) -> None:
        """Take the hooks away; harmless when they are gone."""
        for hooks, key, _ in self._entries:
            hooks.pop(key, None)
