"""The types that a tensor can have on its way in or out: a row each. Imports no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

# NumPy's.
LARGEST_RANK = 64


@dataclass(frozen=True)
class TensorType:
    """A type.

    Attributes:
        name: TensorFlow's, which is NumPy's as well ("string" is NumPy's object).
        number: of the enumeration `DataType`.
        numpy: what holds it.
        field: of TensorProto, with the values where they are not one block of bytes.
    """

    name: str
    number: int
    numpy: np.dtype[Any]
    field: str


def _types(*rows: tuple[str, int, Any, str]) -> list[TensorType]:
    return [TensorType(name, number, np.dtype(kind), field) for name, number, kind, field in rows]


ALL = _types(
    ("float32", 1, np.float32, "float_val"),
    ("float64", 2, np.float64, "double_val"),
    ("int32", 3, np.int32, "int_val"),
    ("uint8", 4, np.uint8, "int_val"),
    ("int16", 5, np.int16, "int_val"),
    ("int8", 6, np.int8, "int_val"),
    ("string", 7, object, "string_val"),
    ("complex64", 8, np.complex64, "scomplex_val"),
    ("int64", 9, np.int64, "int64_val"),
    ("bool", 10, np.bool_, "bool_val"),
    ("bfloat16", 14, ml_dtypes.bfloat16, "half_val"),
    ("uint16", 17, np.uint16, "int_val"),
    ("complex128", 18, np.complex128, "dcomplex_val"),
    ("float16", 19, np.float16, "half_val"),
    ("uint32", 22, np.uint32, "uint32_val"),
    ("uint64", 23, np.uint64, "uint64_val"),
    ("float8_e5m2", 24, ml_dtypes.float8_e5m2, "float8_val"),
    ("float8_e4m3fn", 25, ml_dtypes.float8_e4m3fn, "float8_val"),
)
BY_NAME = {kind.name: kind for kind in ALL}
BY_NUMBER = {kind.number: kind for kind in ALL}


def of(array: np.ndarray) -> TensorType | None:
    """Returns the type of an array, or None if it is one that no request carries."""
    return BY_NAME.get("string" if array.dtype == object else array.dtype.name)
