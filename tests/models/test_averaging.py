"""Means of networks' weights, and the statistics of batch normalization for them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from karpa_tf.models.averaging import Statistics, mean_weights
from karpa_tf.models.image_layers import FastBatchNormalization

RNG = np.random.default_rng(0)


def test_a_mean_is_m1_plus_lambda_times_the_difference() -> None:
    one, two = ([RNG.normal(size=(3, 2)).astype(np.float32), np.array([1, 5])] for _ in range(2))
    found = mean_weights([one, two], [0.75, 0.25])
    np.testing.assert_allclose(found[0], one[0] + 0.25 * (two[0] - one[0]), rtol=1e-6)
    assert found[0].dtype == np.float32
    assert all((a == b).all() for a, b in zip(mean_weights([one, two], [0.0, 1.0]), two, strict=True))
    for shares in ([0.5], [0.5, 0.6]):
        with pytest.raises(ValueError, match="A share each, adding up to 1"):
            mean_weights([one, two], shares)


@pytest.mark.parametrize("kind", [keras.layers.BatchNormalization, FastBatchNormalization])
def test_statistics_are_those_of_the_batches(kind) -> None:
    model = keras.Sequential([keras.Input([4]), kind(name="norm"), keras.layers.Dense(2)])
    model.layers[0].moving_mean.assign(np.full(4, 9.0))
    batches = [RNG.normal(3.0, 2.0, size=(64, 4)).astype(np.float32) for _ in range(5)]
    momentum = model.layers[0].momentum
    statistics = Statistics(model, batches)
    for _ in range(2):  # again for other weights
        statistics()
        mean = np.mean([batch.mean(axis=0) for batch in batches], axis=0)
        np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=1e-4)
        np.testing.assert_allclose(
            model.layers[0].moving_variance, np.mean([b.var(axis=0) for b in batches], axis=0), rtol=0.03
        )
    assert model.layers[0].momentum == momentum and statistics.layers == ["norm"]
