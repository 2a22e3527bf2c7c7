"""A stream of tasks: which classes each has, and what is right and what may be answered in each scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.training.losses import SparseCrossEntropy

from . import ContinualSettings, Kind


@dataclass(frozen=True, repr=False)
class Stream(InALine):
    """Tasks in one of three scenarios (van de Ven & Tolias 2019, https://arxiv.org/abs/1904.07734).

    Attributes:
        kind: the scenario.
        classes: all of them, in the data's order.
        tasks: the classes of each task.
    """

    kind: Kind
    classes: list[str]
    tasks: list[list[str]]

    @property
    def names(self) -> list[str]:
        """What the outputs stand for: a class each; domain: the classes of one place in their tasks."""
        if self.kind != "domain":
            return self.classes
        return ["/".join(same) for same in zip(*self.tasks, strict=True)]

    def task_of(self, labels: Sequence[str]) -> np.ndarray:
        """Returns the task int (n,) that each of some classes is in, from 0."""
        place = {label: task for task, classes in enumerate(self.tasks) for label in classes}
        return np.array([place[label] for label in labels], int)

    def targets(self, labels: Sequence[str]) -> np.ndarray:
        """Returns the output int32 (n,) that is right for each of some classes."""
        place = {label: number for number, label in enumerate(self.classes)}
        if self.kind == "domain":
            place = {label: number for task in self.tasks for number, label in enumerate(task)}
        return np.array([place[label] for label in labels], np.int32)

    def candidates(self, seen: int) -> np.ndarray:
        """Returns bool (outputs, outputs): by the right output, which may be answered after so many tasks."""
        if self.kind == "domain":
            return np.ones([len(self.names)] * 2, bool)
        task = self.task_of(self.classes)
        if self.kind == "task":
            return task[:, None] == task[None, :]
        return np.broadcast_to(task < seen, [len(task)] * 2).copy()

    def of_task(self, task: int, seen: int) -> np.ndarray:
        """Returns bool (outputs,): what may be answered for a row of a task, from 0, after so many tasks."""
        return self.candidates(seen)[self.targets(self.tasks[task][:1])[0]]


def deal(classes: Sequence[str], config: ContinualSettings) -> Stream:
    """Deals classes into tasks of one size, or of two where they do not fit.

    Raises:
        UserError: there are too few, or they do not fit and the scenario wants that, or the buffer cannot
            hold a row of each.
    """
    count, least = len(classes), 1 if config.stream == "class" else 2
    if config.tasks * least > count:
        most = count // least
        raise UserError(
            f"{config.data} has {count} classes, and {config.tasks} tasks of stream {config.stream} need "
            f"{config.tasks * least}: --tasks may be {most} at most."
            if most > 1
            else f"{config.data} has {count} classes: too few for two tasks of stream {config.stream}."
        )
    if config.stream == "domain" and count % config.tasks:
        raise UserError(
            f"Tasks of stream domain have as many classes each, and {count} of {config.data} cannot be dealt "
            f"into {config.tasks}: give --tasks another number."
        )
    if config.method == "replay" and config.buffer < count:
        raise UserError(
            f"The buffer must hold a row of each of the {count} classes of {config.data} at least. Received: "
            f"buffer {config.buffer}."
        )
    order = np.arange(count)
    if config.shuffle:
        order = np.random.default_rng((config.seed, 10)).permutation(count)
    tasks = [[classes[place] for place in places] for places in np.array_split(order, config.tasks)]
    return Stream(config.stream, list(classes), tasks)


def among(candidates: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns logits (n, outputs), hopeless where an output may not be answered beside the right one.

    Args:
        candidates: bool (outputs, outputs), of `Stream.candidates`.
        targets: (n,), the right outputs; Keras makes floats of them.
        logits: float32 (n, outputs).
    """
    return tf.where(tf.gather(candidates, tf.reshape(tf.cast(targets, tf.int32), [-1])), logits, -1e9)


class CandidatesCrossEntropy(SparseCrossEntropy):
    """Cross-entropy of the outputs that may be answered.

    Args:
        candidates: bool (outputs, outputs), of `Stream.candidates`.
    """

    def __init__(self, candidates: np.ndarray) -> None:
        super().__init__()
        self.candidates = tf.constant(candidates)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """int targets (n,) and float32 logits (n, outputs) to losses (n,)."""
        return super().call(y_true, among(self.candidates, y_true, y_pred))
