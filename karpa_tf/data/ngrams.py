"""Count baselines for filling masks: unigram, and a bigram that sees both true neighbours."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from karpa_tf.data.text import TokenizedSplit

_SMOOTHING = 0.1
_CHUNK = 10_000_000


class NgramCounts:
    """Counts of single pieces and of neighbours in a training split.

    Args:
        split: the tokenized text.
        vocabulary_size: number of pieces.
        candidates: bool (vocabulary_size,): pieces that may be predicted.
    """

    def __init__(self, split: TokenizedSplit, vocabulary_size: int, candidates: np.ndarray) -> None:
        self.size = vocabulary_size
        self.unigrams = split.counts(vocabulary_size)
        pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        total = split.size
        crosses = np.zeros(total + 1, bool)
        crosses[split.borders] = True
        for begin in range(0, total, _CHUNK):
            end = min(begin + _CHUNK, total)
            pieces = np.asarray(split.pieces[begin : min(end + 1, total)], np.int64)
            inside = ~crosses[begin + 1 : begin + len(pieces)]
            found, number = np.unique(
                (pieces[:-1] * vocabulary_size + pieces[1:])[inside], return_counts=True
            )
            pairs, place = np.unique(np.concatenate([pairs, found]), return_inverse=True)
            counts = np.bincount(place, np.concatenate([counts, number])).astype(np.int64)
        left, right = np.divmod(pairs, vocabulary_size)
        self._after = _Rows(left, right, counts, vocabulary_size)
        order = np.argsort(right, kind="stable")
        self._before = _Rows(right[order], left[order], counts[order], vocabulary_size)
        self._candidates = candidates
        self._one = np.where(candidates, self.unigrams + _SMOOTHING, 0.0)

    def unigram(self) -> np.ndarray:
        """float64 (vocabulary_size,): each piece's share of the text."""
        return self._one / self._one.sum()

    def bigram(self, left: int, right: int) -> np.ndarray:
        """Scores every piece between two neighbours by c(left, w) c(w, right) / c(w).

        Counts are smoothed by 0.1. With one neighbour unseen in training (or -1 for none) the other one
        alone decides; with both, the unigram.

        Returns:
            float64 (vocabulary_size,), summing to 1.
        """
        after, before = self._after.dense(left), self._before.dense(right)
        if after is not None and before is not None:
            scores = (after + _SMOOTHING) * (before + _SMOOTHING) / (self.unigrams + _SMOOTHING)
        elif after is not None:
            scores = after + _SMOOTHING
        elif before is not None:
            scores = before + _SMOOTHING
        else:
            return self.unigram()
        scores = np.where(self._candidates, scores, 0.0)
        return scores / scores.sum()


class _Rows:
    """A sparse matrix of counts, read a row at a time."""

    def __init__(self, row: np.ndarray, column: np.ndarray, count: np.ndarray, size: int) -> None:
        self.starts = np.searchsorted(row, np.arange(size + 1))
        self.column, self.count, self.size = column, count, size

    def dense(self, row: int) -> np.ndarray | None:
        if row < 0:
            return None
        begin, end = self.starts[row], self.starts[row + 1]
        if begin == end:
            return None
        dense = np.zeros(self.size)
        dense[self.column[begin:end]] = self.count[begin:end]
        return dense


def baselines(counts: NgramCounts, data: Iterable) -> dict[str, dict[str, float]]:
    """Evaluates both baselines at the masked positions of fixed batches.

    Args:
        counts: of the training split.
        data: batches `(features, labels, sample_weights)` of masked windows.

    Returns:
        `{"unigram": {...}, "bigram": {...}}` with `loss`, `perplexity`, `top1_accuracy` and
        `top5_accuracy`.
    """
    unigram = counts.unigram()
    sums = {"unigram": np.zeros(3), "bigram": np.zeros(3)}
    total = 0
    for features, labels, weights in data:
        ids = features["token_ids"].numpy()
        mask = features["padding_mask"].numpy()
        positions, labels, weights = features["masked_positions"].numpy(), labels.numpy(), weights.numpy()
        true = ids.copy()
        rows, slots = np.nonzero(weights)
        true[rows, positions[rows, slots]] = labels[rows, slots]
        true = np.where(mask, true, -1)
        true = np.pad(true, [(0, 0), (1, 1)], constant_values=-1)
        for row, slot in zip(rows, slots, strict=True):
            place, label = positions[row, slot] + 1, labels[row, slot]
            bigram = counts.bigram(true[row, place - 1], true[row, place + 1])
            for name, scores in (("unigram", unigram), ("bigram", bigram)):
                higher = int((scores > scores[label]).sum())
                first = int(scores.argmax()) == label
                sums[name] += (-np.log(max(scores[label], 1e-12)), first, higher < 5)
        total += len(rows)
    figures = {}
    for name, (loss, top1, top5) in sums.items():
        figures[name] = {
            "loss": float(loss / total),
            "perplexity": float(np.exp(loss / total)),
            "top1_accuracy": float(top1 / total),
            "top5_accuracy": float(top5 / total),
        }
    return figures
