"""Figures row by row: intervals, pairs of runs, groups."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.judging.by_row import (
    ByRow,
    adjusted,
    apart,
    by_group,
    compare,
    equalized_odds_gaps,
    of_labels,
    of_tags,
    of_values,
)
from karpa_tf.judging.tagging import tag_metrics

NAMES = ["a", "b", "c"]


def labelled(count: int, right: np.ndarray, seed: int = 0) -> ByRow:
    """A classifier that has those rows right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    found = np.where(right, labels, (labels + 1) % 3)
    probabilities = np.full((count, 3), 0.1, np.float32)
    probabilities[np.arange(count), found] = 0.8
    return of_labels([f"text {i}" for i in range(count)], labels, probabilities, NAMES)


def test_figures_are_those_of_the_metrics() -> None:
    right = np.arange(200) % 5 != 0
    assert labelled(200, right).figure == pytest.approx(right.mean())
    words = [["Ada", "Lovelace", "wrote"], ["in", "Turin"], ["nothing"]]
    true = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["O"]]
    predicted = [["B-PER", "I-PER", "O"], ["B-LOC", "O"], ["O"]]
    own = of_tags(words, true, predicted)
    assert own.figure == pytest.approx(tag_metrics(true, predicted)["f1_strict"])
    assert list(own.truth) == ["PER Ada Lovelace", "LOC Turin", "nothing"] and own.answers[1] == "LOC in"
    assert of_tags([["x"]], [["O"]], [["O"]]).figure == 0.0, "without any entity, as tag_metrics says"


def test_an_interval_is_that_of_the_binomial_where_rows_are_right_or_wrong() -> None:
    right = np.arange(1000) < 800
    low, high = labelled(1000, right).interval()
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.002)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = [
        low <= 0.3 <= high
        for low, high in (
            of_values(["x"] * 80, rng.exponential(0.3, 80)).interval(seed) for seed in range(50)
        )
    ]
    assert 0.84 <= np.mean(held) < 1


def test_pairs_of_labels_get_mcnemars_exact_test() -> None:
    base = np.ones(100, bool)
    first, second = base.copy(), base.copy()
    first[:2], second[2:14] = False, False
    pair = compare(labelled(100, first), labelled(100, second))
    assert pair.test == "McNemar's exact test"
    assert (pair.only_first, pair.only_second) == (12, 2)
    # Twice the probability of 2 or fewer of 14 fair coins: (1 + 14 + 91) / 2**14.
    assert pair.p == pytest.approx(2 * 106 / 2**14)
    assert pair.difference == pytest.approx(-0.10) and pair.low < -0.10 < pair.high < 0
    same = compare(labelled(100, first), labelled(100, first))
    assert same.p == 1.0 and same.difference == 0.0 == same.low == same.high


def test_pairs_of_values_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 10, 50)
    rows = [f"seed {i}" for i in range(50)]
    pair = compare(of_values(rows, values), of_values(rows, values + 1 + rng.normal(0, 0.5, 50)))
    assert pair.test == "paired bootstrap" and pair.p < 0.001 and 0.7 < pair.low < 1 < pair.high < 1.3
    nothing = compare(of_values(rows, values), of_values(rows, values + rng.normal(0, 5, 50)))
    assert nothing.p > 0.05 and nothing.only_first is None


def test_other_rows_are_no_pair() -> None:
    with pytest.raises(ValueError, match="same rows"):
        compare(of_values(["a"], np.ones(1)), of_values(["b"], np.ones(1)))


def test_several_comparisons_are_corrected_as_holm_does() -> None:
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_rows_that_are_lost_come_first() -> None:
    first, second = np.ones(6, bool), np.ones(6, bool)
    second[4], first[1], second[2] = False, False, False
    one, other = labelled(6, first), labelled(6, second)
    other.likelihoods[2] = 0.3
    places = apart(one, other, 10)
    assert list(places) == [4, 2, 1], "lost, the surest first; then what was won"
    assert list(apart(one, other, 1)) == [4]
    low, high = of_values(["x", "y"], np.array([1.0, 5.0]), lower=True), np.array([4.0, 1.0])
    assert list(apart(low, of_values(["x", "y"], high, lower=True), 2)) == [0, 1], (
        "of losses, larger is worse"
    )


def test_groups_have_figures_and_a_smallest_one() -> None:
    right = np.array([True, True, False, True, False, False])
    rows = by_group(labelled(6, right), ["x", "x", "x", "x", "y", "y"])
    assert [(row["group"], row["rows"], row["figure"]) for row in rows] == [("x", 4, 0.75), ("y", 2, 0.0)]
    assert rows[1]["low"] == rows[1]["high"] == 0.0 and rows[0]["low"] < 0.75 < rows[0]["high"]


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_fairlearns(seed) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(seed)
    truth = rng.choice(NAMES, 300, p=[0.6, 0.3, 0.1])
    answers = np.where(rng.random(300) < 0.7, truth, rng.choice(NAMES, 300))
    groups = rng.choice(["x", "y", "z"], 300, p=[0.7, 0.25, 0.05])
    gaps = equalized_odds_gaps(truth.tolist(), answers.tolist(), groups.tolist())
    for name in NAMES:
        expected = fairlearn.equalized_odds_difference(
            truth == name, answers == name, sensitive_features=groups
        )
        assert gaps[name] == pytest.approx(expected, abs=1e-9)
    figures = fairlearn.MetricFrame(
        metrics=lambda a, b: float(np.mean(a == b)),
        y_true=truth,
        y_pred=answers,
        sensitive_features=groups,
    ).by_group
    places = np.array([NAMES.index(name) for name in answers])
    probabilities = np.eye(3, dtype=np.float32)[places]
    labels = np.array([NAMES.index(name) for name in truth])
    own = of_labels([str(i) for i in range(300)], labels, probabilities, NAMES)
    for row in by_group(own, groups.tolist()):
        assert row["figure"] == pytest.approx(figures[row["group"]], abs=1e-9)
