"""What a request asks, read from its bytes: pure functions, in time proportional to these bytes.

Small requests are read in the event loop, all others by a process of its own (`readers`), with these same
functions. So this imports no TensorFlow; its protos alone are enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import classification_pb2, inference_pb2, predict_pb2, regression_pb2

from karpa_tf.serving import examples, json_tensors, proto_tensors, tensor_types
from karpa_tf.serving.examples import Limits
from karpa_tf.serving.json_tensors import Arrays, Spec
from karpa_tf.serving.refusal import Refusal, invalid

# By name the inputs of a signature, and those of them that have a default.
Signatures = Mapping[str, tuple[Mapping[str, Spec], Collection[str]]]

# Bytes up to which a request is read where it arrives; it takes a millisecond or two at most.
SMALL = 1 << 14
# Bytes of tensors that any message may ask for, by lists that are repeated.
_LARGEST_FROM_LITTLE = 1 << 24
# Strings that are counted in one step.
_STEP = 1 << 12
# TensorFlow Serving takes gzip under both names, HTTP has deflate as well.
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

MESSAGES: dict[str, Any] = {
    "predict": predict_pb2.PredictRequest,
    "classify": classification_pb2.ClassificationRequest,
    "regress": regression_pb2.RegressionRequest,
    "multi_inference": inference_pb2.MultiInferenceRequest,
}


@dataclass
class Question:
    """A request that has been read.

    Attributes:
        arrays: its tensors by name; of examples one, `inputs`.
        signature: the name it gives, "" for the default one. REST.
        by_rows: whether it came in rows. REST.
        message: what is left of gRPC's message without its tensors or examples.
        size: bytes of its tensors, where another process has read it.
    """

    arrays: Arrays
    signature: str = ""
    by_rows: bool = True
    message: Message | None = field(default=None)
    size: int = 0


def is_encoded(encoding: str) -> bool:
    """Whether a body has to be unpacked.

    Raises:
        Refusal: in a way that this server does not read.
    """
    if encoding.strip().lower() in ("", "identity"):
        return False
    if encoding.strip().lower() not in _ENCODINGS:
        raise invalid(f"A body may be encoded as {', '.join(_ENCODINGS)}. Received: {encoding[:40]}.")
    return True


def read_rest(
    body: bytes, encoding: str, api: str, model: str, signatures: Signatures, limits: Limits
) -> Question:
    """Reads the body of a predict, classify or regress request.

    Args:
        body: as it came.
        encoding: its Content-Encoding.
        api: predict, classify or regress.
        model: the model's name, for a sentence.
        signatures: its signatures.
        limits: what it may bring.

    Raises:
        Refusal: it is not what the signature takes.
    """
    if is_encoded(encoding):
        body = _unpacked(body, encoding, limits.bytes)
    parsed = json_tensors.parse(body)
    name = signature_name(parsed)
    if (name or "serving_default") not in signatures:
        raise no_signature(model, name, signatures)
    inputs, optional = signatures[name or "serving_default"]
    if api == "predict":
        arrays, by_rows = json_tensors.to_arrays(parsed, inputs, limits.rows, optional)
        return Question(arrays, name, by_rows)
    given = examples.from_json(parsed, limits.rows)
    examples.check_signature(inputs)
    return Question(examples.to_arrays(given, limits), name)


def signature_name(body: Mapping[str, Any]) -> str:
    """Returns the signature that a body names, "" for the default one."""
    name = body.get("signature_name", "")
    if type(name) is not str:
        raise invalid('"signature_name" must be a string.')
    return name


def no_signature(model: str, name: str, known: Mapping[str, Any]) -> Refusal:
    """Returns the refusal of a signature that is not there."""
    return Refusal(
        "FAILED_PRECONDITION",
        f'Model {model} has no signature "{(name or "serving_default")[:100]}"; it has {sorted(known)}.',
    )


def too_large(limit: int, size: int) -> Refusal:
    """Returns the refusal of a body that is too large."""
    return Refusal(
        "RESOURCE_EXHAUSTED",
        f"A body may have {limit} bytes; send fewer rows at once. Received: {size} or more.",
    )


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    broken = invalid("The body is broken: it ended early, or is not encoded as its headers say.")
    bits = _ENCODINGS[encoding.strip().lower()]
    if bits == 15 and body and body[0] & 15 != 8:
        bits = -15  # deflate without its header, as some clients send it
    unpacker = zlib.decompressobj(bits)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise broken from None
    if len(unpacked) > limit:
        raise too_large(limit, len(unpacked))
    if not unpacker.eof:
        raise broken
    return unpacked


def read_grpc(kind: str, message: bytes, limits: Limits) -> Question:
    """Reads a message of gRPC's PredictionService.

    Args:
        kind: a key of `MESSAGES`.
        message: its bytes.
        limits: what it may bring.

    Raises:
        Refusal: it is not such a message, or its tensors are wrong.
    """
    request = MESSAGES[kind]()
    try:
        request.ParseFromString(message)
    except DecodeError:
        raise Refusal("INTERNAL", "The message cannot be read as this call's request.") from None
    return taken_apart(kind, request, limits)


def taken_apart(kind: str, request: Any, limits: Limits) -> Question:
    """Returns a message's tensors or examples, and what is left without them."""
    if kind == "predict":
        # A tensor may be larger than its message, and there may be many of them.
        allowed = max(8 * request.ByteSize(), _LARGEST_FROM_LITTLE)
        arrays = {}
        for name in request.inputs:
            arrays[name] = proto_tensors.to_array(request.inputs[name], name)
            allowed -= arrays[name].nbytes
            if allowed < 0:
                raise Refusal("RESOURCE_EXHAUSTED", "The tensors take much more memory than the message.")
        request.ClearField("inputs")
    else:
        arrays = examples.to_arrays(request.input, limits)
        request.ClearField("input")
    return Question(arrays, message=request)


