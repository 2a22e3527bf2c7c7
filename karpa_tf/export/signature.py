"""A signature: the function that is served, its inputs, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine

# The file in a SavedModel's assets.extra that has the `shown` of its signatures.
SHOWN = "shown.json"
# Beside it: what predictions of an export cost where it was made.
COST = "cost.json"

_AT_ONCE = 64


@dataclass(frozen=True, repr=False)
class Signature(InALine):
    """What a SavedModel serves under one name.

    Attributes:
        function: keyword tensors by input name to a dict of tensors by output name, in graph ops alone.
            Every output keeps the batch as its first axis.
        inputs: name to `tf.TensorSpec`, with None as the batch.
        variables: the Keras variables that the function reads.
        resources: what else it holds: lookup tables, tokenizers.
        check: given the number of a row and the row, raises a `UserError` for one that makes no sense.
        names: the classes, in the order of the output `probabilities`; or by output, as
            `{"intents_probabilities": [...]}`.
        scales: by name of an output the size that its numbers are compared by, where those of the examples of
            an export are smaller: a difference of probabilities may be nearly 0 for all of them.
        shown: how outputs read in a terminal: a name, or several in one string, lists that are to stand side
            by side, as `"tokens tags scores"`; `""` in the first list is padding. Of a label and its
            probabilities the largest one is shown. A title may come first, as `"intents: intents_label"`.
            Empty: every output.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    variables: Sequence[Any] = ()
    resources: Sequence[Any] = ()
    check: Callable[[int, Mapping[str, Any]], None] | None = None
    names: Sequence[str] | Mapping[str, Sequence[str]] = ()
    shown: Sequence[str] = ()
    scales: Mapping[str, float] = field(default_factory=dict)

    def _check_names(self, number: int, row: Any) -> None:
        wanted = ", ".join(f'"{name}"' for name in self.inputs)
        if not isinstance(row, Mapping):
            raise UserError(
                f"Row {number} must be a dict with a value for {wanted}. Received: {str(row)[:80]!r}."
            )
        missing = [name for name in self.inputs if row and name not in row]
        if missing:
            raise UserError(
                f'Row {number} has no "{missing[0]}"; it must have {wanted}. '
                f"Received: {', '.join(map(str, row))}."
            )

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        broken: Literal["stop", "skip"] = "stop",
        read: Callable[[Any, tf.TensorSpec], Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Calls the function on rows of plain Python values and returns a dict of them a row.

        Args:
            rows: a value for each input. An empty row gets an empty answer.
            broken: `skip` gives a row that `read` refuses `{"error": reason}` and answers the others.
            read: makes of a row's value, e.g. the path of an image's file, what its input takes.

        Raises:
            UserError: a row makes no sense, `read` refuses one, or all of them.
        """
        for number, row in enumerate(rows, 1):
            self._check_names(number, row)
            if row and self.check:
                self.check(number, row)
        results: dict[int, dict[str, Any]] = {}
        answered = 0
        for begin in range(0, len(rows), _AT_ONCE):
            usable: dict[int, dict[str, Any]] = {}
            for number, row in enumerate(rows[begin : begin + _AT_ONCE], begin + 1):
                results[number] = {}
                if row:
                    try:
                        usable[number] = {
                            name: read(row[name], spec) if read else row[name]
                            for name, spec in self.inputs.items()
                        }
                    except UserError as error:
                        if broken == "stop":
                            raise
                        results[number] = {"error": str(error)}
            if usable:
                outputs = self(stack(list(usable.values()), self.inputs, list(usable)))
                for index, number in enumerate(usable):
                    results[number] = {name: plain(value[index]) for name, value in outputs.items()}
            answered += len(usable)
        reasons = [] if answered else [result["error"] for result in results.values() if result]
        if reasons:
            every = f"None of {len(reasons)} rows can be read: " if len(reasons) > 1 else ""
            raise UserError(every + reasons[0])
        return list(results.values())

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calls the function on a batch of arrays."""
        tensors = {name: tf.constant(arrays[name], spec.dtype) for name, spec in self.inputs.items()}
        return {name: value.numpy() for name, value in self.function(**tensors).items()}


def text_input() -> dict[str, tf.TensorSpec]:
    """Returns the inputs of a signature that takes texts: `text` string (n,)."""
    return {"text": tf.TensorSpec([None], tf.string)}


def stack(
    rows: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, tf.TensorSpec],
    numbers: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Returns an array an input, with a row each.

    Args:
        rows: a value for each input.
        inputs: of the signature.
        numbers: of the rows, for people; from 1 by default.
    """
    arrays = {}
    for name, spec in inputs.items():
        values = [row[name] for row in rows]
        if spec.dtype == tf.string:
            if spec.shape.rank == 2:
                values = _padded(name, values, numbers or range(1, len(rows) + 1))
            arrays[name] = np.array([_bytes(value) for value in values], object)
        else:
            arrays[name] = _numbers(name, values, spec, numbers or range(1, len(rows) + 1))
    return arrays


def _numbers(name: str, values: list[Any], spec: tf.TensorSpec, numbers: Sequence[int]) -> np.ndarray:
    array, _ = _as_spec(values, spec)
    if array is not None:
        return array
    shape = ", ".join("n" if size is None else str(size) for size in spec.shape)
    for number, value in zip(numbers, values, strict=True):
        alone, received = _as_spec([value], spec)
        if alone is None:
            raise UserError(
                f"Row {number}: {name} must be {spec.dtype.name} [{shape}]. Received: {received}."
            )
    raise UserError(f"{name} must be {spec.dtype.name} [{shape}], of one shape for all rows.")


def _as_spec(values: list[Any], spec: tf.TensorSpec) -> tuple[np.ndarray | None, str]:
    """Returns values as an array, or None and what was received; nothing is rounded or left out for it."""
    kinds = "fiub" if spec.dtype.is_floating else "iub" if spec.dtype.is_integer else "b"
    try:
        given = np.array(values)
    except ValueError:  # rows of several lengths
        return None, str(values[0])[:80]
    if not given.size:
        kinds += given.dtype.kind
    if given.dtype.kind not in kinds:
        return None, str(values[0])[:80]
    if not spec.shape.is_compatible_with(given.shape):
        return None, f"shape {list(given.shape)}"
    array = given.astype(spec.dtype.as_numpy_dtype)
    if spec.dtype.is_integer and not np.array_equal(array, given):
        return None, str(values[0])[:80]
    return array, ""


def _padded(name: str, values: list[Any], numbers: Sequence[int]) -> list[list[str]]:
    """Returns lists of texts in one length: "" is padding."""
    for number, value in zip(numbers, values, strict=True):
        if not isinstance(value, list) or not all(isinstance(text, (str, bytes)) for text in value):
            raise UserError(f"Row {number}: {name} must be a list of texts. Received: {str(value)[:80]}.")
    longest = max(map(len, values), default=0)
    return [[*value, *[""] * (longest - len(value))] for value in values]


def _bytes(value: Any) -> Any:
    """Encodes the texts in nested lists."""
    if isinstance(value, list):
        return [_bytes(item) for item in value]
    return value.encode() if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Returns a NumPy value as JSON can hold it."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value
