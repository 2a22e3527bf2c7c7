"""Tasks made of examples with labels, split by class: tested are classes that were never trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from karpa_tf.data.sources import SPLITS, DataRecord, Split
from karpa_tf.errors import UserError
from karpa_tf.meta.tasks import TaskBatch, TaskData, Tasks

# How classes are split is part of the data: it must not change with a run's seed, its ways or its shots.
_SPLIT_SEED = 21
# A fifth of the classes is to validate on, and a fifth to test on; of few classes 5, or a third.
_SHARE, _FEW = 5, 5
# Of fewer alphabets none is spared for validation: its classes come from those that are trained on.
_MANY_GROUPS = 10


@dataclass(frozen=True)
class TaskSize:
    """How large tasks are.

    Attributes:
        ways: classes of a task.
        shots: examples of each class in the support set.
        queries: the same in the query set.

    Raises:
        UserError: fewer than 2 ways, or than 1 shot or query.
    """

    ways: int
    shots: int
    queries: int

    def __post_init__(self) -> None:
        if self.ways < 2 or self.shots < 1 or self.queries < 1:
            raise UserError(
                "A task has 2 ways, 1 shot and 1 query of each class at least. "
                f"Received: {self.ways} ways, {self.shots} shots, {self.queries} queries."
            )

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot tasks"


class ClassTasks(Tasks):
    """Tasks of N ways made of examples with labels: each draws N classes, and examples of them.

    Args:
        examples: (rows, ...): float32, or uint8 of 0 to 255, which leaves as 0 to 1.
        labels: a class each.
        ways: classes of a task.
        groups: an alphabet for each class: the classes of a task are of one alphabet then, which are harder to
            tell apart. An alphabet is drawn as often as it has classes; those of fewer than `ways` are not.
            None, or no alphabet that is large enough: of any.

    Attributes:
        classes: their names, by the alphabet.
        examples: sorted by their classes.
        places: int64 (rows,): the class of each.
    """

    def __init__(
        self,
        examples: np.ndarray,
        labels: Sequence[str],
        ways: int,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self.shape, self.ways, self.outputs = tuple(examples.shape[1:]), ways, ways
        classes, places, self._counts = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(places, kind="stable")
        self.classes, self.examples, self.places = classes.tolist(), examples[order], places[order]
        self._starts = np.cumsum(self._counts) - self._counts
        members: dict[str, list[int]] = {}
        for place, name in enumerate(self.classes):
            members.setdefault(groups[name] if groups else "", []).append(place)
        large = [places for places in members.values() if len(places) >= ways]
        # Places in `classes`, those of an alphabet one after the other.
        self._members = np.concatenate(large or [np.arange(len(self.classes))])
        self._sizes = np.array([len(places) for places in large] or [len(self.classes)])

    def sample(self, rng: np.random.Generator, count: int, *, shots: int, queries: int) -> TaskBatch:
        """Draws tasks: classes in any order, so that a class is another number in each task.

        Args:
            rng: which ones, together with its state alone.
            count: of tasks.
            shots: examples of each class in the support set.
            queries: the same in the query set.

        Raises:
            UserError: there are fewer classes, or examples of one, than a task needs.
        """
        least = int(self._counts.min())
        if self.ways > len(self.classes) or shots + queries > least:
            raise UserError(
                f"{TaskSize(self.ways, shots, queries)} need as many classes, of {shots} + {queries} "
                f"examples each. Received: {len(self.classes)} classes, the smallest of {least}."
            )
        begins, group = np.cumsum(self._sizes) - self._sizes, np.zeros(count, int)
        if len(self._sizes) > 1:
            group = rng.choice(len(self._sizes), count, p=self._sizes / self._sizes.sum())
        classes = self._members[_distinct(rng, self._sizes[group], self.ways) + begins[group][:, None]]
        rows = _distinct(rng, self._counts[classes], shots + queries) + self._starts[classes][..., None]
        return TaskBatch(*self._labelled(rows[..., :shots]), *self._labelled(rows[..., shots:]))

    def _labelled(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples of rows (tasks, ways, each), and their classes' numbers in their tasks."""
        labels = np.repeat(np.arange(self.ways, dtype=np.int32), rows.shape[2])
        return self.floats(rows.reshape(len(rows), -1)), np.tile(labels, (len(rows), 1))

    def floats(self, rows: Any) -> np.ndarray:
        """Returns examples by their places, (*rows, *shape), as they leave: float32."""
        examples = self.examples[rows]
        return examples * np.float32(1 / 255) if examples.dtype == np.uint8 else examples


