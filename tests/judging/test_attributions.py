"""Integrated gradients keep their axioms."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.judging.attributions import integrated_gradients
from karpa_tf.models.airbench import build_airbench


def test_completeness() -> None:
    """The attributions add up to what the output changes from the baseline to the input."""
    model = build_airbench((16, 16, 3), 4, widths=(8, 8), activation="gelu", scale=1.0)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.float32)

    def probability(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(model(images))[:, 2]

    result = integrated_gradients(probability, image, np.zeros_like(image), steps=300)
    black, there = probability(np.stack([np.zeros_like(image), image])).numpy()
    assert result.difference == pytest.approx(there - black, abs=1e-6)
    assert result.attributions.sum() == pytest.approx(result.difference, abs=0.01)
    assert result.gap == pytest.approx(abs(result.attributions.sum() - result.difference))


def test_a_linear_function_is_taken_apart_exactly_and_what_does_not_matter_gets_nothing() -> None:
    weights = tf.constant([1.0, -2.0, 0.0])
    result = integrated_gradients(
        lambda x: tf.reduce_sum(x * weights, axis=1), np.array([3.0, 1, 7]), np.array([1.0, 0, 0]), steps=4
    )
    np.testing.assert_allclose(result.attributions, [2, -2, 0], atol=1e-6)
    assert result.gap < 1e-6


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        integrated_gradients(lambda x: x[:, 0], np.zeros(3), np.zeros(2))
