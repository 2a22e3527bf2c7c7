"""Elastic weight consolidation against what can be worked out by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.training import EwcStep, SparseCrossEntropy, fisher_information


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def linear(outputs: int = 4) -> keras.Model:
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(outputs)])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=(3, outputs)), rng.normal(size=outputs)])
    model.compile(keras.optimizers.SGD(0.1), SparseCrossEntropy())
    return model


ROWS = np.random.default_rng(2).normal(size=(7, 3)).astype("float32")


@pytest.mark.parametrize("candidates", [None, [True, False, True, True]])
def test_the_fisher_information_of_a_linear_model_is_the_closed_form(candidates) -> None:
    """Of the kernel the mean of x_i^2 p_k (1 - p_k), of the bias that of p_k (1 - p_k)."""
    model = linear()
    allowed = np.ones(4, bool) if candidates is None else np.array(candidates)
    kernel, bias = model.get_weights()
    shares = softmax(np.where(allowed, ROWS @ kernel + bias, -np.inf))
    spread = shares * (1 - shares)
    found = fisher_information(model, ROWS, allowed if candidates else None)
    np.testing.assert_allclose(found[0], ROWS.T**2 @ spread / 7, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[1], spread.mean(0), rtol=1e-4, atol=1e-7)
    assert np.all(found[1][~allowed] == 0)


def test_the_fisher_information_of_a_network_is_the_mean_over_labels_that_it_draws() -> None:
    model = keras.Sequential(
        [keras.Input([3]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3), keras.layers.Dropout(0.5)]
    )
    expected = [np.zeros(v.shape) for v in model.trainable_variables]
    for row in ROWS:
        with tf.GradientTape(persistent=True) as tape:
            likelihoods = tf.unstack(tf.nn.log_softmax(model(row[None], training=False)[0]))
        for likelihood in likelihoods:
            slopes = tape.gradient(likelihood, [v.value for v in model.trainable_variables])
            for total, slope in zip(expected, slopes, strict=True):
                total += np.exp(likelihood) * np.square(slope) / len(ROWS)
    for found, wanted in zip(fisher_information(model, ROWS), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_there_must_be_rows_and_candidates() -> None:
    for rows, candidates in ((ROWS[:0], None), (ROWS, np.zeros(4, bool))):
        with pytest.raises(UserError, match="Fisher information is a mean over rows"):
            fisher_information(linear(), rows, candidates)


def remembering(strength: float = 3.0) -> tuple[keras.Model, EwcStep, list[np.ndarray]]:
    model = linear()
    step = EwcStep(model, strength=strength)
    information = fisher_information(model, ROWS)
    step.remember(information)
    return model, step, information


def test_the_penalty_is_0_at_the_anchor_and_a_paraboloid_around_it() -> None:
    model, step, information = remembering()
    assert float(step.penalty()) == 0
    moves = [np.random.default_rng(3).normal(size=x.shape) for x in information]
    for variable, move in zip(model.trainable_variables, moves, strict=True):
        variable.assign_add(move)
    with tf.GradientTape() as tape:
        penalty = step.penalty()
    slopes = tape.gradient(penalty, [v.value for v in model.trainable_variables])
    wanted = 1.5 * sum(float((f * move**2).sum()) for f, move in zip(information, moves, strict=True))
    assert wanted > 0.1 and float(penalty) == pytest.approx(wanted, rel=1e-4)
    for slope, f, move in zip(slopes, information, moves, strict=True):
        np.testing.assert_allclose(slope, 3.0 * f * move, rtol=1e-3, atol=1e-5)


def test_a_step_follows_the_loss_and_the_penalty() -> None:
    model, step, information = remembering()
    anchor = model.get_weights()
    model.set_weights([w + 0.5 for w in anchor])
    before = model.get_weights()
    labels = np.arange(7) % 4
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(labels, model(ROWS), from_logits=True)
        loss = tf.reduce_mean(losses)
    slopes = tape.gradient(loss, [v.value for v in model.trainable_variables])
    # A row of weight 0 does not count.
    batch = np.concatenate([ROWS, ROWS[:1]]), np.append(labels, 0), np.float32([1] * 7 + [0])
    figures = step(tuple(map(tf.constant, batch)))
    penalty = 1.5 * 0.25 * sum(float(f.sum()) for f in information)
    assert figures["penalty"] == pytest.approx(penalty, rel=1e-4)
    assert figures["loss"] == pytest.approx(float(loss) + penalty, rel=1e-4)
    for now, then, slope, f in zip(model.get_weights(), before, slopes, information, strict=True):
        np.testing.assert_allclose(now, then - 0.1 * (slope + 3.0 * f * 0.5), rtol=1e-4, atol=1e-5)


def test_the_information_of_tasks_adds_up_and_goes_to_the_next_step() -> None:
    model, step, information = remembering()
    model.set_weights([w + 1 for w in model.get_weights()])
    more = [np.ones_like(f) for f in information]
    step.remember(more, decay=0.25)
    after = EwcStep(model, strength=3.0, before=step)
    for f, was, anchor, weight in zip(
        after.information, information, after.anchor, model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(f, 0.25 * was + 1, rtol=1e-5)
        np.testing.assert_array_equal(anchor, weight)
    # A checkpoint has them.
    held = [id(v) for v in after.variables]
    assert {id(v) for v in (*after.information, *after.anchor)} <= set(held)
    after.remember(more)
    np.testing.assert_allclose(step.information[1], 0.25 * information[1] + 1, rtol=1e-5)  # its own, still
