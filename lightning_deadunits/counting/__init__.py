"""Exact counts of zeros and non-finite values of one activation, on any device."""

from lightning_deadunits.counting.columns import Columns
from lightning_deadunits.counting.values import count_columns, count_values

__all__ = ["Columns", "count_columns", "count_values"]
