"""Tasks: few examples to learn from, and queries to answer; batches of them that can be rebuilt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches, slice_part
from karpa_tf.data.sources import DataRecord, Split
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine


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
    """

    name: str
    splits: dict[Split, Tasks]
    record: DataRecord
    notes: list[str] = field(default_factory=list)


def task_batches(
    tasks: Tasks, *, meta_batch: int, shots: int, queries: int, seed: int, steps_per_epoch: int
) -> Batches:
    """Returns batches of tasks; an element is a `TaskBatch` of tensors.

    Args:
        tasks: where they come from.
        meta_batch: tasks of a batch.
        shots: examples of a class (or of a regression) to learn from.
        queries: the same to answer.
        seed: batch number i depends on the seed and i alone.
        steps_per_epoch: there is no pass over all tasks: how many batches are called one.
    """

    def sample(step: np.ndarray) -> list[np.ndarray]:
        # The 3 keeps the numbers apart from those that other parts draw of the same seed.
        rng = np.random.default_rng((seed, 3, int(step)))
        return list(tasks.sample(rng, meta_batch, shots=shots, queries=queries))

    example = tasks.sample(np.random.default_rng(seed), 1, shots=shots, queries=queries)

    def load(step: tf.Tensor, part: int, parts: int) -> TaskBatch:
        arrays = tf.numpy_function(sample, [step], [array.dtype for array in example], stateful=False)
        return TaskBatch(
            *(
                slice_part(tf.ensure_shape(array, [meta_batch, *of.shape[1:]]), part, parts)
                for array, of in zip(arrays, example, strict=True)
            )
        )

    return Batches(load, steps_per_epoch, meta_batch)


class ClassTasks(Tasks):
    """Tasks of N ways made of examples with labels: each draws N classes, and examples of them.

    Args:
        examples: (rows, ...): float32, or uint8 of 0 to 255, which leaves as 0 to 1.
        labels: a class each.
        ways: classes of a task.

    Attributes:
        classes: their names, by the alphabet.
    """

    def __init__(self, examples: np.ndarray, labels: Sequence[str], ways: int) -> None:
        self.shape, self.ways, self.outputs = examples.shape[1:], ways, ways
        self.classes, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.examples = examples[np.argsort(places, kind="stable")]
        self._counts, self._starts = counts, np.cumsum(counts) - counts

    def sample(self, rng: np.random.Generator, count: int, *, shots: int, queries: int) -> TaskBatch:
        """Draws tasks: classes in any order, so that a class is another number in each task."""
        if self.ways > len(self.classes) or shots + queries > self._counts.min():
            raise UserError(
                f"{self.ways} ways of {shots} shots and {queries} queries need as many classes, of "
                f"{shots + queries} examples each. Received: {len(self.classes)} classes, the smallest of "
                f"{self._counts.min()}."
            )
        classes = _distinct(rng, np.full(count, len(self.classes)), self.ways)
        rows = _distinct(rng, self._counts[classes], shots + queries) + self._starts[classes][..., None]
        labels = np.arange(self.ways, dtype=np.int32)

        def of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            examples = self.examples[rows.reshape(count, -1)]
            if examples.dtype == np.uint8:
                examples = examples * np.float32(1 / 255)
            return examples, np.tile(np.repeat(labels, rows.shape[2]), (count, 1))

        return TaskBatch(*of(rows[..., :shots]), *of(rows[..., shots:]))


def _distinct(rng: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` different numbers below each of `sizes` (...), as int64 (..., count)."""
    left = sizes[..., None] - np.arange(count)
    drawn = (rng.random(left.shape) * left).astype(np.int64)
    # So far each is a place among the numbers left over by those before it.
    for i in range(1, count):
        for taken in np.moveaxis(np.sort(drawn[..., :i]), -1, 0):
            drawn[..., i] += drawn[..., i] >= taken
    return drawn
