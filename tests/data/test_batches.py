from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.batches import Batches, LengthOrder, array_batches, bucket_widths, paired_batches
from karpa_tf.errors import UserError


def padded_size(lengths, widths) -> int:
    """How large rows are that are padded to the next width."""
    return sum(min(width for width in widths if width >= length) for length in lengths)


def epoch(order: LengthOrder, number: int = 0) -> list[tuple[np.ndarray, int]]:
    steps = order.steps_per_epoch
    return [order.batch(step) for step in range(number * steps, (number + 1) * steps)]


# --- Widths


@pytest.mark.parametrize("seed", range(12))
def test_widths_pad_as_little_as_the_best_of_all_choices(seed) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 14, rng.integers(1, 30))
    for buckets in (1, 2, 3, 4):
        widths = bucket_widths(lengths, buckets)
        assert widths == sorted(set(widths)) and 1 <= len(widths) <= buckets
        below = sorted(set(lengths.tolist()) - {lengths.max()})
        best = min(
            padded_size(lengths, [*chosen, lengths.max()])
            for count in range(buckets)
            for chosen in combinations(below, min(count, len(below)))
        )
        assert padded_size(lengths, widths) == best


def test_no_more_widths_than_lengths() -> None:
    assert bucket_widths(np.array([5, 5, 5]), 4) == [5]
    assert bucket_widths(np.array([9, 3, 9, 4]), 6) == [3, 4, 9]


# --- Order


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 8), (5, 8), (8, 8), (9, 8), (64, 8), (203, 8), (203, 7), (30, 1)]
)
def test_an_epoch_holds_every_row_once_in_batches_that_fit(rows, size) -> None:
    lengths = np.random.default_rng(rows).integers(3, 60, rows)
    widths = bucket_widths(lengths, 4)
    order = LengthOrder(lengths, size, widths, seed=1)
    batches = epoch(order)
    assert len(batches) == order.steps_per_epoch == -(-rows // size)
    assert all(batch.shape == (size,) and width in widths for batch, width in batches)
    assert all(lengths[batch[batch >= 0]].max() <= width for batch, width in batches)
    taken = np.concatenate([batch for batch, _ in batches])
    assert sorted(taken[taken >= 0]) == list(range(rows))
    assert sum((batch < 0).any() for batch, _ in batches) == (rows % size != 0)


def test_rows_of_like_lengths_come_together() -> None:
    lengths = np.random.default_rng(0).permutation(np.repeat([4, 8, 16, 32], 100))
    order = LengthOrder(lengths, 10, bucket_widths(lengths, 4), seed=0)
    assert all((lengths[batch] == width).all() for batch, width in epoch(order))


def test_the_order_is_made_of_the_seed_and_the_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 100)
    widths = bucket_widths(lengths, 3)

    def rows(seed: int, number: int) -> list[list[int]]:
        return [batch.tolist() for batch, _ in epoch(LengthOrder(lengths, 8, widths, seed), number)]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 5) == rows(1, 5)  # epoch 5 does not ask for the four before it
    assert rows(1, 0) != rows(1, 1) != rows(2, 1)
    order = LengthOrder(lengths, 8, widths, seed=1)
    backwards = [order.batch(step)[0].tolist() for step in reversed(range(3 * order.steps_per_epoch))]
    assert backwards[::-1] == rows(1, 0) + rows(1, 1) + rows(1, 2)
    # Neither the rows of a batch nor the batches come in the order of their lengths.
    assert [width for _, width in epoch(order)] != sorted(width for _, width in epoch(order))


def test_the_order_of_a_bucket_is_shuffled_all_over() -> None:
    order = LengthOrder(np.full(1000, 5), 10, [5], seed=0)
    first = np.concatenate([batch for batch, _ in epoch(order)])
    second = np.concatenate([batch for batch, _ in epoch(order, 1)])
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    # Who is with whom in a batch is new as well.
    together = [{frozenset(rows) for rows in taken.reshape(-1, 10).tolist()} for taken in (first, second)]
    assert not together[0] & together[1]


