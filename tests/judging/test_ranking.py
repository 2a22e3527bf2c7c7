"""Figures of rankings against scikit-learn's and by hand; what recommends without a network."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from karpa_tf.judging.ranking import (
    bpr,
    item_neighbours,
    own_genres,
    popularity,
    popularity_by_genre,
    ranking_metrics,
)


def test_the_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, taken = rng.normal(size=(40, 30)), rng.random((40, 30)) < 0.5
    seen, wanted = taken & (rng.random((40, 30)) < 0.5), np.zeros((40, 30), bool)
    wanted[:] = taken & ~seen
    wanted[0] = False  # a user who wants nothing does not count
    found = ranking_metrics(scores, seen, wanted)
    expected, recall = [], []
    for score, known, good in zip(scores[1:], seen[1:], wanted[1:], strict=True):
        expected.append(ndcg_score([good[~known]], [score[~known]], k=10))
        top = [item for item in np.argsort(-score) if not known[item]][:10]
        recall.append(good[top].sum() / good.sum())
    assert found == {"ndcg_10": pytest.approx(np.mean(expected)), "recall_10": pytest.approx(np.mean(recall))}


def test_what_is_left_out_is_no_hit() -> None:
    seen, wanted = np.array([[True, False, False]]), np.array([[False, True, True]])
    found = ranking_metrics(np.array([[3.0, -np.inf, 1.0]]), seen, wanted)
    assert found["recall_10"] == 0.5 and found["ndcg_10"] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    with pytest.raises(ValueError, match="no user"):
        ranking_metrics(np.zeros((1, 3)), np.zeros((1, 3), bool), wanted)


def test_baselines_by_hand() -> None:
    taken = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    assert popularity(taken)[2].tolist() == [2, 3, 1, 0]
    genres = [["a"], ["a", "b"], ["b"], ["b"]]
    known = np.array([True, True, True, False])
    assert popularity_by_genre(taken, genres, known)[0].tolist() == [2.5, 2.25, 2.0, 2.0]
    # The first user has one item of both genres, and one of a alone: all have a, half have b.
    assert own_genres(taken, genres)[0].tolist() == [1.0, 0.75, 0.5, 0.5]
    cosine = 2 / np.sqrt(2 * 3)
    assert item_neighbours(taken, 4)[2] == pytest.approx([cosine, 1 / np.sqrt(3), 1 / np.sqrt(3), 0])
    # The nearest of item 2 is item 1, which the first user has.
    assert item_neighbours(taken, 1)[0] == pytest.approx([cosine, cosine, 1 / np.sqrt(3), 0])


def test_a_factorization_finds_what_popularity_does_not() -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 3
    taken = (kind[:, None] == np.arange(30) % 3) & (rng.random((60, 30)) < 0.7)
    seen = taken & (rng.random(taken.shape) < 0.7)
    wanted = (kind[:, None] == np.arange(30) % 3) & ~seen
    found = ranking_metrics(bpr(seen, width=4, epochs=60), seen, wanted)
    assert found["ndcg_10"] > 0.9 > 0.6 > ranking_metrics(popularity(seen), seen, wanted)["ndcg_10"]
    assert np.array_equal(bpr(seen, width=4, epochs=2), bpr(seen, width=4, epochs=2))
