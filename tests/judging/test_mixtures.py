"""Weights and temperatures that are fitted on held-out rows."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.judging.classification import softmax
from karpa_tf.judging.mixtures import best_temperature, mixture_weights

RNG = np.random.default_rng(0)


def drawn(logits: np.ndarray) -> np.ndarray:
    """A class of each row, drawn by its probabilities."""
    return (softmax(logits).cumsum(1) > RNG.random([len(logits), 1])).argmax(1)


def test_weights_are_those_of_the_mixture_that_the_labels_come_of() -> None:
    logits = 2 * RNG.normal(size=[3, 20_000, 5])
    each = np.stack([softmax(x) for x in logits])
    source = RNG.choice(3, size=20_000, p=[0.6, 0.4, 0.0])
    labels = np.stack([drawn(x) for x in logits])[source, np.arange(20_000)]
    weights = mixture_weights(each, labels)
    np.testing.assert_allclose(weights, [0.6, 0.4, 0.0], atol=0.03)
    assert weights.sum() == pytest.approx(1)

    def likelihood(shares: np.ndarray) -> float:
        return float(np.log(np.tensordot(shares, each, 1)[np.arange(20_000), labels]).mean())

    for other in ([1 / 3] * 3, [1, 0, 0], [0.5, 0.5, 0]):
        assert likelihood(weights) > likelihood(np.array(other))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_the_one_that_the_labels_were_drawn_at(temperature: float) -> None:
    logits = 3 * RNG.normal(size=[20_000, 5])
    assert best_temperature(logits, drawn(logits / temperature)) == pytest.approx(temperature, rel=0.05)


def test_rows_without_an_error_do_not_make_all_probabilities_one() -> None:
    labels = np.arange(30) % 3
    probabilities = np.full([30, 3], 0.2)
    probabilities[np.arange(30), labels] = 0.6
    cold = softmax(np.log(probabilities) / best_temperature(np.log(probabilities), labels))
    assert 0.9 < cold.max() < 0.99
