"""Figures over many tasks, with intervals, and the plain classifiers to be beaten. Arrays in, numbers out.

A task has a support set to learn from and a query set to answer; t tasks come at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Support [t, k, ...], labels [t, k] or [t, k, outputs] and queries [t, n, ...] to answers [t, n, ways] (the
# largest counts) or [t, n, outputs]; after several numbers of steps [steps, t, n, ...].
Predict = Callable[[Any, Any, Any], Any]
# Examples [rows, ...] to their features [rows, d].
Features = Callable[[np.ndarray], Any]


# --- Figures --------------------------------------------------------------------------------------


def score(
    tasks: Iterable[Sequence[Any]], predictors: Mapping[str, Predict]
) -> tuple[str, dict[str, np.ndarray]]:
    """Evaluates predictors on the same tasks.

    Args:
        tasks: batches of (support, support labels, query, query labels), a size each that fits into memory.
        predictors: by name.

    Returns:
        `accuracy`, or `mse` (the mean squared error) where the labels are numbers; and by the predictor's
        name its value for each task, float64 (tasks,), or (steps, tasks) of answers after several steps.

    Raises:
        ValueError: there are no tasks, or answers do not fit the labels.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    metric = ""
    for support, support_labels, query, query_labels in tasks:
        labels = np.asarray(query_labels)
        metric = "accuracy" if labels.dtype.kind in "iu" else "mse"
        for name, predict in predictors.items():
            found[name].append(task_scores(np.asarray(predict(support, support_labels, query)), labels))
    if not metric:
        raise ValueError("Tasks are needed, one at least.")
    return metric, {name: np.concatenate(scores, axis=-1) for name, scores in found.items()}


def task_scores(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the accuracy, or the mean squared error, of each task.

    Args:
        outputs: [..., t, n, ways], or [..., t, n, outputs] of a regression.
        labels: int (t, n), or float (t, n, outputs).

    Returns:
        float64 [..., t].

    Raises:
        ValueError: they do not fit.
    """
    classes = labels.dtype.kind in "iu"
    shape = outputs.shape[:-1] if classes else outputs.shape
    if shape[-labels.ndim :] != labels.shape:
        raise ValueError(f"Answers {outputs.shape} do not fit the labels {labels.shape}.")
    if classes:
        return (outputs.argmax(axis=-1) == labels).mean(axis=-1, dtype=np.float64)
    return np.square(outputs.astype(np.float64) - labels).mean(axis=(-2, -1))


def mean_and_interval(scores: np.ndarray) -> tuple[float, float]:
    """Returns the mean over tasks, and the half width of its 95 % interval: 1.96 standard errors.

    Args:
        scores: (tasks,), 2 at least.
    """
    return float(scores.mean()), float(1.96 * scores.std(ddof=1) / np.sqrt(len(scores)))


def few_shot_metrics(metric: str, scores: np.ndarray, steps: Sequence[int] = ()) -> dict[str, float]:
    """Returns what `metrics.json` holds of one predictor.

    Args:
        metric: `accuracy` or `mse`.
        scores: (tasks,), or (steps, tasks).
        steps: the numbers of steps.

    Returns:
        `accuracy` and `accuracy_ci95` (or `mse`), after the last number of steps; and `accuracy_after_5`,
        `accuracy_after_5_ci95` for each, if there are several.
    """
    found: dict[str, float] = {}
    names = [metric] if scores.ndim == 1 else [f"{metric}_after_{number}" for number in steps] + [metric]
    rows = [scores] if scores.ndim == 1 else [*scores, scores[-1]]
    for name, row in zip(names, rows, strict=True):
        found[name], found[f"{name}_ci95"] = mean_and_interval(row)
    return found


def best_setting(
    tasks: Sequence[Sequence[Any]], make: Callable[[float], Predict], settings: Sequence[float]
) -> float:
    """Returns the setting of a predictor that is best on validation tasks, after its last number of steps.

    Args:
        tasks: batches of tasks, as for `score`.
        make: the predictor by its setting, e.g. the rate of fine-tuning.
        settings: what to try.
    """
    metric, scores = score(tasks, {str(setting): make(setting) for setting in settings})
    sign = 1 if metric == "accuracy" else -1
    means = [sign * np.atleast_2d(scores[str(setting)])[-1].mean() for setting in settings]
    return settings[int(np.argmax(np.nan_to_num(means, nan=-np.inf)))]


# --- Baselines ------------------------------------------------------------------------------------


def flat(examples: np.ndarray) -> np.ndarray:
    """Returns raw features: examples (rows, ...) as (rows, d)."""
    return examples.reshape(len(examples), -1)


def nearest_centroid(features: Features = flat) -> Predict:
    """Returns the classifier that answers with the class whose mean is nearest.

    Args:
        features: of examples.
    """

    def predict(support: Any, labels: Any, query: Any) -> np.ndarray:
        support, query, members = _prepared(features, support, labels, query)
        centroids = members.transpose(0, 2, 1) @ support / members.sum(1)[..., None]
        # The query's own square is the same for all classes.
        return 2 * query @ centroids.transpose(0, 2, 1) - np.square(centroids).sum(-1)[:, None]

    return predict


def logistic_regression(features: Features = flat, c: float = 1.0) -> Predict:
    """Returns the classifier that fits a logistic regression to each support set.

    It is scikit-learn's: `c` times the sum of the cross entropies, and half the square of the weights, are
    minimized. In the place of an intercept the features are centred by the mean of the support set.

    Args:
        features: of examples.
        c: the weight of the data; scikit-learn's default is 1.
    """

    def predict(support: Any, labels: Any, query: Any) -> np.ndarray:
        support, query, members = _prepared(features, support, labels, query)
        mean = support.mean(1, keepdims=True)
        support, query = support - mean, query - mean
        weights = support.transpose(0, 2, 1) @ _dual(support @ support.transpose(0, 2, 1), members, c)
        return query @ weights

    return predict


def _dual(kernel: np.ndarray, members: np.ndarray, c: float) -> np.ndarray:
    """Returns a (t, k, ways): with the features X of a support set `X^T a` are the weights of its regression.

    Accelerated gradient descent (Nesterov 2004, Introductory Lectures on Convex Optimization, section 2.2).
    The gradient of the weights is `X^T (a + c (p - y))`, so that a step of the weights is a step of a.
    """
    # Second derivatives lie between 1 and this: those of the cross entropy are 1/2 at most.
    kernel = kernel.astype(np.float64)
    largest = 1 + c / 2 * np.linalg.eigvalsh(kernel)[:, -1:, None]
    momentum = (np.sqrt(largest) - 1) / (np.sqrt(largest) + 1)
    a = ahead = np.zeros(members.shape)
    for _ in range(2000):
        logits = kernel @ ahead
        p = np.exp(logits - logits.max(-1, keepdims=True))
        slope = ahead + c * (p / p.sum(-1, keepdims=True) - members)
        before, a = a, ahead - slope / largest
        ahead = a + momentum * (a - before)
        if np.abs(slope).max() < 1e-4 * c:
            break
    return a


def _prepared(
    features: Features, support: Any, labels: Any, query: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features of support and query (t, rows, d), and which row is of which class (t, k, ways)."""

    def of(examples: Any) -> np.ndarray:
        examples = np.asarray(examples)
        rows = np.asarray(features(examples.reshape(-1, *examples.shape[2:])), np.float32)
        return rows.reshape(*examples.shape[:2], -1)

    labels = np.asarray(labels)
    return of(support), of(query), np.eye(labels.max() + 1, dtype=np.float32)[labels]
