"""Shares of labels in texts that a classifier labels, corrected for what it confuses.

Counts of what was predicted are a mixture: each true label's distribution over the cells (see
`judging.reference`), by its share. The shares that make the counts most likely are found by expectation
maximization (Saerens et al. 2002, Adjusting the Outputs of a Classifier to New a Priori Probabilities,
section 2.2; on counts instead of probabilities). They lie between 0 and 1 and sum to 1, however badly the
classifier tells labels apart, where the inverse of the confusion matrix (Forman 2008; Lipton et al. 2018) may
leave the simplex.
"""

from __future__ import annotations

import numpy as np

from karpa_tf.lines import InALine

_ROUNDS = 300
_CLOSE = 1e-6


def cell_distributions(counts: np.ndarray) -> np.ndarray:
    """Returns float64 (..., labels, cells): how each true label is distributed over the cells.

    Args:
        counts: (..., labels, cells) of held-out rows. As much as one row more of each label is spread as all
            rows are, so that nothing is impossible; a label without rows is like all of them.
    """
    every = counts.sum(axis=-2, keepdims=True) + 0.5
    every = every / every.sum(axis=-1, keepdims=True)
    return (counts + every) / (counts.sum(axis=-1, keepdims=True) + 1)


def corrected_shares(counts: np.ndarray, distributions: np.ndarray) -> np.ndarray:
    """Returns the shares float64 (..., labels) of the true labels that make the counts most likely.

    Args:
        counts: (..., cells), of predictions.
        distributions: (..., labels, cells), as `cell_distributions` gives them.
    """
    total = counts.sum(axis=-1, keepdims=True)
    seen = np.where(total > 0, counts, 1.0) / np.where(total > 0, total, counts.shape[-1])
    labels = distributions.shape[-2]
    shape = np.broadcast_shapes(seen.shape[:-1], distributions.shape[:-2])
    shares = np.full([*shape, labels], 1 / labels)
    for _ in range(_ROUNDS):
        mixed = np.einsum("...k,...kc->...c", shares, distributions)
        new = shares * np.einsum("...c,...kc->...k", seen / mixed, distributions)
        moved = np.abs(new - shares).max()
        shares = new
        if moved < _CLOSE:
            break
    return shares / shares.sum(axis=-1, keepdims=True)


class Intervals(InALine):
    """Intervals around corrected shares, over what the window and the held-out rows happen to hold.

    The bootstrap: counts of both are drawn anew (multinomial), and the shares corrected again.

    Args:
        counts: (labels, cells) of held-out rows; None: what is predicted is taken as it is.
        cells: how many, where there are no counts.
        level: the share of the intervals that hold the truth.
        draws: how often.
        seed: of the draws; the same counts always have the same interval.
    """

    def __init__(
        self,
        counts: np.ndarray | None,
        cells: int = 0,
        *,
        level: float = 0.95,
        draws: int = 200,
        seed: int = 0,
    ) -> None:
        self._level, self._draws, self._seed = level, draws, seed
        self.distributions = np.eye(cells) if counts is None else cell_distributions(counts)
        self._drawn = self.distributions[None]
        if counts is not None:
            random = np.random.default_rng([seed, 0])
            rows = counts.sum(axis=1).astype(np.int64)
            again = random.multinomial(rows, self.distributions, size=(draws, len(rows)))
            self._drawn = cell_distributions(again)

    def __call__(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the shares and the two ends of their intervals, float64 (labels,) each.

        Args:
            counts: (cells,) of the window.
        """
        shares = self.shares(counts)
        total = int(counts.sum())
        if not total:
            return shares, np.zeros_like(shares), np.ones_like(shares)
        random = np.random.default_rng([self._seed, 1])
        again = random.multinomial(total, counts / total, size=self._draws)
        every = self.shares(again, self._drawn)
        half = (1 - self._level) / 2
        low, high = np.quantile(every, [half, 1 - half], axis=0)
        # Where nothing was counted, nothing is drawn: the rule of three, for the level.
        unseen, none = 1 - half ** (1 / total), 1e-3
        low, high = np.minimum(low, shares), np.maximum(high, shares)
        return (
            shares,
            np.where(shares > 1 - none, np.minimum(low, 1 - unseen), low),
            np.where(shares < none, np.maximum(high, unseen), high),
        )

    def shares(self, counts: np.ndarray, distributions: np.ndarray | None = None) -> np.ndarray:
        """Returns shares float64 (..., labels) of counts.

        Args:
            counts: (..., cells).
            distributions: (..., labels, cells); None: those of the held-out rows as they are.
        """
        by = self.distributions if distributions is None else distributions
        if by.shape[-1] == by.shape[-2] and (by == np.eye(by.shape[-1])).all():
            return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
        return corrected_shares(counts, by)
