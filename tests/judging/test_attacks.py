"""Attacks stay within their bounds and do harm."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.judging.attacks import Attack, parse_attack

RNG = np.random.default_rng(0)
IMAGES = tf.constant(RNG.integers(0, 256, (20, 4, 4, 1)), tf.float32)
LABELS = tf.constant(RNG.integers(0, 3, 20))
WEIGHTS = tf.constant(RNG.normal(size=(16, 3)), tf.float32)


def logits(images: tf.Tensor) -> tf.Tensor:
    return tf.matmul(tf.reshape(images, [-1, 16]) / 255.0, WEIGHTS)


def loss(images: tf.Tensor) -> np.ndarray:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits(images)).numpy()


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_it_stays_within_its_bounds_and_raises_the_loss(kind) -> None:
    changed = Attack(kind, 8.0)(logits, IMAGES, LABELS, tf.constant([0, 1]))
    assert np.abs(changed - IMAGES).max() <= 8.0 + 1e-3
    assert changed.numpy().min() >= 0 and changed.numpy().max() <= 255
    assert (loss(changed) >= loss(IMAGES)).all()


def test_against_a_linear_model_both_find_the_worst() -> None:
    one, many = (Attack(kind, 8.0)(logits, IMAGES, LABELS, tf.constant([0, 1])) for kind in ("fgsm", "pgd"))
    np.testing.assert_allclose(loss(one), loss(many), atol=2e-2)


def test_the_start_is_a_function_of_the_seed() -> None:
    attack = Attack("pgd", 8.0, steps=1)
    a, b, c = (attack(logits, IMAGES, LABELS, tf.constant([0, seed])) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_epsilon() -> None:
    assert parse_attack("pgd", "8/255") == Attack("pgd", 8.0, steps=10)
    attack = parse_attack("fgsm", "0.1")
    assert attack is not None and attack.epsilon == pytest.approx(25.5)
    assert parse_attack("none", "8/255") is None
    for wrong in ("8", "-1", "0", "a", "8/0", "nan", ""):
        with pytest.raises(UserError, match="--epsilon takes a share"):
            parse_attack("fgsm", wrong)