# --- Between two processes ------------------------------------------------------------------------


def pack(question: Question) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """Returns a header of plain values, and the bytes that belong to it.

    Raises:
        Refusal: a tensor is of a type that no request carries.
    """
    left = question.message.SerializeToString() if question.message is not None else b""
    blocks: list[bytes | memoryview] = [left]
    tensors = []
    for name, array in question.arrays.items():
        if tensor_types.of(array) is None:
            raise Refusal("UNIMPLEMENTED", f'"{name}" is {array.dtype.name}, which is not served.')
        if array.dtype == object:
            strings = array.ravel().tolist()
            lengths = np.empty(len(strings), np.int64)
            for begin in range(0, len(strings), _STEP):  # other threads get their turn in between
                lengths[begin : begin + _STEP] = [len(item) for item in strings[begin : begin + _STEP]]
            blocks += [lengths.tobytes(), b"".join(strings)]
        else:
            # Not copied, which would take Python's lock for as long.
            blocks += [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
        tensors.append([name, proto_tensors.type_name(array), list(array.shape)])
    header = {
        "signature": question.signature,
        "by_rows": question.by_rows,
        "tensors": tensors,
        "sizes": [len(block) for block in blocks],
    }
    return header, blocks


def unpack(header: Mapping[str, Any], blocks: Sequence[bytearray | memoryview], kind: str) -> Question:
    """Reverses `pack`."""
    message = MESSAGES[kind].FromString(bytes(blocks[0])) if kind in MESSAGES else None
    rest = iter(blocks[1:])
    arrays: Arrays = {}
    for name, dtype, shape in header["tensors"]:
        if dtype == "string":
            lengths = np.frombuffer(next(rest), np.int64).tolist()
            content = memoryview(next(rest))
            array = np.empty(len(lengths), object)
            place = 0
            for index, length in enumerate(lengths):
                array[index] = bytes(content[place : place + length])
                place += length
        else:
            array = np.frombuffer(next(rest), proto_tensors.numpy_type(dtype))
        arrays[name] = array.reshape(shape)
    return Question(arrays, header["signature"], header["by_rows"], message, sum(map(len, blocks)))
