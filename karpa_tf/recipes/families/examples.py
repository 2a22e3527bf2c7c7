"""Labelled texts and tagged sentences in batches, and what a model gives for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.sequences import Sequences
from karpa_tf.recipes.families.encoders import Examples
from karpa_tf.recipes.families.tag_words import decode_tags
from karpa_tf.training.evaluation import Outputs


def note_of_cut(sequences: Sequences, length: int) -> str:
    """Returns a line on the texts that are longer than a row of `length` pieces; "" where none is."""
    if not sequences.cut:
        return ""
    are, were = ("is", "was") if sequences.cut == 1 else ("are", "were")
    return (
        f"{sequences.cut:,} of {len(sequences):,} texts {are} longer than {length} pieces and {were} cut; "
        "--sequence_length reads more."
    )


@dataclass(frozen=True, kw_only=True)
class Texts(Examples):
    """Texts in batches.

    Attributes:
        labels: int32 (rows,), in the order of the rows.
    """

    labels: np.ndarray

    def rows(self, outputs: Any) -> np.ndarray:
        """Returns what a model gives for each row (rows, ...), in the order of the rows."""
        batches = np.concatenate([batch for batch, _, _ in outputs])
        result = np.zeros_like(batches[: len(self.labels)])
        result[self.order[self.order >= 0]] = batches[self.order >= 0]
        return result

    def read(self, model: Any) -> np.ndarray:
        """Returns what a function of features gives for each row, as `rows` does."""
        return self.rows(Outputs(model, self.batches))

    def labelled(self, outputs: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.labels, self.probabilities(outputs)

    def probabilities(self, outputs: Any) -> np.ndarray:
        """Returns probabilities float32 (rows, classes), in the order of the rows."""
        return tf.nn.softmax(self.rows(outputs)).numpy()

    def right(self, outputs: Any, names: Sequence[str]) -> np.ndarray:
        return self.rows(outputs).argmax(axis=1) == self.labels


@dataclass(frozen=True, kw_only=True)
class Words(Examples):
    """Sentences in batches, and where their words are in what a model gives for them.

    Labels and weights of the batches (batch, time) are at the first pieces of the words.

    Attributes:
        tags: the true ones of each sentence.
        row: the row of each word, all sentences' words one after the other.
        place: where in that row its first piece is.
    """

    tags: list[list[str]]
    row: np.ndarray
    place: np.ndarray

    def at_words(self, outputs: Any) -> np.ndarray:
        """Returns what a model gives at the first piece of each word, float32 (words, ...)."""
        rows: dict[int, np.ndarray] = {}
        index = iter(self.order.tolist())
        for batch, _, _ in outputs:
            rows.update(zip([next(index) for _ in batch], batch, strict=True))
        return np.stack([rows[row][place] for row, place in zip(self.row, self.place, strict=True)])

    def by_sentence(self, words: Any) -> list[Any]:
        """Cuts what belongs to all words, one after the other, into sentences."""
        ends = np.cumsum([len(tags) for tags in self.tags])
        return [words[end - len(tags) : end] for end, tags in zip(ends, self.tags, strict=True)]

    def predict(self, outputs: Any, names: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
        """Returns tags in IOB2, a list a sentence, and the tags' probabilities float32 (words, tags)."""
        log_probabilities = tf.nn.log_softmax(self.at_words(outputs))
        lengths = tf.constant([len(tags) for tags in self.tags], tf.int64)
        best = traced_decoder(tuple(names))(log_probabilities, lengths).numpy()
        return self.by_sentence([names[tag] for tag in best]), np.exp(log_probabilities)

    def right(self, outputs: Any, names: Sequence[str]) -> np.ndarray:
        predicted, _ = self.predict(outputs, names)
        return np.array([found == tags for found, tags in zip(predicted, self.tags, strict=True)], bool)

    def labelled(self, outputs: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        words, tags = self._known(names)
        return tags, tf.nn.softmax(self.at_words(outputs)).numpy()[words]

    def loss(self, probabilities: np.ndarray, names: Sequence[str]) -> float:
        """Returns the mean negative log likelihood a word; of tags that the model has."""
        words, tags = self._known(names)
        return float(-np.log(np.maximum(probabilities[words, tags], 1e-30)).mean())

    def _known(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places of the words whose tags the model has, and these tags."""
        ids = {name: index for index, name in enumerate(names)}
        flat = [ids.get(tag, -1) for tag in chain.from_iterable(self.tags)]
        words, tags = np.array([(word, tag) for word, tag in enumerate(flat) if tag >= 0]).T
        return words, tags


@functools.cache
def traced_decoder(names: tuple[str, ...]) -> Any:
    """Returns `decode_tags` as a function that is traced once, however often a run is evaluated."""
    specs = [tf.TensorSpec([None, len(names)], tf.float32), tf.TensorSpec([None], tf.int64)]
    decode = functools.partial(decode_tags, names=names)
    return tf.function(decode, input_signature=specs, autograph=False)
