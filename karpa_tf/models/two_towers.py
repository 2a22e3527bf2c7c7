"""Two towers, of items and of users, and a re-ranker: what a recommender is made of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="karpa_tf")
class IdDropout(keras.layers.Layer):
    """Takes an item for a new one at random, in training: its id becomes 0, which stands for no id.

    So the text alone must say something of an item too (DropoutNet, Volkovs et al. 2017, section 4).

    Args:
        rate: the share of the ids.
        seed: of the random numbers; None: Keras' own.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, ids: Any, training: bool = False) -> Any:
        """Returns ids int32 (n,), some of them 0 in training."""
        if not training or not self.rate:
            return ids
        kept = keras.random.uniform(ops.shape(ids), seed=self.seed_generator) >= self.rate
        return ids * ops.cast(kept, ids.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="karpa_tf")
class WordSum(keras.layers.Layer):
    """The sum of the vectors of a row's words by the root of their number; word 0 is padding.

    Args:
        words: how many there are, with padding.
        width: of the vectors.
    """

    def __init__(self, words: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words, self.width = words, width
        self.embedding = keras.layers.Embedding(words, width, name="words")

    def build(self, shape: Any) -> None:
        self.embedding.build(shape)
        self.built = True

    def call(self, words: Any) -> Any:
        """Returns float32 (n, width) of words int32 (n, most)."""
        there = ops.cast(words > 0, "float32")[..., None]
        number = ops.maximum(ops.sum(there, axis=1), 1.0)
        return ops.sum(self.embedding(words) * there, axis=1) / ops.sqrt(number)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "words": self.words, "width": self.width}


