"""A signature: the function that is served, its inputs, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError

_AT_ONCE = 64


@dataclass(frozen=True)
class Signature:
    """What a SavedModel serves under one name.

    Attributes:
        function: keyword tensors by input name to a dict of tensors by output name, in graph ops alone.
            Every output keeps the batch as its first axis.
        inputs: name to `tf.TensorSpec`, with None as the batch.
        variables: the Keras variables that the function reads.
        resources: what else it holds: lookup tables, tokenizers.
        check: raises a `UserError` for rows that make no sense, before they reach the graph.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    variables: Sequence[Any] = ()
    resources: Sequence[Any] = ()
    check: Callable[[Sequence[Mapping[str, Any]]], None] | None = field(default=None)

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Calls the function on rows of plain Python values and returns a dict of them a row."""
        if self.check:
            self.check(rows)
        results: list[dict[str, Any]] = []
        for begin in range(0, len(rows), _AT_ONCE):
            outputs = self(stack(rows[begin : begin + _AT_ONCE], self.inputs))
            for index in range(len(rows[begin : begin + _AT_ONCE])):
                results.append({name: plain(value[index]) for name, value in outputs.items()})
        return results

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calls the function on a batch of arrays."""
        tensors = {name: tf.constant(arrays[name], spec.dtype) for name, spec in self.inputs.items()}
        return {name: value.numpy() for name, value in self.function(**tensors).items()}


def text_input() -> dict[str, tf.TensorSpec]:
    """Returns the inputs of a signature that takes texts: `text` string (n,)."""
    return {"text": tf.TensorSpec([None], tf.string)}


def stack(rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    """Returns an array an input, with a row each."""
    arrays = {}
    for name, spec in inputs.items():
        values = [row[name] for row in rows]
        if spec.dtype == tf.string:
            arrays[name] = np.array([v if isinstance(v, bytes) else v.encode() for v in values], object)
        else:
            arrays[name] = _numbers(name, [_read(value, spec) for value in values], spec)
    return arrays


def _read(value: Any, spec: tf.TensorSpec) -> Any:
    """Reads an image from its file, where an input takes images and is given a path."""
    if not isinstance(value, str) or spec.shape.rank not in (3, 4):
        return value
    from karpa_tf.data.images import read_image

    grey = spec.shape.rank == 3
    image = read_image(value, int(spec.shape[1]), 1 if grey else int(spec.shape[3]))
    return image[..., 0] if grey else image


def _numbers(name: str, values: list[Any], spec: tf.TensorSpec) -> np.ndarray:
    shape = ", ".join("n" if size is None else str(size) for size in spec.shape)
    try:
        array = np.array(values, spec.dtype.as_numpy_dtype)
    except (ValueError, TypeError):
        raise UserError(
            f"{name} must be {spec.dtype.name} [{shape}]. Received: {str(values[0])[:80]}."
        ) from None
    if not spec.shape.is_compatible_with(array.shape):
        raise UserError(f"{name} must be {spec.dtype.name} [{shape}]. Received: shape {list(array.shape)}.")
    return array


def plain(value: Any) -> Any:
    """Returns a NumPy value as JSON can hold it."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value
