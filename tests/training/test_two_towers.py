"""Two towers: the sampled softmax and its correction, batches of histories."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models.two_towers import (
    IdDropout,
    build_item_tower,
    build_reranker,
    build_user_tower,
    parts_of,
)
from karpa_tf.training.two_towers import drawing_shares, history_batches, sampled_softmax

TAKEN = [np.array(row) for row in ([1, 2, 3, 4, 5, 6], [2, 3], [7], [4, 5, 6, 8, 9])]


def test_the_loss_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    targets = np.array([[3, 1], [1, 2], [4, 0]], np.int32)
    scores = rng.normal(size=(3, 6)).astype(np.float32)
    log_q = np.log(rng.random(5)).astype(np.float32)
    excluded = np.zeros((3, 6), bool)
    excluded[0, 3] = True
    found = sampled_softmax(*map(tf.constant, (scores, targets, log_q, excluded))).numpy()
    flat = targets.ravel()
    for user in range(3):
        for place in range(2):
            column = 2 * user + place
            if not flat[column]:
                assert found[user, place] == 0
                continue
            logits = scores[user] - log_q[flat]
            among = np.logaddexp.reduce(logits[(flat > 0) & ~excluded[user]])
            assert found[user, place] == pytest.approx(among - logits[column], rel=1e-5)


@pytest.mark.parametrize(("corrected", "slope"), [(True, 1.0), (False, 0.0)])
def test_with_the_correction_scores_are_log_probabilities(corrected, slope) -> None:
    share = np.array([0, 0.5, 0.25, 0.15, 0.1], np.float32)
    log_q = tf.constant(np.log(np.maximum(share, 1e-9)))
    bias, rng = tf.Variable(tf.zeros(5)), np.random.default_rng(0)
    batches = tf.constant(rng.choice(5, (400, 256, 1), p=share), tf.int32)

    @tf.function
    def train() -> None:
        for targets in batches:
            with tf.GradientTape() as tape:
                scores = tf.broadcast_to(tf.gather(bias, targets[:, 0]), [256, 256])
                loss = tf.reduce_mean(sampled_softmax(scores, targets, log_q if corrected else None))
            bias.assign_sub(tf.convert_to_tensor(tape.gradient(loss, bias)))

    train()
    assert np.polyfit(np.log(share[1:]), bias.numpy()[1:], 1)[0] == pytest.approx(slope, abs=0.1)


def test_a_batch_is_cut_into_what_is_known_and_what_is_asked() -> None:
    batches = history_batches(TAKEN, users=3, targets=4, history=5, seed=1, steps_per_epoch=50)
    seen = np.zeros(10)
    for known, asked in batches.dataset(0, 200).as_numpy_iterator():
        assert known.shape == (3, 5) and asked.shape == (3, 4) and known.dtype == np.int32
        for history, targets in zip(known, asked, strict=True):
            some = set(history[history > 0])
            assert some and (targets > 0).all() and not some & set(targets)
            assert any(some | set(targets) <= set(row) for row in TAKEN)
        np.add.at(seen, asked.ravel(), 1)
    shares = drawing_shares(TAKEN, 9)
    assert shares.sum() == pytest.approx(1) and shares[0] == shares[7] == 0
    assert seen / seen.sum() == pytest.approx(shares, abs=0.03)
    first, again = (next(iter(batches.dataset(7))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_item_without_an_id_is_its_words() -> None:
    tower = build_item_tower(8, 5, 4, id_dropout=0.5, seed=0)
    words = tf.constant([[1, 2, 0], [1, 2, 0], [3, 0, 0]])
    known, new = (tower([tf.constant(ids), words]).numpy() for ids in ([1, 2, 3], [0, 0, 0]))
    assert new[0] == pytest.approx(new[1]) and not np.allclose(known[0], known[1])
    # Padding, however much, changes nothing.
    assert tower([tf.constant([1]), words[:1, :2]]).numpy() == pytest.approx(known[:1])
    dropped = [IdDropout(0.3, seed=1)(tf.range(1, 1001), training=True).numpy() for _ in range(2)]
    assert (dropped[0] == 0).mean() == pytest.approx(0.3, abs=0.05)
    assert set(dropped[0]) <= set(range(1001))
    assert np.array_equal(IdDropout(0.3)(tf.range(5)), range(5))


def test_a_users_score_is_a_sum_over_his_history() -> None:
    user = build_user_tower(4)
    vectors = tf.random.stateless_normal([1, 3, 4], [0, 1])
    item = tf.random.stateless_normal([4], [0, 2])

    def score(there: list[float]) -> float:
        return float(tf.reduce_sum(user([vectors, tf.constant([there])]) * item))

    parts = [float(tf.reduce_sum(vectors[0, place] * item)) for place in range(3)]
    assert score([1, 0, 1]) == pytest.approx((parts[0] + parts[2]) / 2**0.5, rel=1e-5)
    assert score([0, 0, 0]) == 0  # untrained, the start is nothing


def test_an_untrained_reranker_changes_nothing_and_padding_never_does() -> None:
    keras.utils.set_random_seed(0)
    reranker = build_reranker(4, units=8)
    history, candidates = (tf.random.stateless_normal([2, n, 4], [0, n]) for n in (3, 5))
    there, scores = tf.constant([[1.0, 1, 0], [0, 0, 0]]), tf.random.stateless_normal([2, 5], [0, 9])
    assert reranker([history, there, candidates, scores]).numpy() == pytest.approx(scores.numpy())
    reranker.get_layer("correction").kernel.assign(tf.ones([8, 1]))
    found = reranker([history, there, candidates, scores]).numpy()
    assert not np.allclose(found, scores)
    other = history + tf.constant([[[0.0]] * 2 + [[5.0]], [[7.0]] * 3])
    assert reranker([other, there, candidates, scores]).numpy() == pytest.approx(found, rel=1e-5)
    alone = reranker([history, there, candidates[:, 2:3], scores[:, 2:3]]).numpy()
    assert alone == pytest.approx(found[:, 2:3], rel=1e-5)
    assert [x.shape[-1] for x in parts_of(tf.zeros([3, 9]))[::2]] == [4, 4]
