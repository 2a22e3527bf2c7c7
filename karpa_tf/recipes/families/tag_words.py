"""Texts to words and what a BERT reads of them, and words to tags: the graph ops that taggers serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.sequences import dense_features, letter_cases, pack_words, split_words
from karpa_tf.data.tags import OUTSIDE
from karpa_tf.lines import InALine
from karpa_tf.models.ensemble import logits_and_more
from karpa_tf.wordpiece import END, START, WordPiece


@dataclass(frozen=True, repr=False)
class TagWords(InALine):
    """The served function: texts to words and their tags, in graph ops alone.

    Attributes:
        model: gives logits at every piece.
        wordpiece: its vocabulary.
        names: the tags, in the order of the logits.
        length: most pieces of a row; a longer text is read in several.
    """

    model: keras.Model
    wordpiece: WordPiece
    names: Sequence[str]
    length: int

    def __call__(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Tags the words of texts.

        Args:
            text: string (n,).

        Returns:
            `tokens` and `tags` string, `scores` float32 (n, words): the words, their tags in IOB2 and the
            tags' probabilities; `words` int32 (n,), how many a text has: "" and 0 lie beyond. Of an ensemble
            also `disagreement` float32 (n, words).
        """
        read = read_words(self.wordpiece, text, length=self.length, cases=self.wordpiece.lowercase)
        logits, more = logits_and_more(self.model, read.features)
        return read.tagged(logits, self.names, more)


@dataclass(frozen=True)
class ReadWords:
    """Texts as a BERT reads them: rows of pieces, of a long text several.

    Attributes:
        words: string ragged (n, words).
        features: of the rows.
        place: int64 (words, 2), row and place in it of the first piece of each word, all texts' words one
            after the other.
        row: int64 (n,), the row with which each text begins; without words it is one of no words.
    """

    words: tf.RaggedTensor
    features: dict[str, tf.Tensor]
    place: tf.Tensor
    row: tf.Tensor

    def tagged(
        self, logits: tf.Tensor, names: Sequence[str], more: Mapping[str, tf.Tensor] | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns what `TagWords` gives.

        Args:
            logits: float32 (rows, pieces, tags).
            names: the tags.
            more: float32 (rows, pieces), what else there is to say of each piece, by name.
        """
        scores = tf.nn.log_softmax(tf.gather_nd(logits, self.place))
        tag = decode_tags(scores, self.words.row_lengths(), names)
        score = tf.exp(tf.gather(scores, tag, batch_dims=1))

        def dense(values: tf.Tensor, padding: str | float) -> tf.Tensor:
            return self.words.with_values(values).to_tensor(padding, shape=[None, None])

        return {
            "tokens": dense(self.words.flat_values, ""),
            "tags": dense(tf.gather(tf.constant(names), tag), ""),
            "scores": dense(score, 0.0),
            "words": tf.cast(self.words.row_lengths(), tf.int32),
            **{name: dense(tf.gather_nd(value, self.place), 0.0) for name, value in (more or {}).items()},
        }


def read_words(wordpiece: WordPiece, text: tf.Tensor, *, length: int, cases: bool) -> ReadWords:
    """Reads texts as words, in graph ops.

    Args:
        wordpiece: the vocabulary.
        text: string (n,).
        length: most pieces of a row.
        cases: whether the model reads `case_ids`.
    """
    words = split_words(text)
    token_ids, first = pack_words(wordpiece, words, length=length)
    # Texts without words have no row of their own; the model wants one at least.
    rows, none = token_ids.nrows(), words.row_lengths() == 0
    count = tf.cast(tf.reduce_any(none) | tf.equal(rows, 0), tf.int64)
    nothing = tf.RaggedTensor.from_uniform_row_length(
        tf.tile(tf.constant([wordpiece.ids[START], wordpiece.ids[END]], tf.int32), [count]), 2
    )
    token_ids = tf.concat([token_ids, nothing], axis=0)
    features = dense_features(token_ids, None, wordpiece.pad_id)
    place = tf.stack([first.value_rowids(), tf.cast(first.flat_values, tf.int64)], axis=1)
    if cases:
        shape = tf.shape(features["token_ids"], tf.int64)
        features["case_ids"] = tf.scatter_nd(place, letter_cases(words.flat_values), shape)
    begins = tf.gather(tf.concat([first.value_rowids(), rows[None]], 0), words.row_starts())
    return ReadWords(words, features, place, tf.where(none, rows, begins))


def decode_tags(scores: tf.Tensor, lengths: tf.Tensor, names: Sequence[str]) -> tf.Tensor:
    """Finds each text's most probable tags among those that are valid IOB2 (Viterbi 1967), in graph ops.

    An `I-` may only stand behind a `B-` or `I-` of its type. Taking each word's best tag and mending what is
    invalid loses several points of strict F1.

    Args:
        scores: float32 (words, tags), logarithms of probabilities, all texts' words one after the other.
        lengths: int64 (texts,), words of each.
        names: the tags.

    Returns:
        int64 (words,), places in `names`.
    """
    never = -1e9
    allowed = [[not b.startswith("I-") or a[2:] == b[2:] for b in names] for a in names]
    change = tf.constant(np.where(allowed, 0.0, never), tf.float32)
    start = tf.constant([never if name.startswith("I-") else 0.0 for name in names])
    # Behind a text's end everything is O, which may stand behind any tag.
    outside = tf.constant([0.0 if name == OUTSIDE else never for name in names])
    ragged = tf.RaggedTensor.from_row_lengths(scores, lengths)
    dense = ragged.to_tensor(0.0)
    inside = tf.sequence_mask(lengths, tf.shape(dense)[1])
    dense = tf.where(inside[:, :, None], dense, outside)
    # Two words more, for tf.scan wants something to go over where all texts are empty.
    dense = tf.concat([dense, tf.tile(outside[None, None], [tf.size(lengths), 2, 1])], axis=1)
    dense = tf.transpose(dense, [1, 0, 2])

    def forward(best: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(best[:, :, None] + change, axis=1) + score

    first = dense[0] + start
    best = tf.concat([first[None], tf.scan(forward, dense[1:], first)], axis=0)
    into = tf.transpose(change)

    def backward(behind: tf.Tensor, best: tf.Tensor) -> tf.Tensor:
        return tf.argmax(best + tf.gather(into, behind), axis=1)

    tags = tf.scan(backward, best[:-1], tf.argmax(best[-1], axis=1), reverse=True)
    return tf.boolean_mask(tf.transpose(tags)[:, : tf.shape(inside)[1]], inside)
