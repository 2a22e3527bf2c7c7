"""TensorProto to NumPy and back, filled the way TensorFlow Serving fills it.

Linear in the bytes of the message: nothing is repeated or reserved before its size has been looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_pb2

from karpa_tf.serving import tensor_types
from karpa_tf.serving.json_tensors import LARGEST_STRINGS
from karpa_tf.serving.refusal import Refusal, invalid
from karpa_tf.serving.tensor_types import TensorType

# Values, and bytes, up to which a short list is repeated to fill a shape.
_LARGEST_REPEATED = 1 << 20
_LARGEST_REPEATED_BYTES = 1 << 24
# Values that are converted in one step; the other threads get their turn in between.
_STEP = 1 << 15
# Bytes that are copied at one time.
_PIECE = 1 << 18


def to_array(proto: tensor_pb2.TensorProto, name: str) -> np.ndarray:
    """Converts a tensor of a request.

    A list that is shorter than the shape repeats its last value, and an empty one stands for zeros.

    Args:
        proto: the tensor.
        name: the input it is for, to name it in a refusal.

    Raises:
        Refusal: its type, shape and values do not go together.
    """
    kind = tensor_types.BY_NUMBER.get(proto.dtype)
    if kind is None:
        raise invalid(f'"{name}" has the type {proto.dtype}, which is none that can be served.')
    if len(proto.tensor_shape.dim) > tensor_types.LARGEST_RANK:
        rank = len(proto.tensor_shape.dim)
        raise invalid(f'"{name}" may have {tensor_types.LARGEST_RANK} dimensions. Received: {rank}.')
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if any(size < 0 for size in shape):
        raise invalid(f'"{name}" must have a shape of whole numbers. Received: {shape}.')
    count = math.prod(shape)
    if kind.name == "string" and count > LARGEST_STRINGS:
        raise Refusal(
            "RESOURCE_EXHAUSTED", f'"{name}" may have {LARGEST_STRINGS} strings. Received: {count}.'
        )
    if proto.tensor_content:
        return _from_content(proto.tensor_content, kind, shape, name)
    given = getattr(proto, kind.field)
    values = np.frombuffer(given, kind.numpy) if type(given) is bytes else given
    # So that a few bytes cannot ask for all the memory there is.
    if count > max(len(values), 1) and _filled_bytes(values, count) > _LARGEST_REPEATED_BYTES:
        raise invalid(f'"{name}" of shape {shape} takes {count} values. Received: {len(values)}.')
    return _fill(_read(values, kind), count).reshape(shape)


def _from_content(content: bytes, kind: TensorType, shape: list[int], name: str) -> np.ndarray:
    count = math.prod(shape)
    if kind.name == "string":
        return _strings(content, count, name).reshape(shape)
    if len(content) != count * kind.numpy.itemsize:
        raise invalid(
            f'"{name}" of type {kind.name} and shape {shape} takes {count * kind.numpy.itemsize} bytes. '
            f"Received: {len(content)}."
        )
    return np.frombuffer(content, kind.numpy).reshape(shape)


def _strings(content: bytes, count: int, name: str) -> np.ndarray:
    """Reads strings as TensorFlow writes them into `tensor_content`: lengths as varints, then all bytes."""
    wrong = invalid(
        f'"{name}": tensor_content does not hold {count} strings as TensorFlow encodes them; '
        "put strings into string_val."
    )
    if count > len(content):  # a length takes a byte at least
        raise wrong
    lengths = []
    place = 0
    for _ in range(count):
        length = shift = 0
        while True:
            if place >= len(content) or shift > 28:
                raise wrong
            byte = content[place]
            place += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        lengths.append(length)
    if place + sum(lengths) != len(content):
        raise wrong
    array = np.empty(count, object)
    for index, length in enumerate(lengths):
        array[index] = content[place : place + length]
        place += length
    return array


def _filled_bytes(values: Any, count: int) -> int:
    """What the repeated values would take; more than allowed where there would be too many of them."""
    if count > _LARGEST_REPEATED:
        return _LARGEST_REPEATED_BYTES + 1
    last = values[-1] if len(values) else b""
    # A string costs TensorFlow 24 bytes, however short it is.
    return count * (24 + len(last)) if isinstance(last, bytes) else 0


def _read(values: Any, kind: TensorType) -> np.ndarray:
    if kind.name == "string":
        array = np.empty(len(values), object)
        array[:] = list(values)
        return array
    if isinstance(values, np.ndarray):
        return values
    if kind.field == "half_val":
        return np.array(values, np.uint16).view(kind.numpy)
    if kind.numpy.kind == "c":
        parts = np.array(values, np.float32 if kind.name == "complex64" else np.float64)
        return parts[: len(parts) // 2 * 2].view(kind.numpy)
    numbers = np.array(values, np.int64 if kind.numpy.itemsize < 4 else kind.numpy)
    bounds = np.iinfo(kind.numpy) if kind.numpy.kind in "iu" else None
    if bounds and len(numbers) and not bounds.min <= numbers.min() <= numbers.max() <= bounds.max:
        raise invalid(f"A number lies outside the range of {kind.name}, {bounds.min} to {bounds.max}.")
    return numbers.astype(kind.numpy, copy=False)


def _fill(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) >= count:
        return values[:count]
    if not len(values):
        return np.full(count, b"", object) if values.dtype == object else np.zeros(count, values.dtype)
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))])


def fill_proto(proto: tensor_pb2.TensorProto, array: np.ndarray, name: str) -> None:
    """Writes a tensor of an answer; its values are in the field of its type, where clients look.

    Args:
        proto: an empty one.
        array: the tensor.
        name: the output's, to name it in a refusal.

    Raises:
        Refusal: it has a type that no client could read.
    """
    kind = tensor_types.of(array)
    if kind is None:
        raise Refusal("UNIMPLEMENTED", f'The output "{name}" is {array.dtype.name}, which is not served.')
    proto.dtype = kind.number
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = array.ravel()
    if kind.field == "float8_val":
        proto.float8_val = flat.tobytes()
        return
    if kind.field == "half_val":
        flat = flat.view(np.uint16)
    elif kind.numpy.kind == "c":
        flat = flat.view(np.float32 if kind.name == "complex64" else np.float64)
    field = getattr(proto, kind.field)
    number = proto.DESCRIPTOR.fields_by_name[kind.field].number
    for begin in range(0, flat.size, _STEP):
        some = flat[begin : begin + _STEP]
        if some.dtype.kind == "f" and flat.size >= _STEP:
            # A packed field is the numbers' own bytes.
            content = some.astype(some.dtype.newbyteorder("<"), copy=False).tobytes()
            proto.MergeFromString(field_head(number, len(content)) + content)
        else:
            field.extend(some.tolist())


def serialized(array: np.ndarray, name: str) -> list[Any]:
    """Returns the bytes of the message that `fill_proto` would fill, in parts.

    Large tensors of floating-point numbers are their own bytes, and are not copied through a message.
    """
    proto = tensor_pb2.TensorProto()
    if array.size < _STEP or array.dtype not in (np.float32, np.float64):
        fill_proto(proto, array, name)
        return [proto.SerializeToString()]
    fill_proto(proto, array[:0], name)
    proto.tensor_shape.dim[0].size = len(array)
    kind = tensor_types.BY_NAME[array.dtype.name]
    number = proto.DESCRIPTOR.fields_by_name[kind.field].number
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    head = proto.SerializeToString() + field_head(number, array.nbytes)
    content = little.reshape(-1).view(np.uint8)
    # A join of nothing but bytes lets other threads run.
    return [head, *(content[begin : begin + _PIECE].tobytes() for begin in range(0, content.size, _PIECE))]


def field_head(number: int, size: int) -> bytes:
    """What stands before the bytes of a field of a message."""
    return bytes([number << 3 | 2]) + _varint(size)


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def type_name(array: np.ndarray) -> str:
    """Returns TensorFlow's name of an array's type."""
    return "string" if array.dtype == object else array.dtype.name


def numpy_type(name: str) -> np.dtype[Any]:
    """Returns what holds a type of TensorFlow's."""
    return tensor_types.BY_NAME[name].numpy
