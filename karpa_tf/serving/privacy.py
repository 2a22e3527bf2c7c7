"""The opt-in log of inputs: personal numbers are taken out before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from karpa_tf.privacy import redact

# Characters of a string that are written; the log is no place for more.
_LONGEST = 10_000


def describe_inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what the log may hold of inputs: redacted strings; of numbers only type and shape."""
    described: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.dtype == object:
            described[name] = [_describe_string(item) for item in array.ravel()]
        else:
            described[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    return described


def _describe_string(value: bytes) -> Any:
    try:
        text = value.decode()
        if len(text) > _LONGEST:
            # Not in the middle of a number or an address.
            begin = text[:_LONGEST].rstrip("0123456789 ().-/+\t\r\n")
            begin = begin[: max(begin.rfind(" "), begin.rfind("\n")) + 1]
            return f"{redact(begin)}... ({len(text)} characters)"
        return redact(text)
    except UnicodeDecodeError:
        return {"bytes": len(value)}
