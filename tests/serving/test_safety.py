"""Graphs that could call Python or reach files are not loaded; every ordinary SavedModel is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

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


def registered_ops() -> list[Any]:
    """Every op of TensorFlow and TensorFlow Text, also those that `tf.raw_ops` does not list."""
    ops = op_def_pb2.OpList()
    ops.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return list(ops.op)


def test_every_op_has_been_reviewed() -> None:
    """A newer TensorFlow brings new ones: scripts/review_ops.py --write, and read what it adds."""
    reviews = safety.reviews()
    names = {op.name for op in registered_ops()}
    assert len(names) > 1500 and names >= {"CalibrationStatisticsSaver", "RpcServer", "DumpTensor"}
    assert not names - set(reviews)
    assert all(review == "yes" or review.startswith("no   ") for review in reviews.values())
    assert not [name for name, review in reviews.items() if "nobody has looked" in review]


# One op or more of each kind that reaches out.
REACHES_OUT = safety._names(
    """
    CalibrationStatisticsSaver RpcServer RpcClient RpcCall DumpTensor Skipgram ReadFile WriteFile
    MatchingFiles ImmutableConst FileSystemSetConfiguration LoadAndRemapMatrix GenerateVocabRemapping
    TextLineReaderV2 RecordInput TFRecordDatasetV2 DataServiceDatasetV4 CacheDatasetV2
    SnapshotDatasetV2 SaveDatasetV2 LoadDataset SqlDataset PyFunc EagerPyFunc PyFuncStateless
    CreateSummaryFileWriter WriteGraphSummary ImportEvent DebugIdentityV3 Copy CollectiveReduceV2
    RemoteCall _Send _Recv Send Recv _HostSend XlaCallModule XlaCustomCallV2 XlaHostCompute
    MlirPassthroughOp Abort SleepOp FIFOQueueV2 QueueDequeueV2 Stage MapPeek BarrierTakeMany
    StackPopV2 BatchFunction Batch TakeManySparseFromTensorsMap GetSessionTensor MutexLock Empty
    TemporaryVariable Restore SaveV2 InitializeTableFromTextFileV2 IteratorGetNext OneShotIterator
    StoreMinibatchStatisticsInFdo DTensorRestoreV2
    """
)


@pytest.mark.parametrize("name", sorted(REACHES_OUT))
def test_what_reaches_out_is_not_allowed(name: str) -> None:
    assert safety.reviews()[name].startswith("no   ")


def test_what_models_are_made_of_is_allowed() -> None:
    for name in ("MatMul", "While", "HashTableV2", "LookupTableFindV2", "ParseExampleV2", "VarHandleOp"):
        assert safety.reviews()[name] == "yes"


def test_attributes_of_allowed_ops_that_could_name_a_file_are_reviewed() -> None:
    telling = re.compile(r"file|path|dir(ectory)?$|url|source|stream|prefix|address|target")
    # A gradient's source is the name of a TensorArray.
    harmless = {"source"}
    reviews = safety.reviews()
    found = {
        (op.name, attribute.name)
        for op in registered_ops()
        for attribute in op.attr
        if reviews[op.name] == "yes"
        and attribute.type in ("string", "list(string)")
        and telling.search(attribute.name)
        and attribute.name not in harmless
    }
    assert found == set(safety.REVIEWED_ATTRIBUTES)


def graph_with(op: str, **attributes: bytes) -> Any:
    graph = meta_graph_pb2.MetaGraphDef()
    node = graph.graph_def.node.add(name="n", op=op)
    for name, value in attributes.items():
        node.attr[name].s = value
    return graph


@pytest.mark.parametrize(
    ("op", "attribute", "wrong", "right"),
    [
        ("FixedUnigramCandidateSampler", "vocab_file", b"/etc/passwd", b""),
        ("DecodeProtoV2", "descriptor_source", b"/etc/passwd", b"bytes://abc"),
        ("EncodeProto", "descriptor_source", b"file:///x", b"local://"),
        ("PrintV2", "output_stream", b"file:///tmp/x", b"stderr"),
    ],
)
def test_an_attribute_that_names_a_file_is_refused(tmp_path, op, attribute, wrong, right) -> None:
    safety.check(graph_with(op, **{attribute: right}), tmp_path)
    with pytest.raises(Refusal, match=rf"{op} \({attribute} names a file\)"):
        safety.check(graph_with(op, **{attribute: wrong}), tmp_path)


def test_an_unknown_op_is_refused(tmp_path) -> None:
    with pytest.raises(Refusal, match=r"CustomOpOfSomebody \(an op that is not on this server's list\)"):
        safety.check(graph_with("CustomOpOfSomebody"), tmp_path)
    # The name of a function of the graph is a call, and its nodes are looked at.
    graph = graph_with("mine")
    function = graph.graph_def.library.function.add()
    function.signature.name = "mine"
    function.node_def.add(name="a", op="Identity")
    safety.check(graph, tmp_path)
    function.node_def.add(name="b", op="ReadFile")
    with pytest.raises(Refusal, match="ReadFile"):
        safety.check(graph, tmp_path)
