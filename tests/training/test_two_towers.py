"""Two towers: the sampled softmax and its correction, batches of histories."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.judging.ranking import nearest_items
from karpa_tf.models.two_towers import (
    IdDropout,
    Neighbours,
    build_item_tower,
    build_reranker,
    build_user_tower,
    join_towers,
)
from karpa_tf.recipes.recommender.steps import RerankStep
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.two_towers import (
    drawing_shares,
    held_out_batches,
    history_batches,
    sampled_softmax,
)

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


def test_what_is_held_out_is_asked_of_whole_histories() -> None:
    asked = [np.array(row) for row in ([8], [], [9], [1, 2])]
    batches = held_out_batches(TAKEN, asked, users=5, seed=0, steps_per_epoch=1)
    (known, wanted), *_ = batches.dataset().as_numpy_iterator()
    assert known.shape == (3, 6) and wanted.shape == (3, 2)
    pairs = {(tuple(k[k > 0]), tuple(w[w > 0])) for k, w in zip(known, wanted, strict=True)}
    assert pairs == {((1, 2, 3, 4, 5, 6), (8,)), ((7,), (9,)), ((4, 5, 6, 8, 9), (1, 2))}


def test_a_reranker_counts_neighbours_and_does_nothing_untrained() -> None:
    taken = np.random.default_rng(0).random((30, 6)) < 0.5
    layer = Neighbours(6, 3)
    history = tf.constant([[2, 3, 0, 3], [0, 0, 0, 0]])
    layer(history, history)
    layer.assign(*nearest_items(taken, 3))
    found = layer(history, tf.constant([[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 0]])).numpy()
    row = np.array([[False, True, True, False, False, False]])
    assert found[0, :6] == pytest.approx(item_neighbours_of(taken, row) / 2**0.5, rel=1e-5)
    assert found[0, 6] == 0 and not found[1].any()
    reranker = build_reranker(6, 3, units=4)
    scores = tf.random.stateless_normal([2, 4], [0, 1])
    assert reranker([history, tf.constant([[1, 2, 3, 4]] * 2), scores]).numpy() == pytest.approx(
        scores.numpy()
    )


def item_neighbours_of(taken: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The scores of a history that is none of those that the neighbours come of."""
    weights = np.zeros((6, 6))
    places, cosines = nearest_items(taken, 3)
    np.put_along_axis(weights, places, cosines, 1)
    return (row @ weights.T)[0]


def test_a_reranker_learns_that_neighbours_count() -> None:
    """The towers say nothing here: who took one item of a pair takes the other."""
    taken = np.repeat(np.eye(10, dtype=bool), 4, axis=0) | np.repeat(
        np.roll(np.eye(10, dtype=bool), 1, 1), 4, axis=0
    )
    keras.utils.set_random_seed(0)
    item, user, reranker = build_item_tower(2, 10, 4), build_user_tower(4), build_reranker(10, 2)
    reranker.get_layer("neighbours").assign(*nearest_items(taken, 2))
    model = join_towers(item, user, reranker)
    words, ids = np.ones((11, 1), np.int32), np.arange(11, dtype=np.int32)
    step = RerankStep(item, user, reranker, model, AdamW(0.05), words, ids, 9)
    asked = [np.flatnonzero(row)[1:] + 1 for row in taken]
    known = [np.flatnonzero(row)[:1] + 1 for row in taken]
    step.begin()
    losses = [
        step(b)["loss"]
        for b in held_out_batches(known, asked, users=20, seed=0, steps_per_epoch=60).dataset()
    ]
    assert losses[-1] < losses[0] - 0.5 and str(step).startswith("RerankStep(")
