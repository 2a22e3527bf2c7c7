"""What `recommender` serves: candidates in the order of a user, the best of all items, items as vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.lines import InALine
from karpa_tf.models.two_towers import marked, parts_of
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

from .network import Parts, lookup

# Items that the towers hand to the re-ranker.
RETRIEVED = 100
# The score of padding, and of what is not in the table.
_NONE = tf.float32.min


class Recommender(InALine):
    """A run's networks and a table of items, in graph ops alone.

    Args:
        parts: the networks.

    Attributes:
        vectors: of the items, float32 (items + 1, 2 width + 1); row 0 is of none.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.table = parts, parts.table
        self.vectors = keras.Variable(parts.vectors(), trainable=False, dtype="float32", name="item_vectors")
        self.names = tf.constant(["", *self.table.items.ids])
        self.rows = lookup(self.table.items.ids, np.arange(1, len(self.table.items) + 1))
        self.ids = lookup(self.table.items.ids, self.table.ids[1:])

    # --- Rows of the table, 0 for none

    def user(self, history: tf.Tensor) -> tf.Tensor:
        """Returns the vectors of users, float32 (n, width), of histories int (n, h)."""
        there = tf.cast(history > 0, tf.float32)
        said = parts_of(tf.gather(self.vectors.value, history))[2]
        return self.parts.user_tower([said, there], training=False)

    def tower_scores(self, history: tf.Tensor) -> tf.Tensor:
        """Returns the towers' scores of all items, float32 (n, items), of histories int (n, h)."""
        liked, bias, _ = parts_of(self.vectors.value[1:])
        return tf.matmul(self.user(history), liked, transpose_b=True) + bias

    def scores(self, history: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        """Returns the scores of candidates int (n, c), float32 (n, c), of histories int (n, h)."""
        user = self.user(history)
        liked, bias, _ = parts_of(tf.gather(self.vectors.value, candidates))
        scores = tf.einsum("nw,ncw->nc", user, liked) + bias
        if self.parts.reranker:
            ids = [tf.gather(self.table.ids, places) for places in (history, candidates)]
            scores = self.parts.reranker([*ids, scores], training=False)
        return tf.where(candidates > 0, scores, _NONE)

    # --- What is served

    def score(self, history: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores candidates.

        Args:
            history: string [n, h], ids of the items that a user took; "" is padding, and an id that is not in
                the table is passed over.
            candidates: string [n, c], ids of items; "" is padding.

        Returns:
            `scores` float32 [n, c]; the lowest float32 for padding and for what is not in the table.

        Raises:
            tf.errors.InvalidArgumentError: a row has no candidate, or ids in its history of which none is in
                the table.
        """
        past = self._past(history)
        some = tf.reduce_all(tf.reduce_any(candidates != "", 1))
        with _asserted(some, "There are no candidates: give the id of an item at least, in every row."):
            return {"scores": self.scores(past, self.rows.lookup(candidates))}

    def recommend(self, history: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Ranks candidates, the best one first.

        Args:
            history: as for `score`.
            candidates: the same.

        Returns:
            `ranked` string [n, c], and their `scores` float32 [n, c].
        """
        scores = self.score(history, candidates)["scores"]
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        return {
            "ranked": tf.gather(candidates, order, batch_dims=1),
            "scores": tf.gather(scores, order, batch_dims=1),
        }

    def retrieve(self, history: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the items of the whole table that the towers score best, without those of the history.

        Args:
            history: as for `score`.

        Returns:
            `item` string [n, k] and `score` float32 [n, k], the best one first; "" is padding.
        """
        past = self._past(history)
        taken = marked(past, len(self.table.items) + 1)[:, 1:]
        scores = tf.where(taken, _NONE, self.tower_scores(past))
        score, places = tf.math.top_k(scores, min(RETRIEVED, len(self.table.items)))
        return {"item": tf.gather(self.names, tf.where(score > _NONE, places + 1, 0)), "score": score}

    def embed_item(self, id: tf.Tensor, text: tf.Tensor, genre: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns items as vectors, those of the table and any others.

        Args:
            id: string [n]; "" or one that training has not seen: the text and the genre alone count.
            text: string [n].
            genre: string [n], several with `|` between them; "": none.

        Returns:
            `vector` float32 [n, width + 1]: its product with a user's vector and a 1 behind it is the towers'
            score.
        """
        vectors = self.parts.item_tower([self.ids.lookup(id), self.table.read(text, genre)], training=False)
        liked, bias, _ = parts_of(vectors)
        return {"vector": tf.concat([liked, bias[:, None]], 1)}

    def _past(self, history: tf.Tensor) -> tf.Tensor:
        past = self.rows.lookup(history)
        unknown = tf.reduce_any(history != "", 1) & ~tf.reduce_any(past > 0, 1)
        said = "None of the items of a history is in the table. Received:"
        with _asserted(~tf.reduce_any(unknown), said, tf.boolean_mask(history, unknown)):
            return tf.identity(past)

    def signatures(self) -> dict[str, Signature]:
        """Returns what is served, by name."""
        many, one = tf.TensorSpec([None, None], tf.string), tf.TensorSpec([None], tf.string)
        history, both = {"history": many}, {"history": many, "candidates": many}
        item = {"id": one, "text": one, "genre": one}
        functions: dict[str, tuple[Any, dict[str, tf.TensorSpec], list[str]]] = {
            "serving_default": (self.recommend, both, ["ranked scores"]),
            "score": (self.score, both, []),
            "retrieve": (self.retrieve, history, ["item score"]),
            "embed_item": (self.embed_item, item, []),
        }
        tables = [self.rows, self.ids, *filter(None, [self.table.genre_numbers])]
        return {
            name: Signature(
                function,
                inputs,
                variables=[self.vectors, *self.parts.model.variables],
                resources=tables,
                check=self.check if "history" in inputs else None,
                shown=shown,
            )
            for name, (function, inputs, shown) in functions.items()
        }

    def check(self, number: int, row: Mapping[str, Any]) -> None:
        """Raises a UserError for a row without candidates, or without a known item in its history."""
        for name in ("history", "candidates"):
            values = row.get(name, [])
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise UserError(
                    f'Row {number}: {name} must be a list of texts, the ids of items, as ["50", "172"]. '
                    f"Received: {str(values)[:80]}."
                )
        known = set(self.table.items.ids)
        history = [name for name in row["history"] if name]
        if history and not known & set(history):
            raise UserError(
                f"Row {number}: none of the {len(history)} items of the history is in the table of "
                f"{len(known):,} items. Received: {', '.join(history[:5])}."
            )
        if not any(row.get("candidates", ["all"])):
            raise UserError(f"Row {number}: there are no candidates; give the id of an item at least.")


def _asserted(condition: tf.Tensor, *said: Any) -> Any:
    return tf.control_dependencies(list(filter(None, [tf.debugging.Assert(condition, [*said])])))


def examples(recommender: Recommender) -> list[dict[str, Any]]:
    """Returns rows that every signature takes, to try an export with: one without a history, one new item."""
    items = recommender.table.items
    rng = np.random.default_rng(0)

    def some(count: int) -> list[str]:
        return [items.ids[place] for place in rng.choice(len(items), min(count, len(items)), replace=False)]

    rows = [{"history": some(4), "candidates": [*some(5), ""]} for _ in range(3)]
    rows += [{"history": [*some(1), "", "", "not an item"], "candidates": [*some(5), "not an item"]}]
    rows += [{"history": [""] * 4, "candidates": [*some(2), "", "", "", ""]}]
    return [
        {
            **row,
            "id": items.ids[place] if place else "",
            "text": items.texts[place],
            "genre": items.genres[place],
        }
        for place, row in enumerate(rows)
    ]


def model_card(folder: RunFolder, recommender: Recommender, metrics: Mapping[str, Any]) -> str:
    """Returns the model card of a run."""
    config, table = folder.read_config(), recommender.table
    width = recommender.parts.user_tower.output.shape[-1]
    simulated = "" if config["data"] != "embedded" else " The users are simulated, and so are these figures."
    new = int((~table.known).sum())
    shown = [name for name in metrics if name.endswith("_10") and not name.startswith("validation")]
    return f"""# {folder.recipe}

Ranks items for users, who are known by the items that they took. Trained on {config["data"]}.{simulated}
{len(table.items):,} items; {new:,} of them were not seen in training, and are known by text and genre alone.

- `serving_default`: `history` string [n, h], `candidates` string [n, c] -> `ranked` string [n, c], `scores`
  float32 [n, c]
- `score`: the same inputs -> `scores` float32 [n, c], in the order of the candidates
- `retrieve`: `history` -> the items of the table that the towers score best, `item` string [n, k] and `score`
- `embed_item`: `id`, `text`, `genre` string [n] -> `vector` float32 [n, {width + 1}]

"" is padding. An id that is not in the table is passed over in a history, and is the last among candidates. A
history without any known item is refused; an empty one is a user of whom nothing is known.

All items ranked that a user has not taken, on held-out ratings; `cold_` are items that training has not seen,
ranked among each other:

{metrics_table(metrics, shown)}

{settings_list(config)}
"""
