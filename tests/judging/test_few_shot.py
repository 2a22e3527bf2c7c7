"""Figures over tasks, and the baselines, against direct computations and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from karpa_tf.judging.few_shot import (
    best_setting,
    few_shot_metrics,
    logistic_regression,
    mean_and_interval,
    nearest_centroid,
    score,
    task_scores,
)


def clusters(tasks: int, ways: int, each: int, seed: int = 0) -> list[np.ndarray]:
    """Tasks (support, labels, query, labels) of points around a centre a class, some of which overlap."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(np.arange(ways, dtype=np.int32), each), (tasks, 1))
    centres = rng.normal(size=(tasks, ways, 2, 3))
    points = [np.take_along_axis(centres, labels[..., None, None], 1) for _ in range(2)]
    support, query = (x + rng.normal(size=x.shape) for x in points)
    return [support.astype(np.float32), labels, query.astype(np.float32), labels]


def test_scores_and_intervals_are_those_of_a_direct_computation() -> None:
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 3, (600, 15))
    labels = rng.integers(0, 3, (600, 15), dtype=np.int32)
    scores = task_scores(np.eye(3)[answers], labels)
    each = [sum(a == b for a, b in zip(x, y, strict=True)) / 15 for x, y in zip(answers, labels, strict=True)]
    mean = sum(each) / 600
    half = 1.96 * (sum((x - mean) ** 2 for x in each) / 599 / 600) ** 0.5
    assert scores.tolist() == pytest.approx(each)
    assert mean_and_interval(scores) == pytest.approx((mean, half))


def test_intervals_hold_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        mean, half = mean_and_interval(rng.binomial(15, 0.8, 600) / 15)
        held += abs(mean - 0.8) <= half
    assert 930 < held < 970


def test_a_regression_is_scored_by_squared_errors_after_each_number_of_steps() -> None:
    labels = np.random.default_rng(0).normal(size=(4, 7, 1)).astype(np.float32)
    tasks = [(labels, labels, labels, labels)] * 3
    metric, scores = score(
        tasks, {"off": lambda s, _, q: np.stack([q + 2, q + 1]), "right": lambda s, _, q: q}
    )
    assert metric == "mse" and scores["off"].shape == (2, 12) and scores["right"].shape == (12,)
    found = few_shot_metrics(metric, scores["off"], [1, 5])
    expected = {"mse_after_1": 4, "mse_after_1_ci95": 0, "mse_after_5": 1, "mse_after_5_ci95": 0}
    assert found == pytest.approx({**expected, "mse": 1, "mse_ci95": 0}, abs=1e-6)
    assert few_shot_metrics(metric, scores["right"]) == {"mse": 0, "mse_ci95": 0}


def test_the_best_setting_is_that_of_the_last_steps() -> None:
    labels = np.zeros([2, 3, 1], np.float32)
    tasks = [(labels, labels, labels, labels)]
    chosen = best_setting(
        tasks, lambda x: lambda *_: np.stack([labels + 1 - x, labels + x]), [0.5, 0.1, np.nan]
    )
    assert chosen == 0.1


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"Answers \(2, 4, 5\) do not fit the labels \(2, 3\)"):
        task_scores(np.zeros([2, 4, 5]), np.zeros([2, 3], int))
    with pytest.raises(ValueError, match=r"Answers \(2, 3\) do not fit the labels \(2, 3, 1\)"):
        task_scores(np.zeros([2, 3]), np.zeros([2, 3, 1]))
    with pytest.raises(ValueError, match="Tasks are needed"):
        score([], {"centroid": nearest_centroid()})


@pytest.mark.parametrize(("ways", "each"), [(2, 1), (5, 1), (5, 6)])
def test_baselines_are_scikit_learns(ways: int, each: int) -> None:
    support, labels, query, _ = clusters(3, ways, each)
    centroid = nearest_centroid()(support, labels, query)
    logistic = logistic_regression(c=0.7)(support, labels, query)
    for task in range(3):
        x, q, y = support[task].reshape(ways * each, -1), query[task].reshape(ways * each, -1), labels[task]
        if each > 1:  # scikit-learn wants more rows than classes
            assert np.array_equal(NearestCentroid().fit(x, y).predict(q), centroid[task].argmax(-1))
        mean = x.mean(0)
        peer = LogisticRegression(C=0.7, fit_intercept=False, tol=1e-9, max_iter=10_000).fit(x - mean, y)
        logits = logistic[task] - logistic[task].mean(-1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        theirs = peer.predict_proba(q - mean)
        if ways > 2:  # of two classes scikit-learn's has one vector of weights
            assert probabilities == pytest.approx(theirs, abs=1e-3)
        assert np.array_equal(probabilities.argmax(-1), theirs.argmax(-1))


def test_baselines_see_the_features_they_are_given() -> None:
    support, labels, query, _ = tasks = clusters(40, 4, 5)
    only = {"first": lambda x: x[:, 0], "raw": lambda x: x.reshape(len(x), -1)}
    for make in (nearest_centroid, logistic_regression):
        _, scores = score([tasks], {name: make(features) for name, features in only.items()})
        assert 0.35 < scores["first"].mean() < scores["raw"].mean() < 0.95
        direct = make()(support[:, :, 0], labels, query[:, :, 0])
        assert np.allclose(direct, make(only["first"])(support, labels, query))
