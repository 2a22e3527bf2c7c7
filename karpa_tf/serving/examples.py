"""Classify and Regress: tf.Example in, classes with scores or numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from karpa_tf.serving.json_tensors import Arrays, Spec, check_rows, to_bytes
from karpa_tf.serving.refusal import Refusal, invalid


@dataclass(frozen=True)
class Limits:
    """What a request may bring: `bytes` of its body, after decompression, and `rows`."""

    bytes: int = 32 << 20
    rows: int = 16_384


def check_signature(inputs: Mapping[str, Spec]) -> None:
    """Refuses a signature that takes something else than examples."""
    if list(inputs) != ["inputs"] or inputs["inputs"][0] != "string":
        raise invalid(
            'This signature takes no examples: it would have one input, "inputs", of strings. '
            f"It has {sorted(inputs)}; use predict."
        )


def to_arrays(given: input_pb2.Input, limits: Limits) -> Arrays:
    """Serializes the examples of a request for the one input of a signature: string (n,).

    Raises:
        Refusal: there are none, or too many.
    """
    kind = given.WhichOneof("kind")
    messages: list[Any] = []
    if kind == "example_list":
        check_rows(len(given.example_list.examples), limits.rows)
        messages = list(given.example_list.examples)
    elif kind == "example_list_with_context":
        context = given.example_list_with_context.context
        rows = len(given.example_list_with_context.examples)
        check_rows(rows, limits.rows)
        size = context.ByteSize() * rows
        if size > limits.bytes:
            raise Refusal(
                "RESOURCE_EXHAUSTED",
                f"The context, which every example repeats, may take {limits.bytes} bytes. Received: {size}.",
            )
        for example in given.example_list_with_context.examples:
            merged = example_pb2.Example()
            merged.CopyFrom(context)
            for name, feature in example.features.feature.items():
                merged.features.feature[name].CopyFrom(feature)
            messages.append(merged)
    if not messages:
        raise invalid("The request has no examples.")
    array = np.empty(len(messages), object)
    array[:] = [message.SerializeToString() for message in messages]
    return {"inputs": array}


def from_json(body: Mapping[str, Any], max_rows: int) -> input_pb2.Input:
    """Reads the examples of a REST body: `{"examples": [{feature: value}], "context": {...}}`.

    Raises:
        Refusal: they are not that.
    """
    rows = body.get("examples")
    if type(rows) is not list or not rows:
        raise invalid('The body must have "examples", a list of at least one object of features.')
    check_rows(len(rows), max_rows)
    given = input_pb2.Input()
    if "context" in body:
        target = given.example_list_with_context
        _add_features(target.context, body["context"], "context")
    else:
        target = given.example_list
    for index, row in enumerate(rows):
        _add_features(target.examples.add(), row, f"examples[{index}]")
    return given


def _add_features(example: example_pb2.Example, row: Any, what: str) -> None:
    if type(row) is not dict:
        raise invalid(f'"{what}" must be an object of features.')
    for name, value in row.items():
        feature = example.features.feature[name]
        values = value if type(value) is list else [value]
        kinds = set(map(type, values))
        try:
            if kinds <= {bool}:
                feature.int64_list.value.extend(map(int, values))
            elif kinds == {int}:
                feature.int64_list.value.extend(values)
            elif kinds <= {int, float}:
                feature.float_list.value.extend(values)
            elif kinds <= {str, dict}:
                feature.bytes_list.value.extend(to_bytes(item, f'"{name}"') for item in values)
            else:
                raise invalid(f'"{name}" of {what} must be numbers or strings, all of one kind.')
        except (ValueError, OverflowError):
            raise invalid(f'"{name}" of {what} holds a number outside the range of int64.') from None


def to_classifications(outputs: Arrays, rows: int) -> classification_pb2.ClassificationResult:
    """Makes the answer of Classify.

    Args:
        outputs: `classes` string (n, c), `scores` float32 (n, c), or one of them.
        rows: how many examples there were.

    Raises:
        Refusal: the signature returns neither, or not so many.
    """
    classes, scores = outputs.get("classes"), outputs.get("scores")
    given = [array for array in (classes, scores) if array is not None]
    if not given:
        raise invalid(f'Classify takes a signature with "classes" or "scores". It has {sorted(outputs)}.')
    if any(array.ndim != 2 or len(array) != rows or array.shape != given[0].shape for array in given):
        raise invalid(f"The signature returns {[list(array.shape) for array in given]} for {rows} examples.")
    result = classification_pb2.ClassificationResult()
    for row in range(rows):
        target = result.classifications.add()
        for column in range(given[0].shape[1]):
            entry = target.classes.add()
            if classes is not None:
                entry.label = classes[row, column].decode("utf-8", errors="replace")
            if scores is not None:
                entry.score = scores[row, column]
    return result


def to_regressions(outputs: Arrays, rows: int) -> regression_pb2.RegressionResult:
    """Makes the answer of Regress.

    Args:
        outputs: `outputs` float32 (n,) or (n, 1).
        rows: how many examples there were.

    Raises:
        Refusal: the signature returns something else.
    """
    if list(outputs) != ["outputs"]:
        raise invalid(f'Regress takes a signature with one output, "outputs". It has {sorted(outputs)}.')
    values = outputs["outputs"]
    if values.size != rows or values.dtype.kind != "f":
        raise invalid(f"The signature returns {values.dtype} {list(values.shape)} for {rows} examples.")
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result
