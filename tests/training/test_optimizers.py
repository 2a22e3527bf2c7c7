"""Tests of the fused AdamW against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.training.optimizers import AdamW


def _variables():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (7, 5), "bias": (5,), "table": (11, 3)}
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name) for name, shape in shapes.items()
    ]


def _gradients(step):
    rng = np.random.default_rng(step + 1)
    return [tf.constant(rng.normal(size=v.shape).astype("float32")) for v in _variables()]


def _train(optimizer, variables, steps, start=0):
    @tf.function
    def apply(gradients):
        optimizer.apply(gradients, variables)

    for step in range(start, start + steps):
        apply(_gradients(step))


def _schedule():
    return keras.optimizers.schedules.CosineDecay(0.0, decay_steps=6, warmup_steps=3, warmup_target=0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.01},
        {"learning_rate": _schedule(), "weight_decay": 0.1},
        {"learning_rate": 0.01, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-4},
        {"learning_rate": 0.01, "global_clipnorm": 0.5},
        {"learning_rate": 0.01, "global_clipnorm": 100.0},
        {"learning_rate": 0.01, "clipnorm": 0.5},
        {"learning_rate": 0.01, "amsgrad": True},
        {"learning_rate": 0.01, "use_ema": True, "ema_overwrite_frequency": 4},
        {"learning_rate": 0.01, "gradient_accumulation_steps": 3},
        {"learning_rate": 0.01, "loss_scale_factor": 8.0},
    ],
    ids=str,
)
def test_equals_keras(arguments):
    results = []
    for kind in (AdamW, keras.optimizers.AdamW):
        optimizer, variables = kind(**arguments), _variables()
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(variables)
        _train(optimizer, variables, 8)
        results.append((variables, optimizer.variables))
    for ours, theirs in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        assert ours.path.split("/")[-1] == theirs.path.split("/")[-1]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def _sparse(index, dense):
    """A sparse gradient of the same effect, most of whose rows come in two parts."""
    rows = tf.concat([index, index[::-1]], 0)
    values = tf.concat([tf.gather(dense, index) * 0.25, tf.gather(dense, index[::-1]) * 0.75], 0)
    return tf.IndexedSlices(values, rows, tf.constant(dense.shape))


@pytest.mark.parametrize("clip", [None, 0.5])
def test_repeated_rows_equal_the_dense_gradient(clip):
    results = []
    for sparse in (True, False, True):
        optimizer = AdamW(0.01, global_clipnorm=clip, loss_scale_factor=2.0)
        table = _variables()[2]
        optimizer.build([table])
        for step in range(4):
            rows = tf.constant([1, 4, 5, 9])
            dense = tf.scatter_nd(rows[:, None], tf.gather(_gradients(step)[2], rows), tf.constant([11, 3]))
            optimizer.apply([_sparse(rows, dense) if sparse else dense])
        results.append([v.numpy() for v in [table, *optimizer.variables]])
    for sparse, dense, again in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, dense, atol=1e-6)
        np.testing.assert_array_equal(sparse, again)


def test_embedding_with_repeated_tokens():
    tokens = np.array([[1, 1, 2], [1, 3, 2]])
    results = []
    for one_hot in (False, True):
        keras.utils.set_random_seed(5)
        layer, optimizer = keras.layers.Embedding(5, 4), AdamW(0.1)
        layer.build()
        for _ in range(3):
            with tf.GradientTape() as tape:
                table = layer.embeddings.value
                rows = tf.one_hot(tokens, 5) @ table if one_hot else layer(tokens)
                loss = tf.reduce_sum(rows**3)
            optimizer.apply(tape.gradient(loss, [table]), [layer.embeddings])
        results.append(layer.embeddings.numpy())
    np.testing.assert_allclose(*results, atol=1e-6)


def test_checkpoint_and_config(tmp_path):
    optimizer, variables = AdamW(_schedule(), weight_decay=0.1), _variables()
    optimizer.build(variables)
    _train(optimizer, variables, 3)
    path = tf.train.Checkpoint(optimizer=optimizer, variables=[v.value for v in variables]).save(
        str(tmp_path / "checkpoint")
    )
    _train(optimizer, variables, 3, start=3)

    config = keras.optimizers.serialize(optimizer)
    restored, others = keras.optimizers.deserialize(config), _variables()
    assert type(restored) is AdamW
    restored.build(others)
    tf.train.Checkpoint(optimizer=restored, variables=[v.value for v in others]).restore(
        path
    ).assert_existing_objects_matched()
    assert int(restored.iterations) == 3
    _train(restored, others, 3, start=3)
    assert int(restored.iterations) == 6
    for value, other in zip(variables + optimizer.variables, others + restored.variables, strict=True):
        np.testing.assert_array_equal(value, other)


def test_under_a_distribution_strategy():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        variables, optimizer = _variables(), AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0)
        optimizer.build(variables)

    @tf.function
    def step(gradients):
        strategy.run(lambda g: optimizer.apply(g, variables), args=(gradients,))

    others, alone = _variables(), AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0)
    for i in range(3):
        step(_gradients(i))
        alone.apply(_gradients(i), others)
    for value, other in zip(variables, others, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)


def test_fit():
    model = keras.Sequential([keras.layers.Embedding(9, 4), keras.layers.Dense(9)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(AdamW(0.05, global_clipnorm=1.0), loss)
    tokens = np.arange(72).reshape(8, 9) % 9
    losses = model.fit(tokens, tokens, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
