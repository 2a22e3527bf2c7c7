"""Two towers, of items and of users, and a re-ranker: what a recommender is made of."""

from __future__ import annotations

from typing import Any

import keras
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


def build_user_tower(width: int, power: float = 0.5) -> keras.Model:
    """Builds what makes a vector of a user, of the items of his history: [(n, h, w), (n, h)] to (n, w)."""
    vectors = keras.Input((None, width), name="history")
    there = keras.Input((None,), name="there")
    return keras.Model([vectors, there], HistorySum(power, name="user")(vectors, there), name="user_tower")


@keras.saving.register_keras_serializable(package="karpa_tf")
class CandidateAttention(keras.layers.Layer):
    """What a history says of each candidate by itself: its items count by how they go with the candidate.

    Attention of candidates to the items of a history, as in DIN (Zhou et al. 2018,
    https://arxiv.org/abs/1706.06978, section 4.3) and NAIS (He et al. 2018), here of scaled products.

    Args:
        width: of what is compared.
    """

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.query = keras.layers.Dense(width, name="query")
        self.key = keras.layers.Dense(width, name="key")

    def build(self, candidates_shape: Any, history_shape: Any, there_shape: Any) -> None:
        self.query.build(candidates_shape)
        self.key.build(history_shape)
        self.built = True

    def call(self, candidates: Any, history: Any, there: Any) -> Any:
        """Returns float32 (n, c, w), zeros where there is no history.

        Args:
            candidates: float32 (n, c, w).
            history: float32 (n, h, w).
            there: float32 (n, h).
        """
        match = ops.matmul(self.query(candidates), ops.transpose(self.key(history), (0, 2, 1)))
        weights = ops.softmax(match / self.width**0.5 + (there[:, None] - 1) * 1e9)
        return ops.matmul(weights * there[:, None], history)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


def build_reranker(width: int, units: int = 32) -> keras.Model:
    """Builds what corrects the towers' scores of a user's candidates.

    Args:
        width: w, of the parts of items' vectors.
        units: of the hidden layer.

    Returns:
        [history float32 (n, h, w), there (n, h), candidates (n, c, w), scores (n, c)] to scores (n, c).
        Untrained, they are those of the towers.
    """
    history = keras.Input((None, width), name="history")
    there = keras.Input((None,), name="there")
    candidates = keras.Input((None, width), name="candidates")
    scores = keras.Input((None,), name="scores")
    attended = CandidateAttention(width, name="attention")(candidates, history, there)
    x = keras.layers.Concatenate(name="pair")(
        [keras.layers.Multiply(name="match")([attended, candidates]), candidates, scores[..., None]]
    )
    x = keras.layers.Dense(units, "relu", name="hidden")(x)
    x = keras.layers.Dense(1, kernel_initializer="zeros", name="correction")(x)
    outputs = keras.layers.Add(name="reranked")([scores, x[..., 0]])
    return keras.Model([history, there, candidates, scores], outputs, name="reranker")


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
