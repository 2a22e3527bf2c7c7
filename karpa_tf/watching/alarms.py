"""Alarms by CUSUM (Page 1954, Continuous Inspection Schemes), with bounds set by simulation.

A sum per direction grows by the log-likelihood ratio of each text, after against before, and is never below
0. An alarm is on from when a sum reaches the bound until it is back at 0. The bound is the one that texts
without any change reach, on average, once in `false_alarms` texts: since that time is nearly exponential, it
is the 1/e quantile of the largest sum within so many texts, over simulated streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.watching.shares import corrected_shares

# Of the simulation: streams at least, those that raise a false alarm, texts of a stream, and baselines that
# are drawn anew, since the one at hand is a sample as well.
_STREAMS, _ALARMS, _STEPS, _BASELINES = 400, 200, 10_000, 100
# Texts' weight of the fitted distribution in the one that is simulated: a cell that the baseline happens to
# lack may come.
_WEIGHT = 20
# How much the density of places rises from 0 to 1, or falls, when the input drifts.
_SLOPE = 0.8


class Cusum(InALine):
    """Sums of log-likelihood ratios, a direction each.

    Args:
        names: of the directions.
        increments: float64 (directions, cells): in nats, by what a text is.
        bound: that raises an alarm.

    Attributes:
        sums: float64 (directions,), the sums.
        since: int64 (directions,): texts since each sum left 0.
        on: the places of the directions whose alarm is on.
    """

    def __init__(self, names: Sequence[str], increments: np.ndarray, bound: float) -> None:
        self.names, self.increments, self.bound = list(names), increments, float(bound)
        self.sums = np.zeros(len(names))
        self.since = np.zeros(len(names), np.int64)
        self.on: list[int] = []

    def add(self, cell: int) -> list[str]:
        """Adds a text; returns the directions whose alarm it raises.

        Args:
            cell: which column of the increments.
        """
        # No higher than the bound: what is over is to be seen soon.
        self.sums = np.clip(self.sums + self.increments[:, cell], 0, self.bound)
        self.since = np.where(self.sums > 0, self.since + 1, 0)
        raised = [int(place) for place in np.flatnonzero(self.sums >= self.bound) if place not in self.on]
        self.on = sorted([*(place for place in self.on if self.sums[place] > 0), *raised])
        return [self.names[place] for place in raised]

    @property
    def level(self) -> float:
        """The largest sum as a part of the bound: 1 raises an alarm."""
        return float(self.sums.max(initial=0) / self.bound)

    def state(self) -> dict[str, Any]:
        """Returns what `restore` takes, for JSON."""
        return {"sums": self.sums.tolist(), "since": self.since.tolist(), "on": self.on}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where another one was.

        Args:
            state: what that one's `state` returned.
        """
        self.sums, self.since = np.array(state["sums"]), np.array(state["since"], np.int64)
        self.on = list(state["on"])


# --- Shares of labels -----------------------------------------------------------------------------


class Shift(NamedTuple):
    """A direction in which shares may move.

    Attributes:
        label: its place.
        up: whether it becomes more frequent.
    """

    label: int
    up: bool


def moved_shares(shares: np.ndarray, by: float) -> tuple[list[Shift], np.ndarray]:
    """Returns the directions, and the shares float64 (..., directions, labels) after each.

    A label's share moves by so much, or by half of what there is, and the others keep their proportions. Of
    two labels one falls as the other rises: there are two directions, not four.

    Args:
        shares: (..., labels).
        by: how much, e.g. 0.15.
    """
    labels = shares.shape[-1]
    every = [Shift(label, up) for label in range(labels if labels > 2 else 1) for up in (True, False)]
    after = []
    for label, up in every:
        share = shares[..., label, None]
        to = share + np.minimum(by, (1 - share) / 2) if up else share - np.minimum(by, share / 2)
        moved = shares * (1 - to) / np.maximum(1 - share, 1e-9)
        moved[..., label] = to[..., 0]
        after.append(moved)
    return every, np.stack(after, axis=-2)


class ShareAlarm(Cusum):
    """An alarm when the shares of labels are no longer those of a baseline.

    The ratio of each direction is that of the cells' probabilities, with the shares of the baseline moved by
    `shift` and without, each mixed by the classifier's confusion: the multinomial log-likelihood ratio.

    Args:
        baseline: (cells,): how often each was predicted while nothing had changed.
        distributions: (labels, cells), as `cell_distributions` gives them; None: a cell is a label.
        labels: their names; numbers, if there are none.
        shift: of a share, that is to be found as fast as possible.
        false_alarms: mean number of texts between two false alarms.
        seed: of the simulation.
        bound: that a simulation has found; 0: simulate.

    Raises:
        UserError: the baseline has no texts.
    """

    def __init__(
        self,
        baseline: np.ndarray,
        distributions: np.ndarray | None = None,
        labels: Sequence[str] = (),
        *,
        shift: float = 0.15,
        false_alarms: int = 10_000,
        seed: int = 0,
        bound: float = 0.0,
    ) -> None:
        baseline = np.asarray(baseline, np.int64)
        if baseline.sum() < 1:
            raise UserError("An alarm on shares needs texts for its baseline. Received: 0.")
        if distributions is None:
            # Half a row of each label, so that none is impossible.
            known = np.eye(len(baseline))
            fit: Any = lambda counts: (counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True)  # noqa: E731
        else:
            known = distributions
            fit = lambda counts: corrected_shares(counts, known)  # noqa: E731
        self.shares = fit(baseline)
        directions, _ = moved_shares(self.shares, shift)
        names = [f"{_name(labels, label)} {'up' if up else 'down'}" for label, up in directions]
        if bound:
            super().__init__(names, _ratios(self.shares, known, shift), bound)
            return
        random = np.random.default_rng(seed)
        frequencies = baseline + _WEIGHT * self.shares @ known
        frequencies = frequencies / frequencies.sum()
        again = random.multinomial(int(baseline.sum()), frequencies, size=_BASELINES)
        every = _ratios(fit(again), known, shift)
        bound = _bound(every, np.tile(frequencies, (_BASELINES, 1)), false_alarms, random)
        super().__init__(names, _ratios(self.shares, known, shift), bound)


