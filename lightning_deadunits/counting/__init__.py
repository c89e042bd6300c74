"""Exact counts of zeros and non-finite values of one activation, on any device."""

from lightning_deadunits.counting.columns import Columns
from lightning_deadunits.counting.device import DeviceColumns
from lightning_deadunits.counting.values import count_columns, count_values, is_captured

__all__ = ["Columns", "DeviceColumns", "count_columns", "count_values", "is_captured"]