def _distinct(rng: np.random.Generator, sizes: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` different numbers below each of `sizes` (...), as int64 (..., count)."""
    left = sizes[..., None] - np.arange(count)
    drawn = (rng.random(left.shape) * left).astype(np.int64)
    # So far each is a place among the numbers left over by those before it.
    for i in range(1, count):
        for taken in np.moveaxis(np.sort(drawn[..., :i]), -1, 0):
            drawn[..., i] += drawn[..., i] >= taken
    return drawn


# --- Splits ---------------------------------------------------------------------------------------


def split_by_class(
    labels: Sequence[str], given: Sequence[Split], groups: Mapping[str, str] | None = None
) -> dict[Split, np.ndarray]:
    """Splits rows by class, always in the same way.

    Splits that the data brings stand if no class is in two of them; else the classes of all rows are split,
    and rows of a test split that are of a training or validation class are left out.

    Args:
        labels: of the rows.
        given: the split that each row comes in.
        groups: an alphabet for each class. Those tested on are of other alphabets than those trained on; so
            are those validated on where there are 10 alphabets or more. None: there are no alphabets.

    Returns:
        The places of the rows by split, rising; a split is empty where there are too few classes or groups.
    """
    homes: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for label, split in zip(labels, given, strict=True):
        homes[split].add(label)
    apart = len(set(labels)) == sum(map(len, homes.values()))
    if not apart:
        homes = {**homes, "train": set(labels), "validation": set(), "test": set()}
    groups = groups or {label: label for label in labels}
    many = len(set(groups.values())) >= _MANY_GROUPS
    for split, most in (("test", 1 / 3), ("validation", 1 / 2)):
        if not homes[split]:
            by = groups if split == "test" or many else {label: label for label in labels}
            homes[split] = _held_out(homes["train"], by, most)
            homes["train"] -= homes[split]
    of = {label: split for split, members in homes.items() for label in members}
    seen = [apart or of[x] == "test" or split != "test" for x, split in zip(labels, given, strict=True)]
    return {
        split: np.array([i for i, x in enumerate(labels) if of[x] == split and seen[i]], int)
        for split in SPLITS
    }


def _held_out(classes: set[str], groups: Mapping[str, str], most: float) -> set[str]:
    """Returns the classes of a fifth of the groups, or some more of few classes, at `most` that share."""
    names = sorted({groups[x] for x in classes})
    count = round(len(names) / _SHARE)
    if len(names) == len(classes):  # no alphabets
        count = max(count, min(_FEW, int(most * len(names))))
    elif len(names) > 1:
        count = max(count, 1)
    held_out = {names[i] for i in np.random.default_rng(_SPLIT_SEED).permutation(len(names))[:count]}
    return {x for x in classes if groups[x] in held_out}


def test_alone(given: Sequence[Split]) -> dict[Split, np.ndarray]:
    """Returns the places of the rows to evaluate on: those of the test split, or else all."""
    own = [i for i, split in enumerate(given) if split == "test"]
    return {"test": np.array(own or range(len(given)), int)}


def first_places(keys: Sequence[Any]) -> list[int]:
    """Returns the places of the rows whose key none before them has, so that no query is in the support."""
    return sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values())


def class_data(
    name: str,
    rows: Mapping[Split, tuple[np.ndarray, Sequence[str]]],
    size: TaskSize,
    unit: str,
    notes: list[str],
    groups: Mapping[str, str] | None = None,
) -> TaskData:
    """Returns tasks of labelled examples that are split by class.

    Args:
        name: what the user typed.
        rows: examples (n, ...) and their labels, by split.
        size: of the tasks. Classes with fewer examples are left out, and a note counts them.
        unit: what an example is: `image`.
        notes: lines that the user should read.
        groups: of the classes to train on; see `ClassTasks`.

    Raises:
        UserError: a split has fewer classes than a task.
    """
    wanted, digest = size.shots + size.queries, hashlib.blake2b(digest_size=16)
    small: list[str] = []
    splits: dict[Split, Tasks] = {}
    sizes: dict[str, int] = {}
    left: dict[Split, int] = {}
    largest = 0
    for split, (examples, labels) in rows.items():
        digest.update(repr((split, examples.shape, list(labels))).encode())
        digest.update(np.ascontiguousarray(examples).data)
        counts = Counter(labels)
        small += sorted(label for label, count in counts.items() if count < wanted)
        largest = max([largest, *counts.values()])
        kept = [i for i, label in enumerate(labels) if counts[label] >= wanted]
        sizes[split], left[split] = len(counts), len({labels[i] for i in kept})
        if left[split] >= size.ways:
            of = groups if split == "train" else None
            splits[split] = ClassTasks(examples[kept], [labels[i] for i in kept], size.ways, of)
    if len(splits) < len(rows):
        purpose = {"train": "to train on", "validation": "to validate on", "test": "to test on"}
        received = ", ".join(f"{count} {purpose[split]}" for split, count in left.items())
        raise UserError(
            f"{name}: {size} need {size.ways} classes in each split, of {size.shots} + {size.queries} "
            f"{unit}s each. Received: {received}; the largest class holds {largest} {unit}s."
        )
    if small:
        classes = "1 class" if len(small) == 1 else f"{len(small)} classes"
        notes = [*notes, f"{name}: {classes} of fewer than {wanted} {unit}s left out: {small[0]} and so on."]
    return TaskData(name, splits, DataRecord(digest.hexdigest(), sizes), notes)
