"""JSON of TensorFlow Serving's REST API to NumPy and back.

Nested lists are checked and converted a level at a time with functions that loop in C, so that a batch of
images costs no Python statement a number. Everything takes time in proportion to the bytes. TensorFlow is not
imported.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from karpa_tf.serving import tensor_types
from karpa_tf.serving.refusal import Refusal, invalid

# What a tensor is on both sides of the server: TensorFlow's name of its type, and its shape with -1 for an
# axis of any length, or None where even the number of axes is open.
Spec = tuple[str, tuple[int, ...] | None]
Arrays = dict[str, np.ndarray]

# Those that come as JSON numbers, true and false, or strings.
_READ = frozenset(
    {"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool", "string"}
)
_LEAVES: dict[str, tuple[set[type], str]] = {
    "float": ({int, float}, "a number"),
    "int": ({int}, "a whole number"),
    "bool": ({bool}, "true or false"),
    "string": ({str, dict}, 'a string or {"b64": "..."}'),
}

# --- Reading --------------------------------------------------------------------------------------

# Lists and objects in a body. Each takes a hundred bytes of memory, so that a few packed bytes could ask for
# gigabytes. A batch of colour images has as many in the 32 MB that a body may have.
_LARGEST_NESTING = 1 << 22
# Strings in a tensor: TensorFlow takes them over one by one, and nothing else runs in this process meanwhile.
LARGEST_STRINGS = 1 << 18


def parse(body: bytes) -> dict[str, Any]:
    """Reads a body as TensorFlow Serving does.

    Beyond JSON that is: NaN and Infinity, a byte order mark, text after the object; of a key that comes
    twice the first counts.

    Raises:
        Refusal: it is not JSON, or not an object.
    """
    value: Any = None
    if body.count(b"[") + body.count(b"{") > _LARGEST_NESTING:
        raise Refusal("RESOURCE_EXHAUSTED", f"A body may hold {_LARGEST_NESTING} lists; send several.")
    # The fast reader takes the last of two equal keys, so it must not see any.
    if all(body.count(key) < 2 for key in (b'"instances"', b'"inputs"', b'"examples"', b'"signature_name"')):
        try:
            value = orjson.loads(body)
        except ValueError:
            value = _parse_leniently(body)
    else:
        value = _parse_leniently(body)
    if not isinstance(value, dict):
        raise invalid(f"The body must be a JSON object. Received: {_quote(value)}.")
    return value


# A string that does not end is one as well: each character is looked at once, whatever the body holds.
_STRING_OR_INF = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|\bInf\b', re.DOTALL)


def _parse_leniently(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8: byte {error.start} starts no character.") from None
    text = _STRING_OR_INF.sub(lambda found: "Infinity" if found[0] == "Inf" else found[0], text).lstrip()
    if not text:
        raise invalid('The body is empty; send a JSON object, for example {"instances": [...]}.')

    def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(reversed(pairs))

    def finite(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            raise invalid(f"The body holds a number that no double can hold: {digits[:40]}.")
        return number

    decoder = json.JSONDecoder(object_pairs_hook=first_wins, parse_float=finite)
    try:
        return decoder.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise invalid(f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise invalid("The body is not JSON that can be read: it is nested too deeply.") from None
    except ValueError:  # Python refuses whole numbers of thousands of digits
        raise invalid("The body holds a number that no double can hold.") from None


def to_arrays(
    body: Mapping[str, Any],
    inputs: Mapping[str, Spec],
    max_rows: int,
    optional: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], bool]:
    """Converts the tensors of a predict request.

    Args:
        body: the parsed body, with `instances` (a list of rows) or `inputs` (columns).
        inputs: the signature's inputs.
        max_rows: the most rows, counted before anything is converted.
        optional: inputs for which the signature has a default.

    Returns:
        An array an input that was given, and whether the request came in rows.

    Raises:
        Refusal: they do not fit.
    """
    if "instances" in body and "inputs" in body:
        raise invalid('The body must have one of "instances" (rows) and "inputs" (columns), not both.')
    if "instances" in body:
        return _rows(body["instances"], inputs, max_rows, optional), True
    if "inputs" in body:
        return _columns(body["inputs"], inputs, max_rows, optional), False
    raise invalid(f'The body must have "instances" (rows) or "inputs" (columns). Received: {_keys(body)}.')


def check_rows(rows: int, max_rows: int) -> None:
    """Refuses a request with too many rows."""
    if rows > max_rows:
        raise Refusal(
            "RESOURCE_EXHAUSTED", f"A request may have {max_rows} rows; send several. Received: {rows}."
        )


def _rows(
    rows: Any, inputs: Mapping[str, Spec], max_rows: int, optional: Collection[str]
) -> dict[str, np.ndarray]:
    if type(rows) is not list:
        raise invalid(f'"instances" must be a list of rows. Received: {_quote(rows)}.')
    check_rows(len(rows), max_rows)
    if not rows:
        raise invalid('"instances" is empty; send at least one row.')
    if type(rows[0]) is not dict or _is_b64(rows[0]):
        name = _only(inputs, "instances", optional)
        return {name: _array(rows, inputs[name], '"instances"')}
    # Of those with a default all rows give the same ones.
    names = set(inputs) - (set(optional) - rows[0].keys())
    for index, row in enumerate(rows):
        if type(row) is not dict:
            raise invalid(f"Row {index} must be an object like row 0. Received: {_quote(row)}.")
        if row.keys() != names:
            raise invalid(f"Row {index} must have the keys {sorted(names)}. Received: {_keys(row)}.")
    return {
        name: _array([row[name] for row in rows], inputs[name], f'"{name}"')
        for name in inputs
        if name in names
    }


def _columns(
    columns: Any, inputs: Mapping[str, Spec], max_rows: int, optional: Collection[str]
) -> dict[str, np.ndarray]:
    for column in columns.values() if type(columns) is dict else [columns]:
        if type(column) is list:
            check_rows(len(column), max_rows)
    if type(columns) is dict and not _is_b64(columns):
        missing = sorted(set(inputs) - set(columns) - set(optional))
        if missing:
            raise invalid(f'"inputs" must have {sorted(inputs)}. Missing: {missing}.')
        given = {name: spec for name, spec in inputs.items() if name in columns}
        return {name: _array(columns[name], spec, f'"{name}"') for name, spec in given.items()}
    name = _only(inputs, "inputs", optional)
    return {name: _array(columns, inputs[name], '"inputs"')}


def _only(inputs: Mapping[str, Spec], key: str, optional: Collection[str]) -> str:
    needed = [name for name in inputs if name not in optional] or list(inputs)
    if len(needed) != 1:
        raise invalid(f'"{key}" must name its values: the signature takes {sorted(inputs)}.')
    return needed[0]


def _array(value: Any, spec: Spec, what: str) -> np.ndarray:
    """Converts nested lists, whatever their shape: the graph decides which shapes it takes."""
    shape: list[int] = []
    level = [value]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list}:
            odd = next(item for item in level if type(item) is not list)
            raise invalid(f"{what} mixes lists with single values. Received: {_quote(odd)}.")
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise invalid(f"{what} has lists of different lengths side by side: {sorted(lengths)[:5]}.")
        shape.append(lengths.pop())
        if len(shape) > tensor_types.LARGEST_RANK:
            raise invalid(f"{what} may have {tensor_types.LARGEST_RANK} dimensions; it has more.")
        level = list(chain.from_iterable(level))
    return _leaves(level, spec[0], what).reshape(shape)


def not_carried(inputs: Mapping[str, Spec], outputs: Mapping[str, Spec]) -> str:
    """Returns a sentence that names a tensor which JSON cannot carry, "" if it carries all."""
    for name, (dtype, _) in inputs.items():
        if dtype not in _READ:
            return f'The input "{name}" is {dtype}, which JSON cannot carry; use gRPC.'
    for name, (dtype, _) in outputs.items():
        if not _is_writable(tensor_types.BY_NAME.get(dtype)):
            return f'The output "{name}" is {dtype}, which JSON cannot carry; use gRPC.'
    return ""


def _leaves(values: list[Any], dtype: str, what: str) -> np.ndarray:
    kind = dtype.rstrip("0123456789").removeprefix("u")
    if dtype not in _READ:
        raise Refusal("UNIMPLEMENTED", f"{what} is {dtype}, which JSON cannot carry; use gRPC.", 400)
    takes, wanted = _LEAVES[kind]
    if not set(map(type, values)) <= takes:
        odd = next(item for item in values if type(item) not in takes)
        raise invalid(f"{what} takes {dtype}: {wanted}. Received: {_quote(odd)}.")
    if dtype == "string" and len(values) > LARGEST_STRINGS:
        raise Refusal(
            "RESOURCE_EXHAUSTED", f"{what} may have {LARGEST_STRINGS} strings. Received: {len(values)}."
        )
    try:
        if dtype == "string":
            array = np.empty(len(values), object)
            array[:] = [to_bytes(item, what) for item in values]
            return array
        with np.errstate(over="ignore"):  # 1e300 is infinity as a float32
            return np.array(values, tensor_types.BY_NAME[dtype].numpy)
    except OverflowError:
        raise invalid(f"{what} takes {dtype}, and a number lies outside its range.") from None


def to_bytes(value: Any, what: str) -> bytes:
    """Reads a JSON string, or the bytes of `{"b64": "..."}`.

    Raises:
        Refusal: it is neither.
    """
    if type(value) is str:
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise invalid(f"{what} holds half of a surrogate pair, which is no character.") from None
    if not _is_b64(value):
        raise invalid(f'{what} takes a string or {{"b64": "..."}}. Received: {_quote(value)}.')
    text = value["b64"]
    try:
        # Whole, or with its padding left off.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f'{what} holds a "b64" that is not base64.') from None


def _is_b64(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and type(value.get("b64")) is str


def _quote(value: Any) -> str:
    """Writes the beginning of a value, and looks at no more of it."""
    if type(value) is str:
        value = value[:61]
    text = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        text += part
        if len(text) > 60:
            return text[:60] + "..."
    return text


def _keys(value: Mapping[str, Any]) -> list[str]:
    """The first of an object's keys, each cut to what a sentence can hold."""
    return sorted(key[:60] for key in list(value)[:20])


