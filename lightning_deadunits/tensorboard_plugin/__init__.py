"""The Dead Units tab of TensorBoard.

TensorBoard imports this module at its start, and an exception here would stop TensorBoard itself.
So it imports only what TensorBoard has imported already; the tab proper is loaded with a net below.
"""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin

__all__ = ["DeadUnitsPlugin"]

# The data server keeps 100 steps by default, the Python loader 10: too few to see when a unit died.
_DEFAULT_SAMPLES = 1000


class DeadUnitsPlugin(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard ships no types
    """The entry point: loads the tab, or what says why it cannot be loaded."""

    def fix_flags(self, flags: Any) -> None:
        """Let both loaders keep up to 1000 steps, unless the user chose for this plugin."""
        samples = getattr(flags, "samples_per_plugin", None)
        if samples is None or isinstance(samples, dict):
            flags.samples_per_plugin = {"dead_units": _DEFAULT_SAMPLES, **(samples or {})}

    def load(self, context: base_plugin.TBContext) -> Any:
        """Make the tab."""
        try:
            from lightning_deadunits.tensorboard_plugin.tab import DeadUnitsTab

            return DeadUnitsTab(context, _DEFAULT_SAMPLES)
        except Exception as error:  # whatever is broken, TensorBoard's other tabs must go on
            from lightning_deadunits.tensorboard_plugin.broken import BrokenTab

            return BrokenTab(f"{type(error).__name__}: {error}")
