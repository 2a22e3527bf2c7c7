"""The mean of several classifiers' probabilities, and how far they disagree."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from karpa_tf.models.ensemble import Ensemble, logits_and_more


def member(seed: int, scale: float = 1.0) -> keras.Model:
    image = keras.Input([3, 2], name="image")
    start = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    return keras.Model(image, keras.layers.Dense(4, kernel_initializer=start)(image), name="net")


@pytest.mark.parametrize("weights", [None, [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
def test_the_softmax_is_the_mean_and_the_disagreement_is_the_divergence(weights) -> None:
    """Logits may have any axes before the classes: a tagger has one for the pieces."""
    members = [member(seed, 3.0) for seed in range(3)]
    x = np.random.default_rng(0).normal(size=[5, 3, 2]).astype(np.float32)
    model = Ensemble(members, weights)
    logits, more = logits_and_more(model, x)
    np.testing.assert_allclose(logits, model(x, training=False), atol=1e-6)
    each = np.stack([softmax(m(x).numpy().astype(np.float64), axis=-1) for m in members])
    shares = np.array(weights or [1 / 3] * 3)[:, None, None, None]
    mean = (shares * each).sum(0)
    np.testing.assert_allclose(softmax(logits, axis=-1), mean, atol=1e-6)
    # The generalized Jensen-Shannon divergence as the mean distance from the mean.
    divergence = (shares[..., 0] * rel_entr(each, mean).sum(-1)).sum(0)
    assert divergence.max() > 0.3
    np.testing.assert_allclose(more["disagreement"], divergence, atol=2e-6)


def test_members_that_say_the_same_do_not_disagree() -> None:
    x = np.random.default_rng(0).normal(size=[5, 3, 2]).astype(np.float32)
    one = member(0)
    _, more = logits_and_more(Ensemble([one, member(0)]), x)
    assert (more["disagreement"].numpy() < 1e-6).all() and (more["disagreement"].numpy() >= 0).all()
    sure = keras.Model(one.input, 1e3 * one.output)
    other = keras.Model(one.input, -1e3 * one.output)
    _, more = logits_and_more(Ensemble([sure, other]), x)
    np.testing.assert_allclose(more["disagreement"], np.log(2), atol=1e-5)
    assert logits_and_more(one, x)[1] == {}


def test_the_temperature_divides_the_logits_of_the_mean() -> None:
    x = np.random.default_rng(0).normal(size=[5, 3, 2]).astype(np.float32)
    members = [member(seed) for seed in range(2)]
    plain, cold = (logits_and_more(Ensemble(members, None, t), x) for t in (1.0, 0.5))
    np.testing.assert_allclose(cold[0], 2 * plain[0], rtol=1e-6)
    np.testing.assert_allclose(cold[1]["disagreement"], plain[1]["disagreement"])


def test_it_has_the_weights_of_its_members_once() -> None:
    members = [member(seed) for seed in range(3)]
    model = Ensemble(members)
    assert len(model.weights) == 6 and len(model.members) == 3
    for own, given in zip(model.members, members, strict=True):
        np.testing.assert_array_equal(own.get_weights()[0], given.get_weights()[0])
