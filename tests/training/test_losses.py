from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.training.losses import SparseCrossEntropy


def test_value_and_gradient_are_those_of_keras() -> None:
    rng = np.random.default_rng(0)
    labels = tf.constant(rng.integers(0, 50, (4, 7)))
    logits = tf.constant(rng.normal(0, 30, (4, 7, 50)), tf.float32)
    weights = tf.constant(rng.integers(0, 2, (4, 7)), tf.float32)
    reference = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    results = []
    for loss in (SparseCrossEntropy(), reference):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits, sample_weight=weights)
        results.append((value, tape.gradient(value, logits)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-7)


def test_no_weight_at_all_is_no_loss() -> None:
    loss = SparseCrossEntropy()(tf.zeros([2, 3], tf.int32), tf.ones([2, 3, 5]), tf.zeros([2, 3]))
    assert float(loss) == 0.0


def test_it_survives_a_round_trip() -> None:
    loss = keras.losses.deserialize(keras.losses.serialize(SparseCrossEntropy()))
    assert isinstance(loss, SparseCrossEntropy)


def test_smoothed_labels_are_those_of_keras() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 5)
    logits = tf.constant(rng.normal(0, 3, (5, 7)), tf.float32)
    reference = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    ours = SparseCrossEntropy(label_smoothing=0.2)
    results = []
    for loss, targets in ((ours, labels), (reference, np.eye(7)[labels])):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(targets, logits)
        results.append((value, tape.gradient(value, logits)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)
    assert keras.losses.deserialize(keras.losses.serialize(ours)).label_smoothing == 0.2
