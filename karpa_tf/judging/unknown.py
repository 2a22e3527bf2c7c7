"""What is unknown to a classifier: statistics of what it knows, a threshold, figures. Arrays in and out."""

from __future__ import annotations

import math

import numpy as np

# Known rows that a threshold is set on, at least.
LEAST_ROWS = 20
# Known vectors that are kept, about.
_KEPT = 2500
# Which neighbour counts.
_NEIGHBOUR = 3


def rows_needed(rate: float) -> int:
    """Returns how many known rows a threshold for a rate needs, at least: with fewer it is infinite."""
    return max(LEAST_ROWS, math.ceil(1 / rate - 1e-9) - 1)


def conformal_threshold(scores: np.ndarray, rate: float) -> float:
    """Returns the score above which a row is unknown, by split conformal prediction.

    Of new rows like those of the scores at most `rate` lie above it, on average over draws of both (Vovk et
    al. 2005; Lei et al. 2018, https://arxiv.org/abs/1604.04173, section 2.2): it is the ceil((n + 1)
    (1 - rate))-th smallest of n scores.

    Args:
        scores: float (n,), of known rows that nothing was learned from.
        rate: share of known rows that may be called unknown.

    Raises:
        ValueError: there are too few scores.
    """
    if len(scores) < rows_needed(rate):
        raise ValueError(f"{rows_needed(rate)} scores are needed. Received: {len(scores)}.")
    # Below: 100 * (1 - 0.05) is more than 95.
    place = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    return float(np.sort(scores)[place - 1])


def some_of_each(labels: np.ndarray, most: int = _KEPT) -> np.ndarray:
    """Returns the places of about `most` rows at most, evenly spaced in each class; one of each at least."""
    classes = np.unique(labels)
    each = [np.flatnonzero(labels == label) for label in classes]
    share = max(1, most // len(classes))
    return np.concatenate([mine[:: -(-len(mine) // share)] for mine in each])


def neighbours(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what other vectors are compared with.

    Args:
        vectors: float32 (m, width), of known rows.

    Returns:
        `bank` float32 (m, width), the vectors at length 1; `k`, which of the nearest counts.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bank = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return {"bank": bank, "k": np.array(min(_NEIGHBOUR, len(bank)))}


# --- Figures --------------------------------------------------------------------------------------


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Returns the share of pairs of a known and an unknown row in which the unknown one has the higher score.

    Args:
        known: float (n,), scores of known rows.
        unknown: float (m,), of unknown ones.
    """
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0, 1], [len(known), len(unknown)])
    return float(roc_auc_score(truth, np.concatenate([known, unknown])))


def unknown_figures(
    labels: np.ndarray, predictions: np.ndarray, scores: np.ndarray, threshold: float, classes: int
) -> dict[str, float]:
    """Evaluates a score of what is unknown, and the predictions that it lets stand.

    Args:
        labels: int (n,), the true classes; `classes` for rows of none of them.
        predictions: int (n,), classes.
        scores: float (n,), higher for what is unknown.
        threshold: rows above it are called unknown.
        classes: how many there are.

    Returns:
        `called_unknown`, the share of the known rows above the threshold. With unknown rows also `open_f1`,
        the mean F1 over the classes that occur and, as one more class, the unknown; `unknown_f1`, that of the
        unknown alone; `unknown_auroc`.
    """
    from sklearn.metrics import f1_score

    known, above = labels < classes, scores > threshold
    found = {"called_unknown": float(above[known].mean())}
    if known.all():
        return found
    said = np.where(above, classes, predictions)
    return {
        **found,
        "open_f1": float(f1_score(labels, said, average="macro", zero_division=0)),
        "unknown_f1": float(f1_score(labels == classes, above, zero_division=0)),
        "unknown_auroc": auroc(scores[known], scores[~known]),
    }