def _name(labels: Sequence[str], place: int) -> str:
    return labels[place] if place < len(labels) else str(place)


def _ratios(shares: np.ndarray, distributions: np.ndarray, shift: float) -> np.ndarray:
    """Returns the log-likelihood ratios float64 (..., directions, cells) of shares (..., labels)."""
    _, after = moved_shares(shares, shift)
    before = shares @ distributions
    return np.log(np.maximum(after @ distributions, 1e-12)) - np.log(np.maximum(before, 1e-12))[..., None, :]


def _bound(
    increments: np.ndarray, frequencies: np.ndarray, false_alarms: int, random: np.random.Generator
) -> float:
    """Returns the bound, for increments (baselines, directions, cells) and how cells are distributed then."""
    steps = min(false_alarms, _STEPS)
    streams = max(_STREAMS, -(-_ALARMS * false_alarms // steps))
    which = np.arange(streams) % len(increments)
    by_cell = np.ascontiguousarray(increments.transpose(0, 2, 1))
    upper = np.cumsum(frequencies, axis=1)[which, :-1]
    sums, largest = np.zeros([streams, increments.shape[1]]), np.zeros(streams)
    for _ in range(steps):
        cells = (random.random((streams, 1)) >= upper).sum(axis=1)
        sums = np.maximum(sums + by_cell[which, cells], 0)
        largest = np.maximum(largest, sums.max(axis=1))
    return float(np.quantile(largest, np.exp(-steps / false_alarms)))


# --- Input ----------------------------------------------------------------------------------------

# A place from 0 to 1 is counted in so many steps.
_CELLS = 50
# The last places of a baseline, and by how much more texts come there when some are of another kind.
_TAIL, _MORE = 0.1, 0.2


class InputAlarm(Cusum):
    """An alarm when scores lie elsewhere within their predicted label than in a baseline.

    A score's place among those of its label's held-out rows, from 0 to 1, is distributed alike nearly
    whatever the shares of the labels are. When the input drifts, high places (less sure, more unknown) or low
    ones become more frequent, with a density that rises or falls from the baseline's first text to its last;
    or only some texts are of another kind, which come to the places of the baseline's last tenth.

    Args:
        baseline: (50,): how often each place, in steps, occurred while nothing had changed.
        false_alarms: mean number of texts between two false alarms.
        seed: of the simulation.

    Raises:
        UserError: the baseline has no texts.
    """

    def __init__(
        self, baseline: Sequence[int] | np.ndarray, *, false_alarms: int = 10_000, seed: int = 0
    ) -> None:
        counts = np.asarray(baseline, np.int64)
        if counts.sum() < 1:
            raise UserError("An alarm on input needs texts for its baseline. Received: 0.")
        random = np.random.default_rng([seed, 1])
        frequencies = _smoothed(counts)
        again = random.multinomial(int(counts.sum()), frequencies, size=_BASELINES)
        every = _drifts(_smoothed(again))
        bound = _bound(every, np.tile(frequencies, (_BASELINES, 1)), false_alarms, random)
        super().__init__(["less sure", "more sure", "some less sure"], _drifts(frequencies), bound)

    def add_place(self, place: float) -> list[str]:
        """Adds a text by the place of its score, 0 to 1; returns the directions whose alarm it raises."""
        return self.add(cell_of(place))


def cell_of(place: float) -> int:
    """Returns which of the 50 steps a place from 0 to 1 is in."""
    return min(int(place * _CELLS), _CELLS - 1)


def count_places(places: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns int64 (50,): how many places, from 0 to 1, are in each step."""
    return np.bincount([cell_of(place) for place in places], minlength=_CELLS)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Returns how often each place (..., 50) occurs, with some texts that are like the held-out rows."""
    return (counts + _WEIGHT / _CELLS) / (counts.sum(axis=-1, keepdims=True) + _WEIGHT)


def _drifts(frequencies: np.ndarray) -> np.ndarray:
    """Returns the log-likelihood ratios float64 (..., directions, 50) of frequencies (..., 50)."""
    up_to = np.cumsum(frequencies, axis=-1)
    rising = _SLOPE * (2 * up_to - frequencies - 1)  # of mean 0
    in_tail = np.clip((up_to - (1 - _TAIL)) / frequencies, 0, 1)
    return np.log1p(np.stack([rising, -rising, _MORE * (in_tail / _TAIL - 1)], axis=-2))
