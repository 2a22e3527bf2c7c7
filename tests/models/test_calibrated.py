"""A classifier with a temperature, and a score of what is unknown to it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from karpa_tf.judging import unknown
from karpa_tf.models.calibrated import Calibrated, UnknownScore
from karpa_tf.models.ensemble import logits_and_more
from karpa_tf.recipes.families.recognize import with_flip

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    image = keras.Input([4, 4, 1], name="image")
    start = [keras.initializers.RandomNormal(stddev=0.5, seed=seed) for seed in (1, 2)]
    x = keras.layers.Dense(6, "relu", kernel_initializer=start[0])(keras.layers.Flatten()(image))
    return keras.Model(
        image, keras.layers.Dense(3, kernel_initializer=start[1], name="logits")(x), name="net"
    )


def reference(kind: str, z: np.ndarray, f: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The score, in float64 and row by row."""
    if kind == "maximum softmax":
        return 1 - softmax(z, axis=1).max(1)
    if kind == "energy":
        return -logsumexp(z, axis=1)
    bank = unknown.neighbours(train)
    rows = [[r @ b / np.linalg.norm(r) for b in bank["bank"]] for r in f]
    return np.array([1 - sorted(row)[-int(bank["k"])] for row in rows])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["maximum softmax", "energy", "neighbours"])
def test_logits_are_divided_and_scores_are_those_of_numpy(model, kind: str, flip: bool) -> None:
    x = 4 * RNG.normal(size=[9, 4, 4, 1]).astype(np.float32)
    seen = [x, x[:, :, ::-1]] if flip else [x]
    inner = keras.Model(model.input, model.get_layer("logits").input)
    z, f = (np.mean([net(i).numpy() for i in seen], axis=0, dtype=np.float64) for net in (model, inner))
    train = RNG.gamma(1.0, size=[60, 6]).astype(np.float32)
    arrays = unknown.neighbours(train) if kind == "neighbours" else {}
    expected = reference(kind, z / 2.5, f, train)
    score = UnknownScore(kind, arrays, float(np.median(expected)) + 1e-4)
    calibrated = Calibrated(with_flip(model) if flip else model, 2.5, score)
    logits, more = logits_and_more(calibrated, x)
    np.testing.assert_allclose(logits, z / 2.5, atol=1e-5)
    np.testing.assert_allclose(more["unknown_score"], expected, rtol=1e-4, atol=1e-5)
    assert more["known"].numpy().tolist() == (expected <= score.threshold).tolist()
    assert 0 < more["known"].numpy().sum() < 9


def test_without_a_score_there_is_a_temperature_alone(model) -> None:
    x = RNG.normal(size=[3, 4, 4, 1]).astype(np.float32)
    logits, more = logits_and_more(Calibrated(model, 0.5), x)
    np.testing.assert_allclose(logits, 2 * model(x), rtol=1e-6)
    assert more == {}
    assert [v.path for v in Calibrated(model, 0.5).weights] == [v.path for v in model.weights]