# --- Writing --------------------------------------------------------------------------------------

# Values that are written in one step; the other threads get their turn in between.
_STEP = 1 << 12


def encode_rows(outputs: Mapping[str, np.ndarray]) -> list[bytes]:
    """Writes `{"predictions": [...]}`: a value a row, or an object where there are several outputs.

    Returns:
        The parts of the text.

    Raises:
        Refusal: an output has no rows, or is of a type that JSON cannot carry.
    """
    sizes = {len(array) if array.ndim else None for array in outputs.values()}
    if len(sizes) != 1 or None in sizes:
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        raise invalid(f'The outputs {shapes} do not come in rows; ask with "inputs" instead of "instances".')
    rows = sizes.pop() or 0
    columns = {name: _writable(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        name, array = columns.popitem()
        return [b'{"predictions":', *_pieces(name, array), b"}"]
    return [b'{"predictions":', *_objects(columns, rows), b"}"]


def _objects(columns: Mapping[str, np.ndarray], rows: int) -> Iterator[bytes]:
    """Writes a list with an object a row."""
    values = sum(array.size for array in columns.values()) // max(rows, 1)
    step = max(_STEP // max(values, 1), 1)
    if values > _STEP:
        for row in range(rows):
            yield b"," if row else b"["
            for number, (name, array) in enumerate(columns.items()):
                yield (b"," if number else b"{") + orjson.dumps(name) + b":"
                yield from _pieces(name, array[row, ...])
            yield b"}"
    else:
        for begin in range(0, rows, step):
            lists = [_plain(name, array[begin : begin + step]) for name, array in columns.items()]
            some = [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
            yield b"," if begin else b"["
            yield _dump(some)[1:-1]
    yield b"]" if rows else b"[]"


def encode_columns(outputs: Mapping[str, np.ndarray]) -> list[bytes]:
    """Writes `{"outputs": ...}`: the tensor, or an object of them where there are several."""
    columns = {name: _writable(name, array) for name, array in outputs.items()}
    parts = [b'{"outputs":']
    for number, (name, array) in enumerate(columns.items()):
        if len(columns) > 1:
            parts.append((b"," if number else b"{") + orjson.dumps(name) + b":")
        parts += _pieces(name, array)
    return [*parts, b"}" if len(columns) == 1 else b"}}"]


def _pieces(name: str, array: np.ndarray) -> Iterator[bytes]:
    """Writes a tensor as nested lists, in pieces of some thousand values."""
    if array.size <= _STEP:
        yield _dump(_plain(name, array))
        return
    each = array.size // len(array)
    if each > _STEP:
        for number, part in enumerate(array):
            yield b"," if number else b"["
            yield from _pieces(name, part)
    else:
        step = max(_STEP // max(each, 1), 1)
        for begin in range(0, len(array), step):
            yield b"," if begin else b"["
            yield _dump(_plain(name, array[begin : begin + step]))[1:-1]
    yield b"]"


def _is_writable(kind: tensor_types.TensorType | None) -> bool:
    return kind is not None and kind.numpy.kind != "c"


def _writable(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an output in a type that JSON can carry."""
    kind = tensor_types.of(array)
    if kind is not None and (kind.name in ("string", "float32", "float64") or kind.numpy.kind in "biu"):
        return array
    if _is_writable(kind):  # floating-point numbers of 16 and 8 bits
        return array.astype(np.float32)
    raise Refusal(
        "UNIMPLEMENTED", f'The output "{name}" is {array.dtype.name}, which JSON cannot carry; use gRPC.', 400
    )


def _plain(name: str, array: np.ndarray) -> Any:
    """Returns what stands for some of an output: an array, or nested lists where an array will not do."""
    if array.dtype == object:
        texts = [_text(item, name) for item in array.ravel()]
        filled = np.empty(len(texts), object)
        filled[:] = texts
        return filled.reshape(array.shape).tolist()
    # orjson has no NaN and no infinity, and no scalar arrays.
    if array.ndim == 0 or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        return array.tolist()
    return np.ascontiguousarray(array)


def _text(value: bytes, name: str) -> Any:
    if not name.endswith("_bytes"):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass  # as base64, rather than JSON that nobody can read
    return {"b64": base64.b64encode(value).decode()}


def _dump(value: Any) -> bytes:
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return text if b"null" not in text else _dump_leniently(value)


def _dump_leniently(value: Any) -> bytes:
    """Writes NaN and Infinity by these names, as TensorFlow Serving does."""
    return json.dumps(value, ensure_ascii=False, default=_as_list).encode("utf-8", "surrogatepass")


def _as_list(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"no JSON for {type(value)}")


# Values, and bytes of strings, up to which an answer is written in the event loop.
_FEW_VALUES = 1 << 12
_FEW_BYTES = 1 << 16


def is_little(outputs: Mapping[str, np.ndarray], times: int = 1) -> bool:
    """Whether an answer is written at once, so that a thread is not worth its way; or `times` as much."""
    if sum(array.size for array in outputs.values()) > times * _FEW_VALUES:
        return False
    strings = (array for array in outputs.values() if array.dtype == object)
    return sum(sum(map(len, array.flat)) for array in strings) <= times * _FEW_BYTES


def rows_of(arrays: Sequence[np.ndarray]) -> int | None:
    """Returns the rows that all arrays have in common; None if they have none."""
    sizes = {array.shape[0] if array.ndim else None for array in arrays}
    return sizes.pop() if len(sizes) == 1 else None
