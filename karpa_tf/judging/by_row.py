"""What a run says of each held-out row: figures with intervals, pairs of runs, groups.

Every figure here is a ratio of sums over rows: of an accuracy the right rows over all rows, of an F1 twice
the right entities over the true and the predicted ones. So rows can be drawn again (the bootstrap) for any
of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from karpa_tf.judging.tagging import entities
from karpa_tf.lines import InALine

# Draws of a bootstrap, and rows that are drawn at once.
_DRAWS = 10_000
_AT_ONCE = 2_000_000
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, repr=False)
class ByRow(InALine):
    """A figure, row by row.

    Attributes:
        rows: what each row is, for people: a text, the name of an image, a seed.
        numerators: float64 (rows,).
        denominators: float64 (rows,); the figure is the sum of the numerators over theirs.
        truth: what is right for each row; empty: there is no such thing.
        answers: what the run says of each.
        likelihoods: probability of what is right, float64 (rows,); empty: not known.
        lower: whether a small figure is the better one.
    """

    rows: Sequence[str]
    numerators: np.ndarray
    denominators: np.ndarray
    truth: Sequence[str] = ()
    answers: Sequence[str] = ()
    likelihoods: np.ndarray = field(default_factory=lambda: np.zeros(0))
    lower: bool = False

    @property
    def figure(self) -> float:
        """The figure of all rows."""
        return float(_ratio(self.numerators.sum(), self.denominators.sum()))

    @property
    def is_of_labels(self) -> bool:
        """Whether a row is right or wrong, and counts once."""
        return bool((self.denominators == 1).all() and np.isin(self.numerators, (0, 1)).all() and self.truth)

    def take(self, index: np.ndarray) -> ByRow:
        """Returns some of the rows.

        Args:
            index: their places, int (n,).
        """

        def some(values: Any) -> Any:
            if isinstance(values, np.ndarray):
                return values[index] if len(values) else values
            return [values[i] for i in index] if len(values) else values

        names = ("rows", "numerators", "denominators", "truth", "answers", "likelihoods")
        return ByRow(lower=self.lower, **{name: some(getattr(self, name)) for name in names})

    def worst(self, count: int) -> np.ndarray:
        """Returns the places of the rows with the worst answers, those that are all right left out.

        Args:
            count: of rows, at most.
        """
        each = _ratio(self.numerators, self.denominators) * (-1 if self.lower else 1)
        best = 1.0 if self.truth else np.inf
        places = np.flatnonzero((each < best) & (self.denominators != 0))
        likely = self.likelihoods if len(self.likelihoods) else np.zeros(len(each))
        return places[np.lexsort((likely[places], each[places]))][:count]

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Returns the percentile bootstrap's 95 % interval of the figure (Efron 1979), over rows.

        Args:
            seed: of the draws.
        """
        return _percentiles(_drawn(self, seed=seed))


