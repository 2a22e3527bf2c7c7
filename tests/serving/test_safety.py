"""Graphs that could call Python or reach files are not loaded; every ordinary SavedModel is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from karpa_tf.serving import safety
from karpa_tf.serving.model import load_model
from karpa_tf.serving.refusal import Refusal

TEXTS = tf.TensorSpec([None], tf.string, "text")


def save(path: Path, function: Callable[..., dict[str, tf.Tensor]], **attributes: Any) -> Path:
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    signature = tf.function(function, input_signature=[TEXTS], autograph=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": signature})
    return path


def read(text: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"content": tf.map_fn(tf.io.read_file, text)}


def write(text: tf.Tensor) -> dict[str, tf.Tensor]:
    with tf.control_dependencies([tf.io.write_file(text[0], "x")]):
        return {"same": tf.identity(text)}


def match(text: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"files": tf.io.matching_files(text)}


def call_python(text: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"same": tf.ensure_shape(tf.py_function(lambda x: x, [text], tf.string), [None])}


def restore(text: tf.Tensor) -> dict[str, tf.Tensor]:
    return {
        "value": tf.raw_ops.RestoreV2(
            prefix=text[0], tensor_names=["v"], shape_and_slices=[""], dtypes=[tf.float32]
        )[0]
    }


def lines(text: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"lines": tf.data.TextLineDataset(text).reduce(tf.constant(""), lambda _, line: line)[None]}


def print_to_file(text: tf.Tensor) -> dict[str, tf.Tensor]:
    with tf.control_dependencies([tf.print(text, output_stream="file:///tmp/printed")]):
        return {"same": tf.identity(text)}


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (read, "ReadFile"),
        (write, "WriteFile"),
        (match, "MatchingFiles"),
        (call_python, "EagerPyFunc"),
        (restore, "RestoreV2"),
        (lines, "TextLineDataset"),
        (print_to_file, "PrintV2"),
    ],
)
def test_dangerous_graphs_are_refused(tmp_path, function, op: str) -> None:
    path = save(tmp_path / "1", function)
    with pytest.raises(Refusal, match=rf"the graph holds .*{op}.*--allow_unsafe_ops") as caught:
        load_model("m", 1, path)
    assert caught.value.code == "FAILED_PRECONDITION"


def test_they_are_loaded_where_that_is_allowed(tmp_path) -> None:
    (tmp_path / "file").write_text("inside")
    path = save(tmp_path / "1", read)
    model = load_model("m", 1, path, allow_unsafe_ops=True)
    texts = np.array([str(tmp_path / "file").encode()], object)
    assert model.signature("").run({"text": texts})["content"].tolist() == [b"inside"]


def test_a_function_that_no_signature_calls_counts_as_well(tmp_path) -> None:
    hidden = tf.function(tf.io.read_file, input_signature=[tf.TensorSpec([], tf.string)])
    path = save(tmp_path / "1", lambda text: {"same": tf.identity(text)}, hidden=hidden)
    with pytest.raises(Refusal, match="ReadFile"):
        load_model("m", 1, path)


def vocabulary_table(folder: Path) -> tf.lookup.StaticVocabularyTable:
    (folder / "vocabulary.txt").write_text("one\ntwo\n")
    initializer = tf.lookup.TextFileInitializer(
        tf.saved_model.Asset(str(folder / "vocabulary.txt")),
        *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
    )
    return tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets=1)


def test_variables_and_tables_of_assets_are_the_models_own(tmp_path) -> None:
    table = vocabulary_table(tmp_path)
    weight = tf.Variable(2, dtype=tf.int64)
    path = save(tmp_path / "1", lambda text: {"id": table.lookup(text) * weight}, table=table, weight=weight)
    (tmp_path / "vocabulary.txt").unlink()
    model = load_model("m", 1, path)
    texts = np.array([b"two", b"one", b"x"], object)
    assert model.signature("").run({"text": texts})["id"].tolist() == [2, 0, 4]
    held = {node.op for f in read_graph(path).graph_def.library.function for node in f.node_def}
    assert {"RestoreV2", "SaveV2", "InitializeTableFromTextFileV2"} <= held


def test_a_table_of_another_file_is_refused(tmp_path) -> None:
    table = vocabulary_table(tmp_path)
    path = save(tmp_path / "1", lambda text: {"id": table.lookup(text)}, table=table)
    graph = read_graph(path)
    graph.asset_file_def[0].filename = "../../../../../../etc/passwd"
    with pytest.raises(Refusal, match="leads out of the SavedModel"):
        safety.check(graph, path)
    # A table whose file is named in the graph itself, or comes with the request.
    for name in ("/etc/passwd", None):

        def fill(text, name=name):
            made = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
            tf.raw_ops.InitializeTableFromTextFileV2(
                table_handle=made, filename=name or text[0], key_index=-2, value_index=-1
            )
            return {
                "id": tf.raw_ops.LookupTableFindV2(
                    table_handle=made, keys=text, default_value=tf.constant(0, tf.int64)
                )
            }

        with pytest.raises(Refusal, match="InitializeTableFromTextFileV2"):
            load_model("m", 1, save(tmp_path / f"{name is None}", fill))


def read_graph(path: Path) -> Any:
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((path / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0]


def test_every_op_that_takes_a_path_is_known() -> None:
    """Of the ops of this TensorFlow, by the names of what they take."""
    telling = re.compile(
        r"file_?name|file_?pattern|shared_memory|(^|_)(paths?|dir|directory|prefix|address)$"
    )
    # Their paths and prefixes are no files.
    harmless = {"CTCBeamSearchDecoder", "SetStatsAggregatorDataset", "ExperimentalSetStatsAggregatorDataset"}
    found = set()
    for name in dir(tf.raw_ops):
        if not name.startswith("_"):
            takes = inspect.signature(getattr(tf.raw_ops, name)).parameters
            if any(telling.search(parameter) for parameter in takes):
                found.add(name)
    assert "ReadFile" in found and found - safety.FORBIDDEN_OPS <= harmless
