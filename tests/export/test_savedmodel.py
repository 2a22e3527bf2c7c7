"""The exporter, on a signature small enough to see through."""

from __future__ import annotations

import json
import os
import re
import runpy
import stat
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from karpa_tf.errors import UserError
from karpa_tf.export import verify
from karpa_tf.export.savedmodel import concrete_function, export_savedmodel, write_savedmodel
from karpa_tf.export.signature import Signature
from karpa_tf.serving.steadiness import is_steady

ROWS = [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}, {"x": [5.0, 6.0]}]


@pytest.fixture
def dense():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    return layer


def signature(layer, function=None) -> Signature:
    return Signature(
        function or (lambda x: {"y": layer(x)}),
        {"x": tf.TensorSpec([None, 2], tf.float32)},
        variables=layer.variables,
    )


def export(layer, to, function=None):
    signatures = {"serving_default": signature(layer, function)}
    return export_savedmodel(signatures, to, "dense", examples=ROWS, assets={"labels.txt": "a\nb\nc\n"})


def test_versions_rise_and_answer_alike(dense, tmp_path) -> None:
    first, second = export(dense, tmp_path), export(dense, tmp_path)
    assert [path.name for path in (first, second)] == ["1", "2"]
    (tmp_path / "dense" / "41").mkdir()
    assert export(dense, tmp_path).name == "42"
    loaded = tf.saved_model.load(str(first)).signatures["serving_default"]
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_allclose(loaded(x=tf.constant(x))["y"], dense(x), atol=1e-6)
    assert (first / "assets" / "labels.txt").read_text() == "a\nb\nc\n"
    assert sorted(p.name for p in (tmp_path / "dense").iterdir()) == ["1", "2", "41", "42"]


def fed_by_a_server(path, **arrays):
    """Runs `serving_default` as a server does: in C++, where nobody compares shapes with the signature's."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
        definition = graph.signature_def["serving_default"]
        options = config_pb2.CallableOptions(
            feed=[definition.inputs[name].name for name in arrays], fetch=[definition.outputs["y"].name]
        )
        (y,) = session._make_callable_from_options(options)(*arrays.values())
        return y


def test_the_graph_refuses_shapes_that_are_not_the_signatures(tmp_path) -> None:
    layer = keras.layers.Dense(3)
    layer.build((None, 6))
    images = Signature(
        # As a layer that flattens does: as many values are all that it asks for.
        lambda image, shift: {"y": layer(tf.reshape(image, [-1, 6])) + shift[:, None]},
        {"image": tf.TensorSpec([None, 2, 3], tf.float32), "shift": tf.TensorSpec([None], tf.float32)},
        variables=layer.variables,
    )
    write_savedmodel({"serving_default": images}, tmp_path / "1", {})
    image, shift = np.arange(12, dtype=np.float32).reshape(2, 2, 3), np.zeros(2, np.float32)
    expected = layer(image.reshape(2, 6)).numpy()
    np.testing.assert_allclose(fed_by_a_server(tmp_path / "1", image=image, shift=shift), expected, atol=1e-5)
    for shape in ([2, 6], [2, 3, 2], [4, 3], [2, 1, 6], [2, 2, 3, 1], [1, 2, 6], [12]):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected shape \[\?,2,3\]"):
            fed_by_a_server(tmp_path / "1", image=image.reshape(shape), shift=shift)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected shape \[\?\]"):
        fed_by_a_server(tmp_path / "1", image=image, shift=shift[:, None])


def test_looking_at_shapes_does_not_make_a_model_slow(dense) -> None:
    """It is among what a server runs without a thread."""
    assert is_steady(concrete_function(signature(dense)).graph.as_graph_def())


def test_the_check_calls_nothing_of_karpa_tf_or_keras(dense, tmp_path) -> None:
    path = export(dense, tmp_path)
    np.savez(tmp_path / "cases.npz", **{"serving_default|in|x": np.array([[1, 2]], np.float32)})
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['verify', {str(path)!r}, {str(tmp_path / 'cases.npz')!r}]\n"
        f"runpy.run_path({verify.__file__!r}, run_name='__main__')\n"
        "assert not [m for m in sys.modules if m.startswith(('karpa_tf', 'keras_hub'))]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["problems"] == ["serving_default returns ['y'], not []"]


def python_call(layer):
    def function(x):
        y = tf.py_function(lambda x: x * 2, [x], tf.float32)
        return {"y": tf.ensure_shape(y, [None, 2])}

    return function


def compiled(layer):
    return lambda x: {"y": tf.function(layer.__call__, jit_compile=True)(x)}


def loses_batch(layer):
    return lambda x: {"y": layer(x)[0]}


def random(layer):
    return lambda x: {"y": layer(x) + tf.random.uniform([])}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (python_call, "calls back into Python"),
        (compiled, "compiled by XLA"),
        (loses_batch, "loses the batch"),
        (random, "differs from the Python model's"),
    ],
)
def test_a_model_that_would_fail_on_the_server_is_not_exported(dense, tmp_path, wrong, sentence) -> None:
    with pytest.raises(UserError) as caught:
        export(dense, tmp_path, wrong(dense))
    assert sentence in str(caught.value)
    assert not (tmp_path / "dense").exists()


def test_a_full_disk_leaves_nothing(dense, tmp_path, monkeypatch) -> None:
    export(dense, tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(UserError, match="No space left on device; nothing was exported"):
        export(dense, tmp_path)
    assert [p.name for p in (tmp_path / "dense").iterdir()] == ["1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_no_write_access(dense, tmp_path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        export(dense, tmp_path)


def test_a_file_in_the_way(dense, tmp_path) -> None:
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        export(dense, tmp_path / "models")


def test_importing_the_check_hides_no_gpu(monkeypatch) -> None:
    """Only its own process computes without one; whoever trains and exports in one process keeps theirs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runpy.run_path(verify.__file__, run_name="imported")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a text", "Row 2 must be a dict with a value for \"x\". Received: 'a text'."),
        ({"y": 1.0}, 'Row 2 has no "x"; it must have "x". Received: y.'),
    ],
)
def test_a_row_that_is_none_is_a_sentence(row, sentence) -> None:
    signature = Signature(lambda x: {"y": 2 * x}, {"x": tf.TensorSpec([None], tf.float32)})
    with pytest.raises(UserError, match=re.escape(sentence)):
        signature.predict([{"x": 1.0}, row])
