"""How `recommender` is judged: on all items that a user has not taken, and on new ones among each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from karpa_tf.data.ratings import GENRE_SEPARATOR, RatingSplits
from karpa_tf.judging.ranking import (
    bpr,
    item_neighbours,
    own_genres,
    popularity,
    popularity_by_genre,
    ranking_metrics,
)
from karpa_tf.lines import InALine
from karpa_tf.recipe import Evaluation

from .network import Parts
from .served import RETRIEVED, Recommender

# Users that are scored at once.
_AT_ONCE = 64
_NEIGHBOURS = 200
# Far below every score of what the re-ranker has seen.
_BEHIND = 1e6


def histories(taken: np.ndarray) -> np.ndarray:
    """Returns the rows of the table that each user took, int32 (users, most), from 1; 0 is padding."""
    found = np.zeros((len(taken), max(int(taken.sum(axis=1).max()), 1)), np.int32)
    for user, row in enumerate(taken):
        places = np.flatnonzero(row) + 1
        found[user, : len(places)] = places
    return found


class Judge(InALine):
    """Ranks all items with a run's networks, as they are when it is called.

    Args:
        parts: the networks.
    """

    def __init__(self, parts: Parts) -> None:
        self.recommender = Recommender(parts)
        many = tf.TensorSpec([None, None], tf.int32)
        towers = tf.function(self.recommender.tower_scores, autograph=False)
        rerank = tf.function(self.recommender.scores, autograph=False)
        self._towers, self._rerank = (
            towers.get_concrete_function(many),
            rerank.get_concrete_function(many, many),
        )

    def __call__(self, taken: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Returns the scores of all items: first come those that the towers retrieve, with the re-ranker's.

        Args:
            taken: bool (users, items), the histories; what is in them is not retrieved.
            allowed: bool (items,), what may be recommended; others score -inf.

        Returns:
            float32 (users, items).
        """
        self.recommender.vectors.assign(self.recommender.parts.vectors())
        past = histories(taken)
        found = []
        for begin in range(0, len(past), _AT_ONCE):
            rows = slice(begin, begin + _AT_ONCE)
            some = tf.constant(past[rows])
            scores = np.where(allowed & ~taken[rows], self._towers(some).numpy(), -np.inf)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :RETRIEVED]
            again = self._rerank(some, tf.constant(best + 1, tf.int32)).numpy()
            again = np.where(np.isfinite(np.take_along_axis(scores, best, 1)), again, -np.inf)
            scores -= _BEHIND
            np.put_along_axis(scores, best, again, 1)
            found.append(scores)
        return np.concatenate(found)

    def validate(self, splits: RatingSplits) -> dict[str, float]:
        """Returns nDCG and recall of the validation ratings, of the histories before them."""
        seen = splits.matrix("train", "rerank")
        return ranking_metrics(self(seen, ~splits.cold), seen, splits.matrix("validation"))


def compare(parts: Parts, splits: RatingSplits, where: str) -> Evaluation:
    """Judges a run on the test ratings, and on the items that training has not seen; so are baselines."""
    judge = Judge(parts)
    seen, warm = splits.matrix("train", "rerank", "validation"), ~splits.cold
    wanted, cold = splits.matrix("test"), splits.matrix("cold_test")
    genres = [genre.split(GENRE_SEPARATOR) if genre else [] for genre in splits.ratings.items.genres]
    scorers: dict[str, Callable[[], np.ndarray]] = {
        "": lambda: judge(seen, warm),
        "popularity": lambda: popularity(seen),
        "item neighbours": lambda: item_neighbours(seen, _NEIGHBOURS),
        "BPR matrix factorization": lambda: bpr(seen),
    }
    found = {
        name: ranking_metrics(np.where(warm, scores(), -np.inf), seen, wanted)
        for name, scores in scorers.items()
    }
    if cold.any():
        new: dict[str, Callable[[], np.ndarray]] = {
            "": lambda: judge(seen, splits.cold),
            "popularity by genre": lambda: popularity_by_genre(seen, genres, warm),
            "own genres": lambda: own_genres(seen, genres),
        }
        for name, scores in new.items():
            of_new = ranking_metrics(np.where(splits.cold, scores(), -np.inf), seen, cold)
            found.setdefault(name, {}).update({f"cold_{key}": value for key, value in of_new.items()})
    return Evaluation(
        data=where,
        metrics=found.pop(""),
        baselines=found,
        facts={
            "users": int((wanted.any(axis=1) & seen.any(axis=1)).sum()),
            "items": int(warm.sum()),
            "cold items": int(splits.cold.sum()),
            "test ratings": len(splits.test),
        },
    )
