"""What a tag of this plugin says about itself: its kind, its dead threshold, its schema version.

TensorBoard keeps the metadata of a tag's first event only, so nothing here may change during a
run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

PLUGIN_NAME = "dead_units"
SCHEMA_VERSION = 1
DEFAULT_DEAD_THRESHOLD = 1.0

# What a layer's name begins with where windows of training batches are judged beside a validation:
# the same units once more. The name of a module holds no slash.
WINDOW_PREFIX = "train/"

Kind = Literal["zero_rate", "reinit"]
TAG_PREFIXES: dict[Kind, str] = {"zero_rate": "dead_units/", "reinit": "dead_units_reinit/"}


class UnreadableTagError(ValueError):
    """What was logged under a tag is not what this version of the tab can read."""


@dataclass(frozen=True)
class TagMetadata:
    """What the writer said about a tag.

    Attributes:
        kind: ``"zero_rate"`` (rates per unit) or ``"reinit"`` (1 where a unit was re-initialised).
        dead_threshold: A unit with ``zero_rate >= dead_threshold`` is dead.
        made_by: Qualified names of the modules or parameters that make the layer's units; empty
            if unknown, as in event files of before.
    """

    kind: Kind
    dead_threshold: float = DEFAULT_DEAD_THRESHOLD
    made_by: tuple[str, ...] = ()


def encode(metadata: TagMetadata) -> bytes:
    """Serialise ``metadata`` for the ``content`` field of TensorBoard's plugin data.

    Example:
        >>> encode(TagMetadata("reinit"))
        b'{"version": 1, "kind": "reinit", "dead_threshold": 1.0}'
    """
    fields: dict[str, Any] = {"version": SCHEMA_VERSION, "kind": metadata.kind}
    fields["dead_threshold"] = float(metadata.dead_threshold)
    if metadata.made_by:
        fields["made_by"] = list(metadata.made_by)
    return json.dumps(fields).encode()


def decode(content: bytes) -> TagMetadata:
    """Parse what `encode` wrote.

    Raises:
        UnreadableTagError: If ``content`` is malformed or of another schema version.
    """
    fields = _fields(content)
    if fields.get("version") != SCHEMA_VERSION:
        raise UnreadableTagError(
            f"Written with schema version {fields.get('version')!r}, but this tab reads version "
            f"{SCHEMA_VERSION}: upgrade lightning-deadunits where TensorBoard runs."
        )
    kind, threshold = fields.get("kind"), fields.get("dead_threshold")
    if kind not in TAG_PREFIXES:
        raise UnreadableTagError(f"Expected kind to be one of {list(TAG_PREFIXES)}, got {kind!r}.")
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise UnreadableTagError(f"Expected dead_threshold to be a number, but got {threshold!r}.")
    made_by = fields.get("made_by", [])
    if not isinstance(made_by, list) or not all(isinstance(name, str) for name in made_by):
        raise UnreadableTagError(f"Expected made_by to be a list of names, but got {made_by!r}.")
    return TagMetadata(kind, float(threshold), tuple(made_by))


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:  # also UnicodeDecodeError
        raise UnreadableTagError("Its metadata is not JSON.") from error
    if not isinstance(fields, dict):
        raise UnreadableTagError("Its metadata is not a JSON object.")
    return fields
