from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from karpa_tf.data import BalancedReservoir, Reservoir


@pytest.mark.parametrize("passed", [3, 5, 20])
def test_each_row_stays_with_the_same_probability(passed) -> None:
    trials, size = 1500, 5
    counts: Counter[int] = Counter()
    for seed in range(trials):
        reservoir = Reservoir(size, seed)
        for row in range(passed):
            reservoir.add(row, 0)
        assert reservoir.seen == passed and len(set(reservoir.rows)) == min(size, passed)
        counts.update(reservoir.rows)
    share = min(size / passed, 1.0)
    deviation = np.sqrt(share * (1 - share) / trials)
    for row in range(passed):
        assert counts[row] / trials == pytest.approx(share, abs=4 * deviation + 1e-12)


def test_of_a_label_each_row_stays_with_the_same_probability_and_labels_are_balanced() -> None:
    """20 rows of one label, then 8 of another, then 4 of a third."""
    labels = [0] * 20 + [1] * 8 + [2] * 4
    trials, size = 1500, 9
    counts: Counter[int] = Counter()
    for seed in range(trials):
        reservoir = BalancedReservoir(size, seed)
        for row, label in enumerate(labels):
            reservoir.add(row, label)
        held = Counter(labels[row] for row in reservoir.rows)
        assert len(set(reservoir.rows)) == size and held == {0: 3, 1: 3, 2: 3}
        counts.update(reservoir.rows)
    for label, rows in ((0, range(20)), (1, range(20, 28)), (2, range(28, 32))):
        share = 3 / labels.count(label)
        for row in rows:
            deviation = np.sqrt(share * (1 - share) / trials)
            assert counts[row] / trials == pytest.approx(share, abs=4.5 * deviation)


def test_what_it_holds_is_a_function_of_the_seed_and_of_what_has_passed() -> None:
    for kind in (Reservoir, BalancedReservoir):
        first, again, other = kind(4, 7), kind(4, 7), kind(4, 8)
        for row in range(50):
            for reservoir in (first, again, other):
                reservoir.add(row, row % 3)
        assert first.rows == again.rows != other.rows
