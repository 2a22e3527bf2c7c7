"""Figures of rankings, and what recommends without a network. Arrays in, numbers out.

`taken` is who took what, bool (users, items); `scores` are what a recommender gives, float (users, items).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# --- Figures --------------------------------------------------------------------------------------


def ranking_metrics(
    scores: np.ndarray, seen: np.ndarray, wanted: np.ndarray, k: int = 10
) -> dict[str, float]:
    """Returns nDCG and recall of the k best items, the means over users who want one, and have seen one.

    nDCG is that of binary relevance: sum over hits of 1 / log2(1 + rank), by the same sum of min(wanted, k)
    hits at the top (Järvelin & Kekäläinen 2002; so has Microsoft Recommenders in its tables).

    Args:
        scores: float (users, items); -inf leaves an item out.
        seen: bool (users, items), what is not recommended again.
        wanted: bool (users, items), held out.
        k: ranks that count.

    Returns:
        `ndcg_K` and `recall_K`, 0 to 1.

    Raises:
        ValueError: nobody wants anything.
    """
    users = np.flatnonzero(wanted.any(axis=1) & seen.any(axis=1))
    if not len(users):
        raise ValueError("There is no user with items seen and items held out.")
    scores = np.where(seen[users], -np.inf, scores[users])
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(wanted[users], top, 1) & np.isfinite(np.take_along_axis(scores, top, 1))
    gains = 1 / np.log2(np.arange(hits.shape[1]) + 2)
    counts = wanted[users].sum(axis=1)
    ideal = np.cumsum(gains)[np.minimum(counts, len(gains)) - 1]
    return {
        f"ndcg_{k}": float((hits @ gains / ideal).mean()),
        f"recall_{k}": float((hits.sum(axis=1) / counts).mean()),
    }


# --- What recommends without a network ------------------------------------------------------------


def popularity(taken: np.ndarray) -> np.ndarray:
    """Returns for every user how often each item was taken, float32 (users, items)."""
    return np.broadcast_to(taken.sum(axis=0).astype(np.float32), taken.shape)


def popularity_by_genre(taken: np.ndarray, genres: Sequence[Sequence[str]], known: np.ndarray) -> np.ndarray:
    """Returns how often items of an item's genres are taken: the mean over its genres of the genre's mean.

    Args:
        taken: bool (users, items).
        genres: of each item.
        known: bool (items,), those that the genres' means are of.
    """
    counts = taken.sum(axis=0)
    means = {}
    for name in set().union(*genres):
        mine = [count for count, some, k in zip(counts, genres, known, strict=True) if k and name in some]
        means[name] = float(np.mean(mine)) if mine else 0.0
    of_items = [float(np.mean([means[name] for name in some])) if some else 0.0 for some in genres]
    return np.broadcast_to(np.array(of_items, np.float32), taken.shape)


def own_genres(taken: np.ndarray, genres: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the share of a user's items that have an item's genres, the mean over these."""
    names = sorted(set().union(*genres))
    has = np.array([[name in some for name in names] for some in genres], np.float32)
    share = taken @ has / np.maximum(taken.sum(axis=1, keepdims=True), 1)
    return share @ (has / np.maximum(has.sum(axis=1, keepdims=True), 1)).T


def nearest_items(taken: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest items of each, by the cosine of who took them (Sarwar et al. 2001, section 3.1.1).

    Args:
        taken: bool (users, items).
        neighbours: k, of an item.

    Returns:
        Their places, int32 (items, k), and the cosines, float32 (items, k), the largest first.
    """
    x = taken.astype(np.float32)
    counts = np.maximum(x.sum(axis=0), 1)
    cosines = x.T @ x / np.sqrt(np.outer(counts, counts))
    np.fill_diagonal(cosines, 0)
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
    return places.astype(np.int32), np.take_along_axis(cosines, places, 1)


def item_neighbours(taken: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns the scores of item-based nearest neighbours: the sum of an item's cosines to a user's items.

    Args:
        taken: bool (users, items).
        neighbours: of an item, that count.
    """
    weights = np.zeros((taken.shape[1], taken.shape[1]), np.float32)
    places, cosines = nearest_items(taken, neighbours)
    np.put_along_axis(weights, places, cosines, 1)
    return taken @ weights.T


def bpr(
    taken: np.ndarray,
    *,
    width: int = 64,
    epochs: int = 60,
    rate: float = 0.05,
    decay: float = 0.02,
    seed: int = 0,
) -> np.ndarray:
    """Returns the scores of a matrix factorization trained by BPR (Rendle et al. 2009, LearnBPR).

    Batches of (user, item taken, item not taken), drawn at random; the gradient steps of a batch add up.

    Args:
        taken: bool (users, items).
        width: of the vectors.
        epochs: of as many triples as there are ratings.
        rate: of the gradient steps.
        decay: of the vectors, by the same rate.
        seed: of vectors and triples.
    """
    rng = np.random.default_rng(seed)
    users, items = np.nonzero(taken)
    mine = rng.normal(0, 0.1, (taken.shape[0], width)).astype(np.float32)
    theirs = rng.normal(0, 0.1, (taken.shape[1], width)).astype(np.float32)
    bias = np.zeros(taken.shape[1], np.float32)
    for _ in range(epochs):
        order = rng.permutation(len(users))
        for rows in np.array_split(order, max(len(order) // 256, 1)):
            u, i, j = users[rows], items[rows], rng.integers(0, taken.shape[1], len(rows))
            u, i, j = (x[~taken[u, j]] for x in (u, i, j))
            difference = (mine[u] * (theirs[i] - theirs[j])).sum(axis=1) + bias[i] - bias[j]
            slope = (rate / (1 + np.exp(difference)))[:, None].astype(np.float32)
            steps = slope * (theirs[i] - theirs[j]), slope * mine[u]
            np.add.at(mine, u, steps[0] - rate * decay * mine[u])
            np.add.at(theirs, i, steps[1] - rate * decay * theirs[i])
            np.add.at(theirs, j, -steps[1] - rate * decay * theirs[j])
            np.add.at(bias, i, slope[:, 0] - rate * decay * bias[i])
            np.add.at(bias, j, -slope[:, 0] - rate * decay * bias[j])
    return mine @ theirs.T + bias