def of_labels(
    rows: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> ByRow:
    """Returns the accuracy of a classifier, row by row.

    Args:
        rows: what each row is.
        labels: int (rows,): the true classes.
        probabilities: float (rows, classes).
        names: of the classes.
    """
    found = probabilities.argmax(axis=1)
    return ByRow(
        rows=rows,
        numerators=(found == labels).astype(np.float64),
        denominators=np.ones(len(labels)),
        truth=[names[i] for i in labels],
        answers=[names[i] for i in found],
        likelihoods=probabilities[np.arange(len(labels)), labels].astype(np.float64),
    )


def of_tags(
    words: Sequence[Sequence[str]], true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> ByRow:
    """Returns the F1 of entities, taken strictly, sentence by sentence.

    Args:
        words: of each sentence.
        true: IOB2 tags, a sequence a sentence.
        predicted: the same.
    """
    pairs = [(set(entities(a)), set(entities(b))) for a, b in zip(true, predicted, strict=True)]
    shown = [
        (
            [_entity(w, *e) for e in sorted(a, key=lambda e: e[1])],
            [_entity(w, *e) for e in sorted(b, key=lambda e: e[1])],
        )
        for w, (a, b) in zip(words, pairs, strict=True)
    ]
    return ByRow(
        rows=[" ".join(sentence) for sentence in words],
        numerators=np.array([2.0 * len(a & b) for a, b in pairs]),
        denominators=np.array([float(len(a) + len(b)) for a, b in pairs]),
        truth=[", ".join(a) or "nothing" for a, _ in shown],
        answers=[", ".join(b) or "nothing" for _, b in shown],
    )


def _entity(words: Sequence[str], kind: str, begin: int, end: int) -> str:
    return f"{kind} {' '.join(words[begin:end])}"


def of_values(rows: Sequence[str], values: np.ndarray, *, lower: bool = False) -> ByRow:
    """Returns a mean of values, row by row.

    Args:
        rows: what each row is.
        values: float (rows,).
        lower: whether small ones are the better ones.
    """
    values = np.asarray(values, np.float64)
    return ByRow(
        rows=rows,
        numerators=values,
        denominators=np.ones(len(values)),
        answers=[f"{value:.4g}" for value in values],
        lower=lower,
    )


# --- Two runs on the same rows --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Pair(InALine):
    """What a run makes of the same rows as another one.

    Attributes:
        difference: of the figures, the second's less the first's.
        low: of the 95 % interval of the difference.
        high: of it.
        p: probability of a difference this far from 0, or further, where there is none.
        test: that gives `p`.
        only_first: rows that the first alone has right; None: rows are not right or wrong.
        only_second: those that the second alone has right.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str
    only_first: int | None = None
    only_second: int | None = None


def compare(first: ByRow, second: ByRow, seed: int = 0) -> Pair:
    """Compares two runs on the same rows.

    Of labels `p` is McNemar's exact one (1947; two-sided, binomial on the rows that one alone has right); of
    other figures that of a paired bootstrap (Efron and Tibshirani 1993, section 16.4: differences shifted to
    0).

    Args:
        first: what the one makes of the rows.
        second: what the other does.
        seed: of the draws.

    Raises:
        ValueError: these are not the same rows.
    """
    if list(first.rows) != list(second.rows) or list(first.truth) != list(second.truth):
        raise ValueError("Two runs are compared on the same rows.")
    difference = second.figure - first.figure
    rng_draws = _drawn(first, second, seed=seed)
    low, high = _percentiles(rng_draws)
    if first.is_of_labels and second.is_of_labels:
        from scipy.stats import binomtest

        only_first = int(((first.numerators == 1) & (second.numerators == 0)).sum())
        only_second = int(((first.numerators == 0) & (second.numerators == 1)).sum())
        apart = only_first + only_second
        p = float(binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0
        return Pair(
            difference=difference,
            low=low,
            high=high,
            p=p,
            test="McNemar's exact test",
            only_first=only_first,
            only_second=only_second,
        )
    far = np.abs(rng_draws - difference) >= abs(difference)
    p = (1 + int(far.sum())) / (1 + len(rng_draws)) if difference else 1.0
    return Pair(difference=difference, low=low, high=high, p=p, test="paired bootstrap")


def adjusted(ps: Sequence[float]) -> list[float]:
    """Returns p values of several comparisons such that any one below 0.05 is a claim (Holm 1979).

    Args:
        ps: one a comparison.
    """
    order = np.argsort(ps, kind="stable")
    found, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = least
    return found


def apart(first: ByRow, second: ByRow, count: int) -> np.ndarray:
    """Returns places of the rows that two runs make most differently, int (count at most,).

    First come those at which the second loses most against the first: in what is counted, then in the
    probability of what is right.

    Args:
        first: what the one makes of the rows.
        second: what the other does.
        count: of rows, at most.
    """
    each = [_ratio(x.numerators, x.denominators) for x in (first, second)]
    lost = (each[0] - each[1]) * (-1 if first.lower else 1)
    less = np.zeros(len(lost))
    if len(first.likelihoods) and len(second.likelihoods):
        less = first.likelihoods - second.likelihoods
    differs = lost != 0
    if first.answers and second.answers and first.truth:
        differs |= np.array([a != b for a, b in zip(first.answers, second.answers, strict=True)])
    places = np.flatnonzero(differs)
    ranked = np.lexsort((-less[places], -lost[places]))
    return places[ranked][:count]


# --- Groups ---------------------------------------------------------------------------------------


def by_group(of: ByRow, groups: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Returns a row a group, the largest first: `group`, `rows`, `figure`, `low`, `high` (95 %, bootstrap).

    Args:
        of: what the run makes of the rows.
        groups: of each row.
        seed: of the draws.
    """
    found = []
    names = np.array(groups)
    for name in dict.fromkeys(groups):
        own = of.take(np.flatnonzero(names == name))
        low, high = own.interval(seed)
        found.append({"group": name, "rows": len(own.rows), "figure": own.figure, "low": low, "high": high})
    return sorted(found, key=lambda row: (-row["rows"], row["group"]))


def equalized_odds_gaps(
    truth: Sequence[str], answers: Sequence[str], groups: Sequence[str]
) -> Mapping[str, float]:
    """Returns the equalized-odds gap of each label (Hardt et al. 2016), that label against all others.

    It is the larger one of two differences between groups, the largest less the smallest: of the share of
    the rows of that label which are found, and of the share of the other rows which get it. A group without
    such rows counts as 0, as in fairlearn.

    Args:
        truth: label of each row.
        answers: that the run gives it.
        groups: of each row.
    """
    true, given, places = np.array(truth), np.array(answers), np.array(groups)
    gaps = {}
    for label in sorted(set(truth)):
        rates: list[list[float]] = [[], []]
        for group in dict.fromkeys(groups):
            mine = places == group
            for kind, rows in enumerate((mine & (true == label), mine & (true != label))):
                rates[kind].append(float((given[rows] == label).mean()) if rows.any() else 0.0)
        gaps[label] = max(max(kind) - min(kind) for kind in rates)
    return gaps


# --- The bootstrap --------------------------------------------------------------------------------


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Returns the ratio, and 0 where nothing is counted."""
    return np.divide(
        numerator, denominator, out=np.zeros(np.shape(denominator)), where=np.asarray(denominator) != 0
    )


def _drawn(first: ByRow, second: ByRow | None = None, *, seed: int) -> np.ndarray:
    """Returns the figure, or the second's less the first's, of rows drawn with replacement, (draws,)."""
    rng = np.random.default_rng(seed)
    count = len(first.rows)
    sums = [np.stack([x.numerators, x.denominators], axis=1) for x in (first, second) if x is not None]
    found = []
    at_once = max(1, _AT_ONCE // max(count, 1))
    for begin in range(0, _DRAWS, at_once):
        draws = min(at_once, _DRAWS - begin)
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
        figures = [_ratio(*(times @ own).T) for own in sums]
        found.append(figures[-1] - figures[0] if second is not None else figures[0])
    return np.concatenate(found)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
