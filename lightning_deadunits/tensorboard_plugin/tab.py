"""The tab itself: what TensorBoard asks a plugin for."""

from __future__ import annotations

from typing import Any

from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin

from lightning_deadunits.tensorboard_plugin.answers import WsgiApp
from lightning_deadunits.tensorboard_plugin.metadata import PLUGIN_NAME
from lightning_deadunits.tensorboard_plugin.routes import data_routes, source_for
from lightning_deadunits.tensorboard_plugin.static_files import static_routes

KEEP_ALL = 0  # what TensorBoard's --samples_per_plugin calls "every step"
_EVERY_STEP = 1_000_000


class DeadUnitsTab(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """The Dead Units tab.

    Args:
        context: What TensorBoard hands to every plugin.
        default_samples: How many steps per tag TensorBoard keeps if the user did not say.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext, default_samples: int) -> None:
        self._provider = context.data_provider
        samples = (context.sampling_hints or {}).get(PLUGIN_NAME, default_samples)
        self._max_steps = _EVERY_STEP if samples == KEEP_ALL else samples

    def get_plugin_apps(self) -> dict[str, WsgiApp]:
        """Return the routes: exact paths, so that nothing else is ever served."""
        return {**static_routes(), **data_routes(source_for(self._provider, self._max_steps))}

    def is_active(self) -> bool:
        """Say whether any run has data of this plugin."""
        plugins = self._provider.list_plugins(RequestContext(), experiment_id="")
        return PLUGIN_NAME in (plugins or ())

    def frontend_metadata(self) -> Any:
        """Name the tab and the module that draws it."""
        return base_plugin.FrontendMetadata(
            es_module_path="/static/index.js", tab_name="Dead Units"
        )
