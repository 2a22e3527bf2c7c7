"""A few rows of a stream, kept while it passes: reservoirs."""

from __future__ import annotations

from collections import Counter

import numpy as np

from karpa_tf.lines import InALine


class Reservoir(InALine):
    """Rows of a stream, each of those so far with the same probability (Vitter 1985, algorithm R).

    https://doi.org/10.1145/3147.3165. What it holds is a function of the seed and of what has passed.

    Args:
        size: rows that it holds at most.
        seed: of the drawing.

    Attributes:
        rows: that it holds now, in no order.
        seen: how many have passed.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.rows: list[int] = []
        self.seen = 0
        self._rng = np.random.default_rng((seed, 8))

    def add(self, row: int, label: int) -> None:
        """Lets a row pass.

        Args:
            row: its number.
            label: its label, which does not matter here.
        """
        self.seen += 1
        if len(self.rows) < self.size:
            self.rows.append(row)
        elif (place := int(self._rng.integers(self.seen))) < self.size:
            self.rows[place] = row


class BalancedReservoir(Reservoir):
    """Rows of a stream, as many of each label as there can be (Chrysakis & Moens 2020, algorithm 1).

    http://proceedings.mlr.press/v119/chrysakis20a.html. Each row of a label so far has the same probability.

    Args:
        size: rows that it holds at most.
        seed: of the drawing.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self._labels: list[int] = []
        self._passed: Counter[int] = Counter()
        self._full: set[int] = set()

    def add(self, row: int, label: int) -> None:
        """Lets a row pass; see `Reservoir.add` for `row` and `label`."""
        self.seen += 1
        self._passed[label] += 1
        if len(self.rows) < self.size:
            self.rows.append(row)
            self._labels.append(label)
            return
        held = Counter(self._labels)
        most = max(held.values())
        # A label that once had the most rows never gets more than it has.
        self._full |= {other for other, count in held.items() if count == most}
        if label not in self._full:
            largest = sorted(other for other, count in held.items() if count == most)
            leaving = largest[int(self._rng.integers(len(largest)))]
        elif self._rng.random() <= held[label] / self._passed[label]:
            leaving = label
        else:
            return
        places = [place for place, other in enumerate(self._labels) if other == leaving]
        place = places[int(self._rng.integers(len(places)))]
        self.rows[place], self._labels[place] = row, label
