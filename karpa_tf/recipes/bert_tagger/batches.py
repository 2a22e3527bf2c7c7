"""Tagged sentences in batches, and what a model gives for their words."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.sequences import encode_words, rows_of, sequence_batches
from karpa_tf.data.tags import Sentence
from karpa_tf.recipes.families.encoders import Examples, Task
from karpa_tf.training.evaluation import Outputs

from . import BertTaggerSettings
from .tag_words import decode_tags

TaggerTask = Task[BertTaggerSettings]

# Rows that are evaluated at once.
_AT_ONCE = 32


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

    def at_words(self, outputs: Outputs) -> np.ndarray:
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

    def predict(self, outputs: Outputs, names: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
        """Returns tags in IOB2, a list a sentence, and the tags' probabilities float32 (words, tags)."""
        log_probabilities = tf.nn.log_softmax(self.at_words(outputs))
        lengths = tf.constant([len(tags) for tags in self.tags], tf.int64)
        best = traced_decoder(tuple(names))(log_probabilities, lengths).numpy()
        return self.by_sentence([names[tag] for tag in best]), np.exp(log_probabilities)

    def labelled(self, outputs: Outputs, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
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


def batch_words(task: TaggerTask, sentences: Sequence[Sentence], training: bool) -> Words:
    """Cuts words into pieces and puts sentences of like length into a batch."""
    config = task.config
    sequences, places = encode_words(task.wordpiece, [s.words for s in sentences], config.sequence_length)
    ids = {name: index for index, name in enumerate(task.names)}
    # A type that training never saw cannot be predicted; it still counts as missed.
    tags = [list(sentence.tags) for sentence in sentences]
    labels = np.zeros(len(sequences.token_ids), np.int32)
    weights = np.zeros(len(labels), np.float32)
    labels[places] = [ids.get(tag, 0) for tag in chain.from_iterable(tags)]
    weights[places] = 1.0
    size = config.batch_size if training else _AT_ONCE
    batches = sequence_batches(
        sequences,
        labels,
        weights,
        task.wordpiece,
        batch_size=size,
        seed=config.seed if training else None,
        buckets=config.buckets,
        token_dropout=config.token_dropout,
    )
    row = np.searchsorted(sequences.offsets, places, side="right") - 1
    order = np.zeros(0, int) if training else rows_of(sequences, size)
    place = places - sequences.offsets[row]
    return Words(batches=batches, order=order, tags=tags, row=row, place=place)


@functools.cache
def traced_decoder(names: tuple[str, ...]) -> Any:
    """Returns `decode_tags` as a function that is traced once, however often a run is evaluated."""
    specs = [tf.TensorSpec([None, len(names)], tf.float32), tf.TensorSpec([None], tf.int64)]
    decode = functools.partial(decode_tags, names=names)
    return tf.function(decode, input_signature=specs, autograph=False)
