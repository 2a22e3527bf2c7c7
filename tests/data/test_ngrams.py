from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from karpa_tf.data.ngrams import NgramCounts, baselines
from karpa_tf.data.text import TokenizedSplit

# Two documents: the pair (3, 4) across their border does not count.
PIECES = np.array([5, 6, 7, 5, 6, 8, 5, 9, 7, 5, 6, 3, 4, 6, 7], np.uint16)
SPLIT = TokenizedSplit(PIECES, np.array([0, 12, 15]))
SIZE = 10


def naive_bigram(left: int, right: int) -> np.ndarray:
    one = np.bincount(PIECES, minlength=SIZE)
    pairs = np.zeros((SIZE, SIZE))
    for begin, end in ((0, 12), (12, 15)):
        for a, b in zip(PIECES[begin : end - 1], PIECES[begin + 1 : end], strict=True):
            pairs[a, b] += 1
    seen_left = left >= 0 and pairs[left].any()
    seen_right = right >= 0 and pairs[:, right].any()
    if seen_left and seen_right:
        scores = (pairs[left] + 0.1) * (pairs[:, right] + 0.1) / (one + 0.1)
    elif seen_left:
        scores = pairs[left] + 0.1
    elif seen_right:
        scores = pairs[:, right] + 0.1
    else:
        scores = one + 0.1
    return scores / scores.sum()


def test_bigram_scores_equal_those_of_a_full_matrix(monkeypatch) -> None:
    monkeypatch.setattr("karpa_tf.data.ngrams._CHUNK", 4)  # counts are added up over chunks
    counts = NgramCounts(SPLIT, SIZE, np.ones(SIZE, bool))
    np.testing.assert_array_equal(counts.unigrams, np.bincount(PIECES, minlength=SIZE))
    for left in range(-1, SIZE):
        for right in range(-1, SIZE):
            np.testing.assert_allclose(counts.bigram(left, right), naive_bigram(left, right))


def test_baselines_see_the_true_neighbours() -> None:
    counts = NgramCounts(SPLIT, SIZE, np.ones(SIZE, bool))
    # 5 [MASK] 7, with the 7 hidden as well: the baseline is told that it is a 7.
    features = {
        "token_ids": tf.constant([[5, 1, 1, 0]]),
        "padding_mask": tf.constant([[True, True, True, False]]),
        "masked_positions": tf.constant([[1, 2]]),
    }
    labels, weights = tf.constant([[6, 7]]), tf.constant([[1.0, 1.0]])
    figures = baselines(counts, [(features, labels, weights)])
    first, second = naive_bigram(5, 7), naive_bigram(6, -1)
    hits = [first.argmax() == 6, second.argmax() == 7]
    assert figures["bigram"]["top1_accuracy"] == np.mean(hits)
    loss = -(math.log(first[6]) + math.log(second[7])) / 2
    assert math.isclose(figures["bigram"]["loss"], loss)
    assert math.isclose(figures["bigram"]["perplexity"], math.exp(loss))
