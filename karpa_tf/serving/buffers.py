"""Memory for large tensors, which must not be copied while Python's lock is held.

Memory that is new costs a page fault each 4 KB at its first touch: 19 MB took 25 ms to be filled with zeros,
and 45 ms in `tf.constant`, and no other thread of the process ran meanwhile. What is read by the system
straight into such memory, and taken by TensorFlow where it lies, holds the lock for no time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

# Of addresses that TensorFlow takes without a copy of its own.
_ALIGNMENT = 64
# Of glibc's mallopt(3): the size from which memory is mapped anew each time, and how much may lie free.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30


def keep_freed() -> None:
    """Has freed memory used again: gRPC copies a large message with Python's lock held, into new memory."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def empty(size: int) -> memoryview:
    """Returns bytes that nobody has touched, at an address that TensorFlow takes as it is."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size].data


def in_place(array: np.ndarray) -> np.ndarray:
    """Returns the array itself where TensorFlow can take it as it is, or else a copy that it can."""
    if array.flags.c_contiguous and array.flags.writeable and not array.ctypes.data % _ALIGNMENT:
        return array
    copy: np.ndarray[Any, Any] = np.frombuffer(empty(array.nbytes), array.dtype).reshape(array.shape)
    np.copyto(copy, array)  # without Python's lock
    return copy
