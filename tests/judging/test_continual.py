from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.judging.continual import continual_metrics, task_accuracies


@pytest.mark.parametrize(
    ("accuracies", "accuracy", "forgetting", "backward"),
    [
        # The first task was best after itself: 0.9 - 0.7; the second: 0.8 - 0.5.
        ([[0.9], [0.6, 0.8], [0.7, 0.5, 0.9]], 0.7, 0.25, -0.25),
        # The first task got better by the second one: forgotten is what was lost of the best.
        ([[0.5], [0.9, 0.8], [0.7, 0.8, 0.9]], 0.8, 0.1, 0.1),
        # What the last task has added to an earlier one is no memory lost: forgetting below 0.
        ([[0.5], [0.9, 0.8]], 0.85, -0.4, 0.4),
    ],
)
def test_forgetting_and_backward_transfer_by_hand(accuracies, accuracy, forgetting, backward) -> None:
    found = continual_metrics(accuracies)
    assert found == pytest.approx(
        {"accuracy": accuracy, "forgetting": forgetting, "backward_transfer": backward}
    )


@pytest.mark.parametrize("accuracies", [[], [[0.5]], [[0.5, 0.5], [0.5, 0.5]], [[0.5], [0.5]]])
def test_what_is_no_matrix_of_accuracies_is_refused(accuracies) -> None:
    with pytest.raises(ValueError, match="on task 1, then on tasks 1 and 2"):
        continual_metrics(accuracies)


def test_only_what_may_be_answered_counts() -> None:
    logits = np.array([[1.0, 0, 9, 0], [0, 1, 9, 9], [9, 0, 1, 2], [9, 9, 0, 1]])
    targets, tasks = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    own = tasks[:, None] == tasks[None, :]
    assert task_accuracies(logits, targets, tasks, own, 2) == [1.0, 0.5]
    assert task_accuracies(logits, targets, tasks, np.ones([4, 4], bool), 2) == [0.0, 0.0]
    assert task_accuracies(logits, targets, tasks, np.ones([4, 4], bool) & (tasks < 1), 1) == [1.0]
