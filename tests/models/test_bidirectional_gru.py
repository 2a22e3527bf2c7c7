"""Tests of the bidirectional GRU against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models.bidirectional_gru import BidirectionalGRU

BATCH, TIME, FEATURES, UNITS = 5, 9, 6, 7


def _inputs():
    return np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype("float32")


def _mask():
    return np.arange(TIME) < np.array([TIME, 1, 4, 8, 6])[:, None]


def _pair(dtype="float32"):
    keras.utils.set_random_seed(1)
    ours = BidirectionalGRU(UNITS, bias_initializer="random_normal", dtype=dtype)
    gru = keras.layers.GRU(UNITS, return_sequences=True, reset_after=True)
    theirs = keras.layers.Bidirectional(gru, merge_mode=None)
    ours.build((None, None, FEATURES))
    # The wrapper sets the outputs at padding to 0, where a GRU alone repeats its state.
    theirs.forward_layer.zero_output_for_mask = False
    theirs.backward_layer.zero_output_for_mask = False
    theirs.build((None, None, FEATURES))
    theirs.set_weights(ours.get_weights())
    return ours, theirs


def _value_and_gradients(layer, x, mask, **arguments):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, mask=mask, **arguments)
        # A loss whose gradient differs between positions and directions.
        weights = np.random.default_rng(2).normal(size=(2, BATCH, TIME, UNITS))
        loss = tf.reduce_sum([tf.cast(y, "float32") * w for y, w in zip(outputs, weights, strict=True)])
    return outputs, tape.gradient(loss, [x] + [v.value for v in layer.trainable_variables])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_keras(padded, training, compiled):
    ours, theirs = _pair()
    mask = _mask() if padded else None
    run = tf.function(_value_and_gradients) if compiled else _value_and_gradients
    outputs, gradients = run(ours, _inputs(), mask, training=training)
    expected, expected_gradients = _value_and_gradients(theirs, _inputs(), mask)
    for value, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5)
    for value, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5, rtol=1e-5)


def test_padding_keeps_the_state():
    layer, _ = _pair()
    x, mask = _inputs(), _mask()
    forward, backward = layer(x, mask=mask, training=True)
    for row, length in enumerate(mask.sum(axis=1)):
        np.testing.assert_array_equal(
            forward[row, length:], np.tile(forward[row, length - 1], (TIME - length, 1))
        )
        np.testing.assert_array_equal(backward[row, length:], np.zeros((TIME - length, UNITS)))
    # What stands at padding does not matter, not even when it is huge.
    others = layer(np.where(mask[..., None], x, 100.0), mask=mask)
    np.testing.assert_allclose(others[0], forward, atol=1e-6)
    np.testing.assert_allclose(others[1], backward, atol=1e-6)


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_is_close():
    ours, theirs = _pair()
    low = BidirectionalGRU(UNITS, dtype="mixed_bfloat16")
    low.build((None, None, FEATURES))
    low.set_weights(ours.get_weights())
    outputs, gradients = _value_and_gradients(low, _inputs(), _mask(), training=True)
    expected, expected_gradients = _value_and_gradients(theirs, _inputs(), _mask())
    for value, other in zip(outputs, expected, strict=True):
        assert value.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(value, "float32"), other, atol=0.03)
    for value, other in zip(gradients, expected_gradients, strict=True):
        assert value.dtype == tf.float32
        scale = np.abs(other).max()
        np.testing.assert_allclose(value / scale, other / scale, atol=0.04)


def test_initial_weights_differ():
    layer = BidirectionalGRU(UNITS)
    layer.build((None, None, FEATURES))
    assert not np.array_equal(layer.forward_kernel, layer.backward_kernel)
    with pytest.raises(ValueError, match="units"):
        BidirectionalGRU(0)


def _model(dtype=None):
    tokens = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(20, FEATURES, mask_zero=True)(tokens)
    both = BidirectionalGRU(UNITS, name="gru", dtype=dtype)(embedded)
    hidden = keras.layers.Concatenate()(both)
    return keras.Model(tokens, keras.layers.Dense(20, activation="softmax")(hidden))


def test_fit_save_and_load(tmp_path):
    keras.utils.set_random_seed(3)
    model = _model()
    assert [tuple(y.shape) for y in model.get_layer("gru").output] == [(None, None, UNITS)] * 2
    tokens = np.random.default_rng(4).integers(1, 20, size=(16, TIME))
    tokens[::2, 5:] = 0
    model.compile("adam", "sparse_categorical_crossentropy")
    history = model.fit(tokens, tokens, epochs=30, verbose=0).history["loss"]
    assert history[-1] < history[0]

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(loaded(tokens), model(tokens))
    assert loaded.get_layer("gru").get_config() == model.get_layer("gru").get_config()


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_export_for_a_session(tmp_path, dtype):
    model = _model(dtype)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda tokens: {"scores": model(tokens, training=False)},
        input_signature=[tf.TensorSpec((None, None), tf.int32, name="tokens")],
    )
    archive.write_out(str(tmp_path / "model"), verbose=False)

    batches = []
    for shape in [(1, 4), (3, 11)]:
        tokens = np.random.default_rng(5).integers(0, 20, size=shape, dtype="int32")
        tokens[:, 2:] = 0
        batches.append((tokens, model(tokens).numpy()))
    graph = tf.Graph()
    with tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "model"))
        signature = loaded.signature_def["serving_default"]
        for tokens, expected in batches:
            (scores,) = session.run(
                [signature.outputs["scores"].name], {signature.inputs["tokens"].name: tokens}
            )
            np.testing.assert_allclose(scores, expected, atol=1e-2 if "16" in dtype else 1e-6)
    functions = graph.as_graph_def().library.function
    names = {node.op for function in functions for node in function.node_def}
    assert not any("PyFunc" in name for name in names)
