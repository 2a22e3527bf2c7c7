"""What a ranking of entries is worth: arrays in, figures out."""

from __future__ import annotations

import numpy as np


def first_right_ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns at which rank, from 1, the first right entry of each row stands.

    Args:
        scores: float (n, entries); of equal ones the entry that comes first is the better.
        right: bool (n, entries), at least one in each row.

    Returns:
        int (n,).
    """
    among = np.where(right, scores, -np.inf)
    place = among.argmax(axis=1)
    best = among[np.arange(len(scores)), place][:, None]
    before = np.arange(scores.shape[1]) < place[:, None]
    return 1 + ((scores > best) | ((scores == best) & before)).sum(axis=1)


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Returns the figures of ranks.

    Args:
        ranks: int (n,), of the first right entry of each row, from 1.

    Returns:
        `recall_at_1` and `recall_at_5`: shares of the rows with a right entry among the first 1 and 5; `mrr`:
        the mean of 1 / rank (Voorhees 1999, The TREC-8 question answering track report).
    """
    return {
        "recall_at_1": float((ranks <= 1).mean()),
        "recall_at_5": float((ranks <= 5).mean()),
        "mrr": float((1 / ranks).mean()),
    }
