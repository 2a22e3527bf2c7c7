"""TensorProto to NumPy and back, filled the way TensorFlow Serving fills it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from karpa_tf.serving.refusal import invalid

# The field that holds the values of a type, where the tensor is not one block of bytes.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "string": "string_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
}


def to_array(proto: tensor_pb2.TensorProto, name: str) -> np.ndarray:
    """Converts a tensor of a request.

    A list that is shorter than the shape repeats its last value, and an empty one stands for zeros.

    Args:
        proto: the tensor.
        name: the input it is for, to name it in a refusal.

    Raises:
        Refusal: its type, shape and values do not go together.
    """
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        field = _FIELDS[dtype.name]
    except (TypeError, KeyError):
        raise invalid(f'"{name}" has the type {proto.dtype}, which is none that can be served.') from None
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if any(size < 0 for size in shape):
        raise invalid(f'"{name}" must have a shape of whole numbers. Received: {shape}.')
    count = math.prod(shape)
    values = getattr(proto, field)
    if proto.tensor_content and dtype != tf.string:
        if len(proto.tensor_content) != count * dtype.size:
            raise invalid(
                f'"{name}" of type {dtype.name} and shape {shape} takes {count * dtype.size} bytes. '
                f"Received: {len(proto.tensor_content)}."
            )
        return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(shape)
    # So that a few bytes cannot ask for all the memory there is.
    if count > max(len(values), 1) and count > _LARGEST_REPEATED:
        raise invalid(f'"{name}" of shape {shape} takes {count} values. Received: {len(values)}.')
    return _fill(_read(values, dtype), count).reshape(shape)


_LARGEST_REPEATED = 1 << 20


def _read(values: Any, dtype: tf.DType) -> np.ndarray:
    if dtype == tf.string:
        array = np.empty(len(values), object)
        array[:] = list(values)
        return array
    if dtype in (tf.float16, tf.bfloat16):
        return np.array(values, np.uint16).view(dtype.as_numpy_dtype)
    if dtype.is_complex:
        parts = np.array(values, dtype.real_dtype.as_numpy_dtype)
        return parts[: len(parts) // 2 * 2].view(dtype.as_numpy_dtype)
    numbers = np.array(values, np.int64 if dtype.size < 4 else dtype.as_numpy_dtype)
    bounds = np.iinfo(dtype.as_numpy_dtype) if dtype.is_integer else None
    if bounds and len(numbers) and not bounds.min <= numbers.min() <= numbers.max() <= bounds.max:
        raise invalid(f"A number lies outside the range of {dtype.name}, {bounds.min} to {bounds.max}.")
    return numbers.astype(dtype.as_numpy_dtype, copy=False)


def _fill(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) >= count:
        return values[:count]
    if not len(values):
        return np.full(count, b"", object) if values.dtype == object else np.zeros(count, values.dtype)
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))])


def to_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Converts a tensor of an answer; its values are in the field of its type, where clients look."""
    dtype = tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = array.ravel()
    if dtype in (tf.float16, tf.bfloat16):
        flat = flat.view(np.uint16)
    elif dtype.is_complex:
        flat = flat.view(dtype.real_dtype.as_numpy_dtype)
    getattr(proto, _FIELDS[dtype.name]).extend(flat.tolist())
    return proto


def type_name(array: np.ndarray) -> str:
    """Returns TensorFlow's name of an array's type."""
    return "string" if array.dtype == object else array.dtype.name
