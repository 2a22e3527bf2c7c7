"""What the exporter sees of rows: alone, and beside each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export import Signature, export_savedmodel, rowwise, text_input

NUMBERS = np.array([1.0, 3.0, -2.0, 0.5], np.float32)
TEXTS = np.array([b"a,b,c", b"d", b"e,,", b"f,g"], object)


def compare(
    run: Callable[[Any], Any],
    x: np.ndarray,
    open_inputs: dict[str, list[int]] | None = None,
    **open_outputs: list[int],
) -> dict[str, Any]:
    return rowwise.compare(lambda arrays: run(arrays["x"]), {"x": x}, open_inputs or {}, open_outputs, 1e-5)


def cells(x: np.ndarray) -> dict[str, np.ndarray]:
    rows = [text.split(b",") for text in x]
    width = max(map(len, rows))
    padded = np.array([row + [b""] * (width - len(row)) for row in rows], object).reshape(len(x), width)
    return {"cells": padded, "count": np.array([len(row) for row in rows], np.int32)}


@pytest.mark.parametrize(
    ("run", "x"),
    [
        (lambda x: {"y": np.exp(x) / np.exp(x).sum()}, NUMBERS),  # softmax over the batch
        (lambda x: {"y": np.sort(x)}, NUMBERS),
        (lambda x: {"y": np.argsort(np.argsort(x))}, NUMBERS),  # ranks
        (lambda x: {"y": (x - x.mean()) / (x.std() + 1e-3)}, NUMBERS),  # normalized within the batch
        (lambda x: {"y": np.cumsum(x)}, NUMBERS),
        (lambda x: {"y": x / np.abs(x).max()}, NUMBERS),
        (lambda x: {"y": np.full(len(x), len(x))}, NUMBERS),
        (lambda x: {"y": x * np.random.default_rng().random(len(x))}, NUMBERS),
        (lambda x: {"y": np.roll(x, 1)}, TEXTS),
    ],
)
def test_rows_that_depend_on_each_other_are_seen(run, x) -> None:
    seen = compare(run, x)
    assert not seen["rowwise"] and seen["differs"] and "example" in seen["differs"][0]
    assert "depend on each other" in seen["reason"]


def test_rows_that_do_not_are_seen_as_well() -> None:
    seen = compare(
        lambda x: {"y": x * 2, "odd": np.where(x > 0, np.nan, x), "id": x.astype(np.int64)}, NUMBERS
    )
    assert seen["rowwise"] and seen["lengths"] == {} and not seen["differs"]
    assert seen["examples"] == 4 and max(seen["batches"]) == 17
    # As near as the arithmetic allows.
    assert compare(lambda x: {"y": x * (1 + 1e-7 * len(x))}, NUMBERS)["rowwise"]


def test_one_example_shows_nothing() -> None:
    for x in (NUMBERS[:1], np.array([2.0, 2.0, 2.0], np.float32)):
        seen = compare(lambda x: {"y": x * 2}, x)
        assert not seen["rowwise"] and "shows nothing" in seen["reason"]


def test_the_output_that_says_a_rows_width_is_found() -> None:
    seen = compare(cells, TEXTS, cells=[1])
    assert seen["rowwise"] and seen["lengths"] == {"cells": "count"}
    # Without it padding looks like what is empty in a row: no error, but not joined.
    seen = compare(lambda x: {"cells": cells(x)["cells"]}, TEXTS, cells=[1])
    assert not seen["rowwise"] and not seen["differs"] and "no output says how wide" in seen["reason"]
    # A count that is not the width.
    seen = compare(lambda x: {**cells(x), "count": cells(x)["count"] + 1}, TEXTS, cells=[1])
    assert not seen["rowwise"]


def test_a_width_that_follows_from_the_values_is_not_taken_for_one_of_the_shapes() -> None:
    lengths = np.array([1, 5, 3], np.int32)
    seen = compare(lambda x: {"y": np.arange(x.max())[None] < x[:, None]}, lengths, y=[1])
    assert not seen["rowwise"]
    # All examples happen to have one width.
    x = np.array([[3, 0], [3, 1]], np.int32)
    seen = compare(lambda x: {"y": np.repeat(x[:, 1:], x[:, 0].max(), axis=1)}, x, y=[1])
    assert not seen["rowwise"] and 'the width of "y"' in seen["reason"]
    wide = np.arange(24, dtype=np.float32).reshape(2, 12)
    assert compare(lambda x: {"y": x + 1}, wide, {"x": [1]}, y=[1])["rowwise"]
    assert not compare(lambda x: {"y": x[:, :3]}, wide, {"x": [1]}, y=[1])["rowwise"]


def export(function: Any, to: Path, name: str, inputs: Any, examples: list[Any], **options: Any) -> Path:
    signatures = {"serving_default": Signature(function, inputs)}
    return export_savedmodel(signatures, to, name, examples=examples, **options)


def evidence(version: Path, name: str = "serving_default") -> Any:
    found = json.loads((version / "assets.extra" / "rowwise.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((version / "saved_model.pb").read_bytes()).hexdigest()
    assert found["format"] == 1 and found["saved_model_sha256"] == digest
    return found["signatures"][name]


def split(text: tf.Tensor) -> dict[str, tf.Tensor]:
    words = tf.strings.split(text, ",")
    return {"cells": words.to_tensor(""), "count": tf.cast(words.row_lengths(), tf.int32)}


def test_an_export_says_what_was_seen(tmp_path) -> None:
    """Three signatures: widths that an output gives, bytes that end in zero, and what is no number."""
    signatures = {
        "serving_default": Signature(split, text_input()),
        "bytes": Signature(
            lambda pixels: {"same": pixels + "\0\0", "size": tf.strings.length(pixels)},
            {"pixels": tf.TensorSpec([None], tf.string)},
        ),
        "numbers": Signature(
            lambda x: {"log": tf.math.log(x), "big": 1e6 * tf.sin(x)},
            {"x": tf.TensorSpec([None], tf.float32)},
        ),
    }
    rows = [
        {"text": "a,b,", "pixels": b"\x09\x00", "x": -1.0},
        {"text": "c", "pixels": b"\x01\x02", "x": 0.0},
        {"text": "d,e", "pixels": b"", "x": 1.0},
    ]
    version = export_savedmodel(signatures, tmp_path, "m", examples=rows)
    for name in signatures:
        seen = evidence(version, name)
        assert seen["rowwise"], seen
    assert evidence(version)["lengths"] == {"cells": "count"}


def test_an_export_whose_rows_depend_on_each_other_is_refused(tmp_path) -> None:
    inputs = {"score": tf.TensorSpec([None], tf.float32)}
    case: Any = (lambda score: {"p": tf.nn.softmax(score, axis=0)}, tmp_path, "m", inputs)
    rows = [{"score": 1.0}, {"score": 3.0}]
    with pytest.raises(UserError, match=r'example 0 answers "p" 1.0 alone.*With --force'):
        export(*case, rows)
    assert not list(tmp_path.iterdir())
    seen = evidence(export(*case, rows, force=True))
    assert not seen["rowwise"] and seen["differs"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "../outside"}, "without / and :"),
        ({"name": ""}, "without / and :"),
        ({"examples": []}, "At least one example"),
        ({"examples": [{"texts": "a"}]}, r"must have \['text'\]. Received: \['texts'\]"),
        (
            {"function": lambda text: {"w": tf.strings.split(text)}},
            '"w" of serving_default is a RaggedTensor',
        ),
        ({"function": lambda text: text}, "must return a dict"),
    ],
)
def test_a_wrong_argument_is_a_sentence(tmp_path, change, sentence) -> None:
    case = {"function": split, "name": "m", "examples": [{"text": "a"}]} | change
    with pytest.raises(UserError, match=sentence):
        export(case["function"], tmp_path, case["name"], text_input(), case["examples"])
    assert not list(tmp_path.iterdir())
