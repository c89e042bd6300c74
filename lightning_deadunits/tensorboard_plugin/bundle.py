"""Several arrays in one binary answer: a matrix as JSON would be slow, and has no NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 8  # a typed array of a browser starts at a multiple of its item size


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Lay out a JSON header and arrays, all little-endian.

    The answer is a uint32 (the length of the JSON), the JSON, then the arrays, each at a multiple
    of 8 bytes from the start. The JSON is ``header`` plus ``arrays``: for each its ``dtype`` in
    NumPy's notation, ``shape``, and ``offset`` in bytes after the JSON and its padding.
    """
    little = {name: _little_endian(array) for name, array in arrays.items()}
    directory: dict[str, Any] = {}
    chunks: list[bytes] = []
    offset = 0
    for name, array in little.items():
        directory[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": offset}
        chunks.append(array.tobytes() + b"\0" * (-array.nbytes % _ALIGNMENT))
        offset += len(chunks[-1])
    text = json.dumps(nullable({**header, "arrays": directory}), allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(4, "little"), text, *chunks])


def nullable(value: Any) -> Any:
    """Replace what JSON cannot say (NaN, Infinity) by None, and NumPy's numbers by Python's.

    Example:
        >>> nullable({"rates": np.array([0.5, np.nan])})
        {'rates': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: nullable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return nullable(value.tolist())
    if isinstance(value, list | tuple):
        return [nullable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
