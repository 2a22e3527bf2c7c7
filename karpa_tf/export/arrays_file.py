"""Arrays of examples and answers in a file of NumPy's, strings and all. Imports no TensorFlow."""

from __future__ import annotations

import numpy as np


def pack(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays that NumPy's files can hold: strings as their lengths and their bytes.

    NumPy's own strings are of one width, and lose zero bytes at their ends.
    """
    packed = {}
    for name, array in arrays.items():
        if array.dtype == object:
            strings = [_bytes(item) for item in array.ravel()]
            packed[f"{name}|lengths"] = np.array([len(item) for item in strings], np.int64).reshape(
                array.shape
            )
            packed[f"{name}|bytes"] = np.frombuffer(b"".join(strings), np.uint8)
        else:
            packed[name] = comparable(array)
    return packed


def unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reverses `pack`."""
    arrays = {name: array for name, array in packed.items() if name.count("|") == 2}
    for name, lengths in packed.items():
        if name.endswith("|lengths") and name.count("|") == 3:
            content = packed[name.replace("|lengths", "|bytes")].tobytes()
            ends = np.cumsum(lengths.ravel())
            strings = np.empty(lengths.size, object)
            strings[:] = [content[end - size : end] for end, size in zip(ends, lengths.flat, strict=True)]
            arrays[name.removesuffix("|lengths")] = strings.reshape(lengths.shape)
    return arrays


def comparable(array: np.ndarray) -> np.ndarray:
    """Types that NumPy itself does not have (bfloat16) as float32, which holds all their values."""
    return array if array.dtype.kind in "biufcOSU" else array.astype(np.float32)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
