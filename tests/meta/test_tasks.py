"""Tasks: what is drawn, from the seed and the step alone; sinusoids."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.errors import UserError
from karpa_tf.meta.classes import ClassTasks, TaskSize
from karpa_tf.meta.sinusoids import open_sinusoids
from karpa_tf.meta.tasks import TaskBatch, task_batches

SINUSOIDS = open_sinusoids().splits["train"]


def numbered(classes: int, each: int, ways: int) -> ClassTasks:
    """Examples that are (class, number within it)."""
    rows = [(c, i) for i in range(each) for c in range(classes)]
    return ClassTasks(np.array(rows, np.float32), [f"{c:02}" for c, _ in rows], ways)


def draw(tasks: ClassTasks, count: int, shots: int, queries: int, seed: int = 0) -> TaskBatch:
    return tasks.sample(np.random.default_rng(seed), count, shots=shots, queries=queries)


def test_a_task_has_so_many_classes_and_no_example_twice() -> None:
    batch = draw(numbered(7, 6, 3), 50, 2, 4)
    assert batch.support.shape == (50, 6, 2) and batch.query.shape == (50, 12, 2)
    assert batch.support.dtype == np.float32 and batch.query_labels.dtype == np.int32
    for support, labels, query, query_labels in zip(*batch, strict=True):
        rows = np.concatenate([support, query])
        assert len(np.unique(rows, axis=0)) == 18
        classes = np.concatenate([labels, query_labels])
        assert np.bincount(classes).tolist() == [6, 6, 6]
        # A number stands for one class in both sets.
        assert len(np.unique(np.stack([rows[:, 0], classes]), axis=1).T) == 3


def test_every_class_and_every_example_is_drawn_alike() -> None:
    batch = draw(numbered(5, 4, 2), 4000, 1, 2)
    first = batch.support[:, 0]
    for column, kinds in ((0, 5), (1, 4)):
        counts = np.bincount(first[:, column].astype(int), minlength=kinds)
        # Four standard errors of a binomial count.
        assert np.abs(counts - 4000 / kinds).max() < 4 * np.sqrt(4000 / kinds)
    assert set(draw(numbered(5, 4, 5), 1, 1, 3).support[0, :, 0]) == set(range(5))


def test_a_task_to_train_on_is_of_one_alphabet() -> None:
    rows = [(c, i) for i in range(4) for c in range(10)]
    names = [f"{c:02}" for c, _ in rows]
    # Alphabets of 4, 5 and 1 letters, whose letters do not lie side by side; the last has too few.
    groups = {f"{c:02}": "c" if c == 9 else "ab"[c % 2] if c < 8 else "b" for c in range(10)}
    tasks = ClassTasks(np.array(rows, np.float32), names, 3, groups)
    batch = draw(tasks, 2000, 1, 2)
    alphabets = np.array([groups[name] for name in tasks.classes])[batch.support[..., 0].astype(int)]
    assert (alphabets == alphabets[:, :1]).all()
    share = (alphabets[:, 0] == "b").mean()
    assert set(alphabets[:, 0]) == {"a", "b"} and abs(share - 5 / 9) < 4 * np.sqrt(5 / 9 * 4 / 9 / 2000)
    # None is large enough: of any.
    batch = draw(ClassTasks(np.array(rows, np.float32), names, 6, groups), 200, 1, 1)
    assert set(batch.support[..., 0].flat) == set(range(10))


def test_bytes_leave_as_0_to_1() -> None:
    tasks = ClassTasks(np.full([8, 3, 3, 1], 51, np.uint8), list("aabbccdd"), 2)
    batch = draw(tasks, 1, 1, 1)
    assert batch.query.dtype == np.float32 and np.unique(batch.query) == pytest.approx(0.2)
    assert (tasks.shape, tasks.outputs) == ((3, 3, 1), 2)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(UserError, match=r"5-way 1-shot tasks need .* Received: 4 classes, the smallest of 3"):
        draw(numbered(4, 3, 5), 1, 1, 1)
    with pytest.raises(UserError, match=r"as many classes, of 2 \+ 2 examples each"):
        draw(numbered(4, 3, 2), 1, 2, 2)
    with pytest.raises(UserError, match=r"1 shot and 1 query .* Received: 5 ways, 0 shots, 1 queries"):
        TaskSize(5, 0, 1)


@pytest.mark.parametrize("tasks", [SINUSOIDS, numbered(6, 5, 3)], ids=["sinusoids", "classes"])
def test_batches_are_a_function_of_seed_and_step(tasks: ClassTasks) -> None:
    def batches(seed: int, start: int, stop: int) -> list[list[np.ndarray]]:
        made = task_batches(tasks, meta_batch=4, shots=2, queries=3, seed=seed, steps_per_epoch=10)
        return [[array.numpy() for array in batch] for batch in made.dataset(start, stop)]

    every, later, other = batches(1, 0, 6), batches(1, 4, 6), batches(2, 4, 6)
    assert all(
        np.array_equal(a, b) for x, y in zip(every[4:], later, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert not np.array_equal(later[0][0], later[1][0])
    assert not np.array_equal(later[0][0], other[0][0])


def test_workers_have_parts_of_the_same_batch() -> None:
    batches = task_batches(SINUSOIDS, meta_batch=4, shots=2, queries=3, seed=1, steps_per_epoch=10)
    (whole,) = batches.dataset(3, 4)
    assert isinstance(whole, TaskBatch) and whole.support.shape == (4, 2, 1) and batches.steps_per_epoch == 10
    parts = [next(iter(batches.dataset(3, 4, part=part, parts=2))) for part in range(2)]
    for name in TaskBatch._fields:
        halves = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(halves, getattr(whole, name))


def test_sinusoids_are_those_of_the_paper() -> None:
    batch = SINUSOIDS.sample(np.random.default_rng(0), 2000, shots=5, queries=95)
    x = np.concatenate([batch.support, batch.query], 1)[..., 0].astype(np.float64)
    y = np.concatenate([batch.support_labels, batch.query_labels], 1)[..., 0]
    assert x.min() < -4.99 and x.max() > 4.99 and np.abs(x).max() <= 5
    # a sin(x - p) = a cos(p) sin(x) - a sin(p) cos(x): least squares finds both, and nothing is left over.
    basis = np.stack([np.sin(x), -np.cos(x)], -1)
    found = np.linalg.solve(basis.transpose(0, 2, 1) @ basis, basis.transpose(0, 2, 1) @ y[..., None])
    assert np.abs(basis @ found - y[..., None]).max() < 1e-5
    amplitude, phase = np.hypot(*found[..., 0].T), np.arctan2(found[:, 1, 0], found[:, 0, 0])
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, np.pi)):
        assert values.min() > low - 1e-3 and values.max() < high + 1e-3
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * 2000))
    assert open_sinusoids().record == open_sinusoids().record
