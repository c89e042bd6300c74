"""What calls do with parameters: which channels they read and make, by which weights."""

from lightning_deadunits.reinit.ops.elementwise import FACTORS, SUMS, Copies
from lightning_deadunits.reinit.ops.operation import Channel, Given, Operation, Where, tensors_of
from lightning_deadunits.reinit.ops.registry import PRODUCTS, describe

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