@keras.saving.register_keras_serializable(package="karpa_tf")
class HistorySum(keras.layers.Layer):
    """A user as the items that he took: the sum of their vectors by a power of their number, plus a start.

    The start is a user of whom nothing is known. So a user's score of an item is a sum with one term for each
    item of his history.

    Args:
        power: 1: the mean, 0: the sum.
    """

    def __init__(self, power: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.power = power

    def build(self, vectors_shape: Any, there_shape: Any) -> None:
        self.start = self.add_weight(shape=(vectors_shape[-1],), initializer="zeros", name="start")
        self.built = True

    def call(self, vectors: Any, there: Any) -> Any:
        """Returns float32 (n, width).

        Args:
            vectors: float32 (n, items, width).
            there: float32 (n, items), 1 where there is an item, 0 of padding.
        """
        number = ops.maximum(ops.sum(there, axis=1, keepdims=True), 1.0)
        return self.start + ops.sum(vectors * there[..., None], axis=1) / number**self.power

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


def build_item_tower(
    words: int, items: int, width: int, *, id_dropout: float = 0.1, seed: int | None = None
) -> keras.Model:
    """Builds what makes a vector of an item, of its words and, if it has one, its id.

    Args:
        words: pieces of words and genres that there are, with padding.
        items: that have an id: 1 and on; 0 stands for none.
        width: w, of each part of the vector.
        id_dropout: see `IdDropout`.
        seed: of that.

    Returns:
        [id int32 (n,), words int32 (n, most)] to float32 (n, 2 w + 1): what a user's vector is multiplied by,
        the bias, and what the item says of a user in whose history it is; see `parts_of`.
    """
    ids = keras.Input((), dtype="int32", name="id")
    some = keras.Input((None,), dtype="int32", name="words")
    text = keras.layers.Dense(2 * width + 1, name="text")(WordSum(words, width, name="words_sum")(some))
    own = keras.layers.Embedding(items + 1, 2 * width + 1, name="own")(
        IdDropout(id_dropout, seed, name="id_dropout")(ids)
    )
    return keras.Model([ids, some], keras.layers.Add(name="item")([text, own]), name="item_tower")


def parts_of(vectors: Any) -> tuple[Any, Any, Any]:
    """Returns the parts of items' vectors (..., 2 w + 1): to be liked by, the bias (...,), of history."""
    width = vectors.shape[-1] // 2
    return vectors[..., :width], vectors[..., width], vectors[..., width + 1 :]


def marked(places: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """Returns which places are in each row: bool (n, count) of int (n, m)."""
    shape = tf.shape(places)
    rows = tf.repeat(tf.range(shape[0]), shape[1])
    pairs = tf.stack([rows, tf.reshape(places, [-1])], 1)
    return tf.scatter_nd(pairs, tf.ones_like(rows), tf.stack([shape[0], count])) > 0


def build_user_tower(width: int, power: float = 0.5) -> keras.Model:
    """Builds what makes a vector of a user, of the items of his history.

    Args:
        width: w, of the vectors.
        power: see `HistorySum`.

    Returns:
        [vectors of the items float32 (n, h, w), there float32 (n, h)] to float32 (n, w).
    """
    vectors = keras.Input((None, width), name="history")
    there = keras.Input((None,), name="there")
    return keras.Model([vectors, there], HistorySum(power, name="user")(vectors, there), name="user_tower")


@keras.saving.register_keras_serializable(package="karpa_tf")
class Neighbours(keras.layers.Layer):
    """How near a candidate's nearest items are to a history: the sum of the cosines of those that are in it,
    by the root of its length.

    The table of neighbours is a weight that is not trained: `assign` fills it.

    Args:
        items: that have an id; ids are from 1, and 0 stands for none.
        neighbours: k, of an item.
    """

    def __init__(self, items: int, neighbours: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.items, self.neighbours = items, neighbours

    def build(self, history_shape: Any, candidates_shape: Any) -> None:
        shape = (self.items + 1, self.neighbours)
        options = {"initializer": "zeros", "trainable": False}
        self.places = self.add_weight(shape=shape, dtype="int32", name="places", **options)
        self.cosines = self.add_weight(shape=shape, name="cosines", **options)
        self.built = True

    def assign(self, places: Any, cosines: Any) -> None:
        """Fills the table.

        Args:
            places: int (items, k), from 0, of the items' neighbours.
            cosines: float (items, k).
        """
        self.places.assign(np.pad(np.asarray(places) + 1, [[1, 0], [0, 0]]))
        self.cosines.assign(np.pad(np.asarray(cosines), [[1, 0], [0, 0]]))

    def call(self, history: Any, candidates: Any) -> Any:
        """Returns float32 (n, c).

        Args:
            history: int32 (n, h), ids; 0 is padding.
            candidates: int32 (n, c), ids.
        """
        taken = marked(history, self.items + 1) & (tf.range(self.items + 1) > 0)
        taken = ops.cast(taken, "float32")
        near = ops.take(self.places, candidates, axis=0)
        count = ops.shape(candidates)[1]
        there = ops.take_along_axis(taken, ops.reshape(near, (-1, count * self.neighbours)), axis=1)
        there = ops.reshape(there, (-1, count, self.neighbours))
        number = ops.maximum(ops.sum(taken, axis=1, keepdims=True), 1.0)
        return ops.sum(there * ops.take(self.cosines, candidates, axis=0), axis=-1) / ops.sqrt(number)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "items": self.items, "neighbours": self.neighbours}


def build_reranker(items: int, neighbours: int = 200, units: int = 16) -> keras.Model:
    """Builds what corrects the towers' scores of a user's candidates by what people took together.

    The towers generalize, to new items too; the neighbours are a memory of those that are known (as the deep
    and the wide part of Cheng et al. 2016, https://arxiv.org/abs/1606.07792).

    Args:
        items: that have an id.
        neighbours: of an item.
        units: of the hidden layer.

    Returns:
        [history int32 (n, h), candidates int32 (n, c), scores float32 (n, c)] to scores float32 (n, c).
        Untrained, they are those of the towers.
    """
    history = keras.Input((None,), dtype="int32", name="history")
    candidates = keras.Input((None,), dtype="int32", name="candidates")
    scores = keras.Input((None,), name="scores")
    near = Neighbours(items, neighbours, name="neighbours")(history, candidates)
    pair = keras.layers.Concatenate(name="pair")([scores[..., None], near[..., None]])
    hidden = keras.layers.Dense(units, "relu", name="hidden")(pair)
    both = keras.layers.Concatenate(name="both")([pair, hidden])
    correction = keras.layers.Dense(1, kernel_initializer="zeros", name="correction")(both)
    outputs = keras.layers.Add(name="reranked")([scores, correction[..., 0]])
    return keras.Model([history, candidates, scores], outputs, name="reranker")


def join_towers(
    item_tower: keras.Model, user_tower: keras.Model, reranker: keras.Model | None
) -> keras.Model:
    """Returns one model of all parts, for files of weights."""
    parts = [part for part in (item_tower, user_tower, reranker) if part]
    inputs = [
        [keras.Input(x.shape[1:], dtype=x.dtype, name=f"{p.name}_{x.name}") for x in p.inputs] for p in parts
    ]
    outputs = [part(some) for part, some in zip(parts, inputs, strict=True)]
    return keras.Model([x for some in inputs for x in some], outputs, name="recommender")
