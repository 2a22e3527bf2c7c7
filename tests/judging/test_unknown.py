"""What is unknown: thresholds that keep what they promise, statistics, figures."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.judging import unknown

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("rows", "rate"), [(20, 0.05), (99, 0.1), (500, 0.05)])
def test_a_threshold_lets_no_more_than_the_rate_of_known_rows_be_called_unknown(rows, rate) -> None:
    """Over many draws: at most the rate, and at least the rate without 1 / (n + 1)."""
    thresholds = [unknown.conformal_threshold(RNG.normal(size=rows), rate) for _ in range(4000)]
    above = (RNG.normal(size=[4000, 200]) > np.array(thresholds)[:, None]).mean()
    assert rate - 1 / (rows + 1) - 0.004 < above < rate + 0.004


def test_a_threshold_is_the_score_of_a_known_rank() -> None:
    scores = RNG.permutation(99).astype(float)
    assert unknown.conformal_threshold(scores, 0.05) == 94  # the 95th of 99
    assert unknown.conformal_threshold(scores, 0.01) == 98
    assert [unknown.rows_needed(rate) for rate in (0.5, 0.05, 0.01)] == [20, 20, 99]
    with pytest.raises(ValueError, match=r"99 scores are needed\. Received: 98"):
        unknown.conformal_threshold(scores[:98], 0.01)


def test_rows_are_taken_of_each_class() -> None:
    labels = np.array([0] * 1000 + [1] * 3 + [2] * 100)
    places = unknown.some_of_each(labels, 60)
    counts = np.bincount(labels[places])
    assert len(set(places)) == len(places) and counts[1] == 3 and (counts[[0, 2]] <= 20).all()
    assert (counts[[0, 2]] > 10).all()


def test_figures_of_what_is_unknown() -> None:
    """Four known rows of two classes, of which one is called unknown; two unknown ones, one of them found."""
    labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 0, 0, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.4])
    found = unknown.unknown_figures(labels, predictions, scores, 0.5, 2)
    assert found["called_unknown"] == 0.25
    assert found["unknown_f1"] == pytest.approx(0.5)  # one of two found, one of two right
    # Class 0: one of two found and nothing else; class 1: one found, two of another called so.
    assert found["open_f1"] == pytest.approx(np.mean([2 / 3, 2 / 5, 1 / 2]))
    assert found["unknown_auroc"] == pytest.approx(6 / 8)
    assert unknown.unknown_figures(labels[:4], predictions[:4], scores[:4], 0.5, 2) == {
        "called_unknown": 0.25
    }