def test_without_a_seed_rows_are_sorted_and_a_batch_is_as_wide_as_its_longest() -> None:
    lengths = np.array([7, 3, 9, 3, 5])
    order = LengthOrder(lengths, 2, [])
    assert [(batch.tolist(), width) for batch, width in epoch(order)] == [
        ([1, 3], 3),
        ([4, 0], 7),
        ([2, -1], 9),
    ]
    assert [(batch.tolist(), width) for batch, width in epoch(order, 3)] == [
        ([1, 3], 3),
        ([4, 0], 7),
        ([2, -1], 9),
    ]


# --- Batches


def test_batches_from_any_step_to_any_step() -> None:
    def load(step, part, parts):
        return step * 10 + part, tf.fill([6 // parts], step)

    data = Batches(load, steps_per_epoch=4, batch_size=6)
    assert [int(x) for x, _ in data.dataset()] == [0, 10, 20, 30]
    assert [int(x) for x, _ in data.dataset(3)] == [30, 40, 50, 60]
    assert [int(x) for x, _ in data.dataset(2, 5, part=1, parts=3)] == [21, 31, 41]
    assert [int(x) for x, _ in data.dataset(2, 2)] == []
    with pytest.raises(ValueError, match="batch_size=6, workers=4"):
        data.dataset(parts=4)


# --- Arrays


@pytest.mark.parametrize(
    ("features", "labels", "batch_size", "said"),
    [
        (np.zeros((30, 2)), np.zeros(60), 8, r"as many rows each.* Received: \[30, 60\]"),
        (np.zeros((60, 2)), np.zeros(30), 8, r"as many rows each.* Received: \[60, 30\]"),
        ({"a": np.zeros(4), "b": np.zeros(5)}, np.zeros(4), 2, r"Received: \[4, 5, 4\]"),
        (np.zeros((0, 2)), np.zeros(0), 8, r"one at least. Received: \[0, 0\]"),
        (np.float32(1), np.float32(1), 8, r"Received: \[None, None\]"),
        (np.array([None, 1]), np.zeros(2), 2, "made of arrays of numbers or strings"),
        (np.zeros((4, 2)), np.zeros(4), 0, "batch_size must be a whole number of at least 1. Received: 0"),
        (
            np.zeros((4, 2)),
            np.zeros(4),
            1.5,
            "batch_size must be a whole number .* Received: 1.5",
        ),
    ],
)
def test_arrays_that_make_no_batches_are_refused(features, labels, batch_size, said) -> None:
    with pytest.raises(UserError, match=said):
        array_batches(features, labels, batch_size=batch_size)


def test_lists_are_arrays() -> None:
    batches = array_batches([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [0, 1, 2], batch_size=2)
    features, labels, weights = (np.concatenate(parts) for parts in zip(*batches.dataset(), strict=True))
    np.testing.assert_array_equal(features[:3], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert labels[:3].tolist() == [0, 1, 2] and weights.tolist() == [1, 1, 1, 0]


def test_paired_batches_have_the_rows_of_both_and_shares_of_the_loss() -> None:
    first = array_batches(np.arange(10), np.zeros(10), batch_size=4, seed=0)
    others = array_batches(np.arange(100, 106), np.ones(6), batch_size=2, seed=1)
    mixed = paired_batches(first, others, share=0.75)
    assert (mixed.steps_per_epoch, mixed.batch_size) == (3, 6)
    seen = [batch for batch in mixed.dataset(0, 6).as_numpy_iterator()]
    for number, (features, labels, weights) in enumerate(seen):
        assert labels.tolist() == [0] * 4 + [1] * 2
        real = 4 if number % 3 < 2 else 2
        assert weights[:4].sum() == pytest.approx(6 * 0.25 * real / 4)
        assert weights[4:].sum() == pytest.approx(6 * 0.75)
        assert set(features[4:]) <= set(range(100, 106))
    for epoch_ in (seen[:3], seen[3:]):
        rows = [row for features, _, weights in epoch_ for row in features[:4][weights[:4] > 0]]
        assert sorted(rows) == list(range(10))
        assert sorted(row for features, *_ in epoch_ for row in features[4:]) == list(range(100, 106))
    # Batch 4 is the same, however one comes to it.
    (again,) = mixed.dataset(4, 5).as_numpy_iterator()
    assert again[0].tolist() == seen[4][0].tolist()
