"""Structured pruning: what does not count goes first, and taking it out changes nothing."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models import build_bert, build_bert_classifier, build_image_mlp
from karpa_tf.models.pruning import chosen, importance, smaller_weights, stay, units_of
from karpa_tf.training.losses import SparseCrossEntropy

RNG = np.random.default_rng(0)
BERT = {"layers": 2, "heads": 4, "width": 16, "intermediate": 12, "positions": 16}


def bert(**sizes: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build_bert_classifier(build_bert(50, **{**BERT, **sizes}), 3)
    model.set_weights([10 * w for w in model.get_weights()])
    return model


def perceptron(units: tuple[int, ...]) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build_image_mlp((4, 4, 1), 3, units=units, batch_normalization=True)
    for layer in model.layers:
        if layer.name.startswith("norm"):
            gamma, beta, mean, variance = (RNG.uniform(0.5, 1.5, w.shape) for w in layer.get_weights())
            layer.set_weights([gamma, beta, mean - 1, variance])
    return model


def texts() -> dict[str, np.ndarray]:
    mask = np.arange(9) < RNG.integers(3, 9, (6, 1))
    ids = RNG.integers(1, 50, (6, 9)).astype(np.int32)
    return {"token_ids": ids * mask, "segment_ids": np.zeros_like(ids), "padding_mask": mask}


def silence(model: keras.Model, keep: int) -> list[np.ndarray]:
    """Makes all but `keep` units of each kind worthless; returns the places of those that count."""
    counting = []
    for one in units_of(model):
        places = np.sort(RNG.permutation(one.count)[:keep])
        out, _, width = one.parts[-1] if one.layer.name.startswith("block") else one.parts[1]
        values = np.asarray(out).copy()
        rows = np.setdiff1d(np.arange(one.count), places)
        values[(rows[:, None] * width + np.arange(width)).reshape(-1)] = 0.0
        out.assign(values)
        counting.append(places)
    return counting


@pytest.mark.parametrize(
    ("make", "smaller", "features", "keep"),
    [
        (bert, lambda: bert(heads=2, head_width=4, intermediate=2), texts, 2),
        (
            lambda: perceptron((12, 8)),
            lambda: perceptron((3, 3)),
            lambda: RNG.uniform(0, 255, (40, 4, 4, 1)).astype(np.float32),
            3,
        ),
    ],
    ids=["bert", "perceptron"],
)
def test_worthless_units_go_and_nothing_changes(make, smaller, features, keep) -> None:
    model, x = make(), features()
    y = tf.constant(RNG.integers(0, 3, len(tf.nest.flatten(x)[0])))
    counting, units = silence(model, keep), units_of(model)
    scores = importance(model, units, [(x, y)], SparseCrossEntropy())
    for one, score, places in zip(units, scores, counting, strict=True):
        assert score.shape == (one.count,)
        assert np.array_equal(np.flatnonzero(score > 0), places)
    kept = [chosen(score, 1 - keep / len(score)) for score in scores]
    assert all(np.array_equal(a, b) for a, b in zip(kept, counting, strict=True))
    weights, other = smaller_weights(model, units, kept), smaller()
    assert sum(w.size for w in weights) < model.count_params()
    other.set_weights(weights)
    np.testing.assert_allclose(model(x), other(x), rtol=1e-5, atol=1e-6)


def test_importance_is_the_first_order_change_of_the_loss() -> None:
    model, x, y = bert(), texts(), tf.constant([0, 1, 2, 0, 1, 2])
    units, loss = units_of(model), SparseCrossEntropy()
    scores = importance(model, units, [(x, y, tf.constant([1.0, 1, 1, 1, 1, 0]))], loss)
    # By differences: an example alone, with what leaves a head scaled by a little.
    one, place, step = units[2], 1, 1e-2
    out, _, width = one.parts[-1]
    rows = slice(place * width, (place + 1) * width)
    total = 0.0
    for i in range(5):
        example = {name: array[i : i + 1] for name, array in x.items()}
        found = []
        for scale in (1 - step, 1 + step):
            before = np.asarray(out).copy()
            changed = before.copy()
            changed[rows] *= scale
            out.assign(changed)
            found.append(float(loss(y[i : i + 1], model(example))))
            out.assign(before)
        total += abs(found[1] - found[0]) / (2 * step)
    assert scores[2][place] == pytest.approx(total, rel=0.02)


def test_one_unit_stays_at_least() -> None:
    assert [stay(4, share) for share in (0.0, 0.1, 0.25, 0.5, 0.99)] == [4, 4, 3, 2, 1]
    assert list(chosen(np.array([0.3, 0.1, 0.2]), 0.99)) == [0]
    assert list(chosen(np.array([0.3, 0.1, 0.2]), 0.3)) == [0, 2]
