"""Figures of generated images against what they must be by their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.errors import UserError
from karpa_tf.judging.generation import (
    class_shares,
    format_shares,
    frechet_distance,
    memorized_share,
    nearest,
    precision_and_recall,
    sample_figures,
)

RNG = np.random.default_rng(0)


def test_frechet_distance_of_normal_distributions_is_the_formula() -> None:
    a = RNG.standard_normal((4000, 3)) @ RNG.standard_normal((3, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # A shift costs its square; twice as wide costs the trace of the covariance.
    assert frechet_distance(a, a + np.array([3, 0, 4])) == pytest.approx(25)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 2 * centred) == pytest.approx(np.trace(np.cov(centred.T)))
    b = RNG.standard_normal((500, 3)) * [1, 2, 3]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    # With covariances that commute: the squared difference of the deviations.
    white = [x - x.mean(0) for x in RNG.standard_normal((2, 25, 4))]
    c, d = (x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T for x in white)
    assert frechet_distance(c * [1, 2, 3, 4], d * [2, 2, 1, 0.5]) == pytest.approx(1 + 0 + 4 + 3.5**2)


def test_frechet_distance_in_dead_features_is_finite() -> None:
    a = np.maximum(RNG.standard_normal((30, 40)), 0) * (np.arange(40) % 3 > 0)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-6)
    assert 0 < frechet_distance(a, a * 0.5) < np.square(a).sum()


def test_precision_falls_with_strange_images_and_recall_with_missing_ones() -> None:
    real = np.concatenate([RNG.standard_normal((200, 2)), 50 + RNG.standard_normal((200, 2))])
    same = np.concatenate([RNG.standard_normal((200, 2)), 50 + RNG.standard_normal((200, 2))])
    precision, recall = precision_and_recall(real, same)
    assert precision > 0.9 and recall > 0.9
    precision, recall = precision_and_recall(real, same[:200])  # one mode alone
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05)
    strange = np.concatenate([same[:200], 500 + RNG.standard_normal((200, 2))])
    precision, recall = precision_and_recall(real, strange)
    assert precision == pytest.approx(0.5, abs=0.05) and recall == pytest.approx(0.5, abs=0.05)


def test_what_a_classifier_says_of_samples() -> None:
    probabilities = np.array([[0.95, 0.05, 0.0], [0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.5, 0.4, 0.1]])
    figures = sample_figures(probabilities, np.array([0, 1, 1, 2]))
    assert figures == {
        "confident_share": 0.5,
        "rarest_class_share": 0.0,
        "commonest_class_share": 0.75,
        "class_entropy": pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)),
        "label_agreement": 0.5,
    }
    assert "label_agreement" not in sample_figures(probabilities)
    lines = format_shares(["one", "two", "three"], {"model": class_shares(probabilities)})
    assert [line.split() for line in lines] == [
        ["class", "model"],
        ["one", "0.750"],
        ["two", "0.250"],
        ["three", "0.000"],
    ]


def test_a_memorized_image_is_found() -> None:
    training = RNG.integers(0, 256, (40, 6, 6, 1), np.uint8)
    others = RNG.integers(0, 256, (100, 6, 6, 1), np.uint8)
    distances, places = nearest(training[[7, 3]], training)
    assert places.tolist() == [7, 3] and distances == pytest.approx(0, abs=0.1)
    exact = np.sqrt(np.square(np.float64(others[:, None]) - training[None]).mean((2, 3, 4)))
    distances, places = nearest(others, training)
    np.testing.assert_allclose(distances, exact.min(1), rtol=1e-4)
    np.testing.assert_array_equal(places, exact.argmin(1))
    assert memorized_share(distances, distances) == pytest.approx(0.01)
    copies = nearest(np.concatenate([training[:30], others[:70]]), training)[0]
    assert memorized_share(copies, distances) >= 0.3


@pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))])
def test_features_that_cannot_be_compared_are_one_sentence(shapes) -> None:
    for figure in (frechet_distance, precision_and_recall):
        with pytest.raises(UserError, match="Two sets of features"):
            figure(*map(np.zeros, shapes))
