"""What `recommender` is made of: the table of items as it reads them, the towers, the re-ranker."""

from __future__ import annotations

import json
from functools import cached_property

import numpy as np
import tensorflow as tf

from karpa_tf.data.ratings import GENRE_SEPARATOR, Items
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.models.two_towers import build_item_tower, build_reranker, build_user_tower, join_towers
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.wordpiece import WordPiece, learn_wordpiece

from . import RecommenderSettings

_ITEMS, _VOCABULARY = "items.json", "vocab.txt"


class Table(InALine):
    """Items, and how their texts and genres are read.

    Args:
        items: a row each.
        known: bool (items,), those of which training has ratings. Others have no id of their own.
        wordpiece: the vocabulary of the texts.
        genres: names of genres; others are passed over.
        trained: items that the item tower has ids for: the first ones.
    """

    def __init__(
        self, items: Items, known: np.ndarray, wordpiece: WordPiece, genres: list[str], trained: int = 0
    ) -> None:
        self.items, self.known = items, known
        self.wordpiece, self.genres = wordpiece, genres
        self.trained = trained or len(items)
        numbers = tf.range(len(wordpiece), len(wordpiece) + len(genres))
        self.genre_numbers = lookup(genres, numbers) if genres else None

    @classmethod
    def learn(cls, items: Items, known: np.ndarray, size: int) -> Table:
        """Learns the vocabulary of items' texts, of `size` pieces at most, and the names of their genres."""
        genres = sorted({name for genre in items.genres for name in genre.split(GENRE_SEPARATOR) if name})
        return cls(items, known, learn_wordpiece(items.texts, size), genres)

    def joined(self, more: Items) -> Table:
        """Returns a table with further items, which training has not seen."""
        items = self.items.joined(more)
        known = np.concatenate([self.known, np.zeros(len(items) - len(self.known), bool)])
        return Table(items, known, self.wordpiece, self.genres, self.trained)

    def as_text(self) -> str:
        """Returns the items as JSON, one a line, with whether training has seen them."""
        rows = zip(self.items.ids, self.items.texts, self.items.genres, self.known.tolist(), strict=True)
        keys = ("id", "text", "genre", "trained")
        return "".join(
            f"{json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False)}\n" for row in rows
        )

    @property
    def ids(self) -> np.ndarray:
        """The ids in the item tower, int32 (items + 1,): 0 of row 0, which is none, and of unknown items."""
        return np.where(np.append(False, self.known), np.arange(len(self.known) + 1), 0).astype(np.int32)

    @cached_property
    def words(self) -> np.ndarray:
        """The numbers of each item's words and genres, int32 (items + 1, most); row 0 is of no item."""
        return self.read(tf.constant(["", *self.items.texts]), tf.constant(["", *self.items.genres])).numpy()

    def read(self, text: tf.Tensor, genre: tf.Tensor) -> tf.Tensor:
        """Reads texts and genres, string (n,) each, in graph ops; returns int32 (n, most), 0 is padding."""
        pieces = self.wordpiece.tokenize(text)
        if self.genre_numbers is None:
            return pieces.to_tensor(0)
        genres = tf.strings.split(genre, GENRE_SEPARATOR)
        return tf.concat([pieces, tf.ragged.map_flat_values(self.genre_numbers.lookup, genres)], 1).to_tensor(
            0
        )


class Parts(InALine):
    """The networks of a run.

    Args:
        config: its settings.
        table: of its items.
    """

    def __init__(self, config: RecommenderSettings, table: Table) -> None:
        self.table = table
        self.item_tower = build_item_tower(
            len(table.wordpiece) + len(table.genres),
            table.trained,
            config.width,
            id_dropout=config.id_dropout,
            seed=config.seed,
        )
        self.user_tower = build_user_tower(config.width)
        self.reranker = (
            build_reranker(table.trained, min(config.neighbours, table.trained))
            if config.rerank_share
            else None
        )
        self.model = join_towers(self.item_tower, self.user_tower, self.reranker)

    def vectors(self) -> tf.Tensor:
        """Returns the vectors of the table's items, float32 (items + 1, 2 width + 1); row 0 is of no item."""
        vectors = self.item_tower(
            [tf.constant(self.table.ids), tf.constant(self.table.words)], training=False
        )
        return vectors * tf.concat([[[0.0]], tf.ones([len(self.table.items), 1])], 0)


def lookup(names: list[str], numbers: tf.Tensor | np.ndarray) -> tf.lookup.StaticHashTable:
    """Returns a table from names to int32 numbers; 0 for others."""
    pairs = tf.lookup.KeyValueTensorInitializer(names, tf.cast(numbers, tf.int32))
    return tf.lookup.StaticHashTable(pairs, 0)


def keep_table(run: Run[RecommenderSettings], table: Table) -> None:
    """Writes a table into the assets of a run."""
    if run.chief:
        table.wordpiece.save(run.folder.assets / _VOCABULARY)
    items = {"ids": table.items.ids, "texts": table.items.texts, "genres": table.items.genres}
    run.write_asset(_ITEMS, {**items, "known": table.known.tolist(), "names_of_genres": table.genres})


def read_table(folder: RunFolder) -> Table:
    """Returns what `keep_table` has written.

    Raises:
        UserError: it cannot be read.
    """
    try:
        kept = folder.read_json(f"assets/{_ITEMS}")
        items = Items(kept["ids"], kept["texts"], kept["genres"])
        known, genres = np.array(kept["known"], bool), kept["names_of_genres"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.assets / _ITEMS} cannot be read ({error}); train again.") from None
    return Table(items, known, WordPiece.load(folder.assets / _VOCABULARY), genres)
