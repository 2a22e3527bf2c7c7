"""What a classifier says of held-out rows: the file that its shares are corrected with.

A cell is a predicted label together with how sure the classifier was: its score's place among the scores of
the held-out rows with that label, in some bins. With one bin, cells are labels and the counts are the
confusion matrix; more of them keep what a label alone leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine

# The file in a run's assets, and in a SavedModel's assets.extra.
REFERENCE = "reference.json"


def reference_file(signature: str) -> str:
    """Returns the name of a SavedModel's file on a signature; REFERENCE is that of `serving_default`."""
    return REFERENCE if signature == "serving_default" else f"reference-{signature}.json"


# Quantiles of a label's scores: 0 %, 1 %, ... 100 %; of fewer rows those of all labels together.
_LEVELS = np.linspace(0, 1, 101)
_FEWEST = 20
# Bins at most, and rows of a predicted label that a bin is made for.
_BINS, _ROWS_OF_A_BIN = 8, 50


@dataclass(frozen=True, repr=False)
class Reference(InALine):
    """A classifier on held-out rows.

    Attributes:
        labels: in the order of its probabilities.
        counts: int64 (labels, labels, bins): rows by true label, predicted label and bin of the score.
        quantiles: float64 (labels, 101): of the scores, by predicted label.
        score: which: `unknown_score`, or `uncertainty`, which is 1 - the largest probability.
    """

    labels: Sequence[str]
    counts: np.ndarray
    quantiles: np.ndarray
    score: str

    @property
    def cells(self) -> np.ndarray:
        """The counts int64 (labels, cells), a row a true label."""
        return self.counts.reshape(len(self.labels), -1)

    def places(self, predicted: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns float64 (n,) from 0 to 1: where scores lie among those of the held-out rows.

        Args:
            predicted: int (n,): the labels' places.
            scores: float (n,).
        """
        return _places(self.quantiles, predicted, scores)

    def cells_of(self, predicted: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns int64 (n,): the cells of predicted labels, of which `places` are known."""
        bins = self.counts.shape[2]
        return predicted * bins + np.minimum((places * bins).astype(np.int64), bins - 1)

    def as_json(self) -> dict[str, Any]:
        """Returns what the file holds."""
        return {
            "format": 1,
            "labels": list(self.labels),
            "score": self.score,
            "counts": self.counts.tolist(),
            "quantiles": [[float(f"{x:.6g}") for x in row] for row in self.quantiles],
        }


def _places(quantiles: np.ndarray, predicted: np.ndarray, scores: np.ndarray) -> np.ndarray:
    of = quantiles[predicted]
    # Equal scores, as of a classifier that is quite sure, are in the middle of their places.
    below, up_to = (scores[:, None] > of).sum(axis=1), (scores[:, None] >= of).sum(axis=1)
    return (below + up_to) / (2 * of.shape[1])


def make_reference(
    labels: Sequence[str],
    true: np.ndarray | Sequence[int],
    predicted: np.ndarray | Sequence[int],
    scores: np.ndarray | Sequence[float],
    score: str = "uncertainty",
) -> Reference:
    """Counts what a classifier says of rows whose labels are known, and that it has not learned from.

    Args:
        labels: in the order of its probabilities.
        true: int (n,): the labels' places.
        predicted: int (n,): those that it gives.
        scores: float (n,), larger for what it is less sure of.
        score: what they are.

    Raises:
        ValueError: no rows, or such as do not pair up.
    """
    true, predicted = np.asarray(true, np.int64), np.asarray(predicted, np.int64)
    scores = np.asarray(scores, np.float64)
    if not len(true) or not len(true) == len(predicted) == len(scores):
        raise ValueError(
            "As many true labels as predicted ones and scores are needed, at least 1. Received: "
            f"{len(true)}, {len(predicted)}, {len(scores)}."
        )
    quantiles = np.tile(np.quantile(scores, _LEVELS), (len(labels), 1))
    for place in range(len(labels)):
        own = scores[predicted == place]
        if len(own) >= _FEWEST:
            quantiles[place] = np.quantile(own, _LEVELS)
    # As they are read again.
    quantiles = np.array([[float(f"{x:.6g}") for x in row] for row in quantiles])
    bins = int(np.clip(len(true) / (len(labels) * _ROWS_OF_A_BIN), 1, _BINS))
    counts = np.zeros([len(labels), len(labels), bins], np.int64)
    at = np.minimum((_places(quantiles, predicted, scores) * bins).astype(np.int64), bins - 1)
    np.add.at(counts, (true, predicted, at), 1)
    return Reference(list(labels), counts, quantiles, score)


def scores_of(outputs: Mapping[str, Any], score: str = "") -> np.ndarray:
    """Returns float64 (n,) of a classifier's outputs: `unknown_score`, or else 1 - the largest probability.

    Args:
        outputs: arrays (n, ...) by name.
        score: which one, if not the better one that there is.

    Raises:
        KeyError: it is not there.
    """
    if score == "unknown_score" or (not score and "unknown_score" in outputs):
        return np.asarray(outputs["unknown_score"], np.float64)
    return 1 - np.asarray(outputs["probabilities"], np.float64).max(axis=1)


def read_reference(path: str | Path) -> Reference:
    """Reads what a run or an export holds.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        labels, counts = found["labels"], np.array(found["counts"], np.int64)
        quantiles = np.array(found["quantiles"], np.float64)
        if found["format"] != 1 or counts.shape[:2] != (len(labels),) * 2 or len(quantiles) != len(labels):
            raise ValueError("its parts do not fit together")
        if counts.ndim != 3 or counts.min() < 0 or quantiles.ndim != 2 or not counts.sum():
            raise ValueError("its counts are none")
        return Reference(labels, counts, quantiles, str(found["score"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{path} cannot be read as what export writes of a classifier ({reason}); export again."
        ) from None
