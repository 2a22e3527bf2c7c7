"""Figures of a classifier that learns tasks one after the other. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def task_accuracies(
    logits: np.ndarray, targets: np.ndarray, tasks: np.ndarray, candidates: np.ndarray, count: int
) -> list[float]:
    """Returns the accuracy on each of the first tasks.

    Args:
        logits: float (n, outputs).
        targets: int (n,), the right outputs.
        tasks: int (n,), the task of each row, from 0.
        candidates: bool (outputs, outputs): by the right output, which outputs may be answered.
        count: how many tasks; each must have rows.
    """
    right = np.where(candidates[targets], logits, -np.inf).argmax(axis=1) == targets
    return [float(right[tasks == task].mean()) for task in range(count)]


def continual_metrics(accuracies: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns what is left after T tasks, of the accuracies a(i, j) on task j after task i.

    `accuracy` is the mean of a(T, j) over all tasks, and `backward_transfer` that of a(T, j) - a(j, j) over
    all but the last one (Lopez-Paz & Ranzato 2017, https://arxiv.org/abs/1706.08840). `forgetting` is the
    mean of the largest a(i, j) with i < T, less a(T, j), over all but the last one (Chaudhry et al. 2018,
    https://arxiv.org/abs/1801.10112, section 3).

    Args:
        accuracies: a row after each task, of two at least; row i has i values, those of the tasks so far.

    Raises:
        ValueError: they are not of that form.
    """
    count = len(accuracies)
    if count < 2 or [len(row) for row in accuracies] != list(range(1, count + 1)):
        raise ValueError(
            "Accuracies are needed on task 1, then on tasks 1 and 2, and so on. Received rows of "
            f"{[len(row) for row in accuracies]}."
        )
    last = accuracies[-1]
    earlier = range(count - 1)
    best = [max(accuracies[after][task] for after in range(task, count - 1)) for task in earlier]
    return {
        "accuracy": float(np.mean(last)),
        "forgetting": float(np.mean([best[task] - last[task] for task in earlier])),
        "backward_transfer": float(np.mean([last[task] - accuracies[task][task] for task in earlier])),
    }
