"""Tasks: few examples to learn from, and queries to answer; batches of them that can be rebuilt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation, augment
from karpa_tf.data.batches import Batches, slice_part
from karpa_tf.data.sources import DataRecord, Split
from karpa_tf.lines import InALine, in_a_line

# Numbers that keep the random streams of a step apart.
_SUPPORT, _QUERY = 7, 8


class TaskBatch(NamedTuple):
    """Several tasks: t of them, with k examples and n queries each.

    Attributes:
        support: float32 (t, k, ...): the examples to learn from.
        support_labels: int32 (t, k), 0 to ways - 1; of a regression float32 (t, k, outputs).
        query: float32 (t, n, ...): what is to be answered.
        query_labels: the right answers, (t, n), as `support_labels`.
    """

    support: Any
    support_labels: Any
    query: Any
    query_labels: Any

    def __repr__(self) -> str:
        names = ("support", "support_labels", "query", "query_labels")
        return in_a_line("TaskBatch", dict(zip(names, self, strict=True)))


class Tasks(InALine, ABC):
    """Where tasks come from.

    Attributes:
        shape: of one example.
        ways: classes of a task; 0: its labels are numbers, a regression.
        outputs: what a network answers with for each example: a logit a class, or so many numbers.
    """

    shape: tuple[int, ...]
    ways: int
    outputs: int

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int, *, shots: int, queries: int) -> TaskBatch:
        """Draws tasks.

        Args:
            rng: which ones, together with its state alone.
            count: of tasks.
            shots: examples in the support set, of each class where there are such.
            queries: the same for the query set; no example is in both.

        Returns:
            NumPy arrays; rows of a class are together, class 0 first.
        """


@dataclass(frozen=True, repr=False)
class TaskData(InALine):
    """Tasks by split.

    Attributes:
        name: what the user typed.
        splits: the tasks. No class of one split is in another.
        record: what a run notes of the data; its sizes are classes.
        notes: lines that the user should read.
        inverted: whether images were dark on light, and were inverted.
    """

    name: str
    splits: dict[Split, Tasks]
    record: DataRecord
    notes: list[str] = field(default_factory=list)
    inverted: bool = False


def task_batches(
    tasks: Tasks,
    *,
    meta_batch: int,
    shots: int,
    queries: int,
    seed: int,
    steps_per_epoch: int,
    augmentation: Augmentation | None = None,
) -> Batches:
    """Returns batches of tasks; an element is a `TaskBatch` of tensors.

    Args:
        tasks: where they come from.
        meta_batch: tasks of a batch.
        shots: examples of a class (or of a regression) to learn from.
        queries: the same to answer.
        seed: batch number i depends on the seed and i alone.
        steps_per_epoch: there is no pass over all tasks: how many batches are called one.
        augmentation: how images are changed, each in its own way; None: not at all.
    """

    def sample(step: np.ndarray) -> list[np.ndarray]:
        # The 3 keeps the numbers apart from those that other parts draw of the same seed.
        rng = np.random.default_rng((seed, 3, int(step)))
        return list(tasks.sample(rng, meta_batch, shots=shots, queries=queries))

    example = tasks.sample(np.random.default_rng(seed), 1, shots=shots, queries=queries)

    def changed(images: tf.Tensor, step: tf.Tensor, stream: int) -> tf.Tensor:
        assert augmentation
        flat = tf.reshape(images, [-1, *tasks.shape])
        numbers = tf.random.experimental.stateless_fold_in([seed, stream], tf.cast(step, tf.int32))
        random = tf.random.stateless_uniform([flat.shape[0], 8], numbers)
        return tf.reshape(augment(flat, augmentation, random), images.shape)

    def load(step: tf.Tensor, part: int, parts: int) -> TaskBatch:
        arrays = tf.numpy_function(sample, [step], [array.dtype for array in example], stateful=False)
        shapes = [[meta_batch, *of.shape[1:]] for of in example]
        batch = TaskBatch(*map(tf.ensure_shape, arrays, shapes))
        if augmentation:
            support = changed(batch.support, step, _SUPPORT)
            query = changed(batch.query, step, _QUERY)
            batch = TaskBatch(support, batch.support_labels, query, batch.query_labels)
        return TaskBatch(*(slice_part(array, part, parts) for array in batch))

    return Batches(load, steps_per_epoch, meta_batch)
