"""Batches of several sets: whose turn it is follows from the seed and the step."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.data.batches import Batches, array_batches, mixed_batches


def make_set(number: int, rows: int) -> Batches:
    """Rows (number, 0), (number, 1), ... in their order, two a batch."""
    rows_of = np.stack([np.full(rows, number), np.arange(rows)], axis=1)
    return array_batches(rows_of, rows_of[:, 0], batch_size=2)


def read(data: Batches, *steps: int) -> np.ndarray:
    return np.array([features.numpy() for features, *_ in data.dataset(*steps)])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [90, 10]), (2.0, [75, 25]), (5.0, [61, 39]), (1e6, [50, 50]), (0.5, [99, 1])],
)
def test_shares_at_a_temperature(temperature: float, expected: list[int]) -> None:
    data = mixed_batches([make_set(0, 180), make_set(1, 20)], temperature=temperature)
    drawn = read(data)[:, 0, 0]
    assert np.bincount(drawn).tolist() == expected and data.steps_per_epoch == 100
    shares = np.array([90, 10]) ** (1 / temperature)
    assert np.allclose(np.array(expected) / 100, shares / shares.sum(), atol=0.006)


def test_no_set_is_forgotten() -> None:
    data = mixed_batches([make_set(0, 2000), make_set(1, 2)], temperature=0.1)
    assert (read(data)[:, 0, 0] == 1).sum() == 1


def test_batches_follow_from_the_step() -> None:
    data = mixed_batches([make_set(0, 12), make_set(1, 6)], temperature=2.0, seed=3)
    whole = read(data, 0, 27)
    np.testing.assert_array_equal(read(data, 11, 27), whole[11:])
    assert not np.array_equal(whole[:9, 0, 0], whole[9:18, 0, 0])  # each epoch has its own order
    # Each set goes on where it was, past its end and across epochs.
    for number, rows in ((0, 12), (1, 6)):
        mine = whole[whole[:, 0, 0] == number][:, :, 1].reshape(-1)
        np.testing.assert_array_equal(mine, np.arange(len(mine)) % rows)
    other = mixed_batches([make_set(0, 12), make_set(1, 6)], temperature=2.0, seed=4)
    assert not np.array_equal(read(other, 0, 27)[:, 0, 0], whole[:, 0, 0])


def test_workers_read_their_parts() -> None:
    data = mixed_batches([make_set(0, 12), make_set(1, 6)])
    whole = read(data, 0, 9)
    parts = [np.array([x.numpy() for x, *_ in data.dataset(0, 9, part=part, parts=2)]) for part in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_one_set_is_as_it_is() -> None:
    data = make_set(0, 6)
    assert mixed_batches([data], temperature=3.0) is data
