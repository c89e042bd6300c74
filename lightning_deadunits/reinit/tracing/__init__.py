"""Which weights make a unit and which read it, by intervention on the running model."""

from lightning_deadunits.reinit.tracing.search import trace
from lightning_deadunits.reinit.tracing.trace import Part, Role, Trace, UnitTrace

__all__ = ["Part", "Role", "Trace", "UnitTrace", "trace"]
