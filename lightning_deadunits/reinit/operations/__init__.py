"""What calls do with parameters: which channels they read and make, by which weights."""

from lightning_deadunits.reinit.operations.copies import Copies
from lightning_deadunits.reinit.operations.given import Given, tensors_of
from lightning_deadunits.reinit.operations.links import FACTORS, SUMS
from lightning_deadunits.reinit.operations.operation import Channel, Operation, Where
from lightning_deadunits.reinit.operations.table import PRODUCTS, describe

__all__ = [
    "FACTORS",
    "PRODUCTS",
    "SUMS",
    "Channel",
    "Copies",
    "Given",
    "Operation",
    "Where",
    "describe",
    "tensors_of",
]
