"""Find units of a neural network that never fire, show them, and give them a new life.

The public names are loaded on first use (PEP 562): TensorBoard imports this package to find the
plugin, and must not pay for torch and lightning, nor fail when one of them is broken.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_deadunits.callback import DeadUnitCallback
    from lightning_deadunits.metric import ZeroActivationRate
    from lightning_deadunits.reinit import ReinitConfig, ReinitReport, reinit_dead_units
    from lightning_deadunits.reporting.report import DeadUnitsReport, LayerReport
    from lightning_deadunits.scan import find_dead_units
    from lightning_deadunits.watch import watch_dead_units

__version__ = "0.1.0"

_HOME = {
    "DeadUnitCallback": "callback",
    "DeadUnitsReport": "reporting.report",
    "LayerReport": "reporting.report",
    "ReinitConfig": "reinit",
    "ReinitReport": "reinit",
    "ZeroActivationRate": "metric",
    "find_dead_units": "scan",
    "reinit_dead_units": "reinit",
    "watch_dead_units": "watch",
}

__all__ = [
    "DeadUnitCallback",
    "DeadUnitsReport",
    "LayerReport",
    "ReinitConfig",
    "ReinitReport",
    "ZeroActivationRate",
    "find_dead_units",
    "reinit_dead_units",
    "watch_dead_units",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        from lightning_deadunits.arguments import near

        hint = near(name, __all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
