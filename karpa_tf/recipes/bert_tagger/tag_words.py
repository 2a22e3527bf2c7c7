"""The served function of `bert-tagger`, and how it chooses tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.sequences import dense_features, letter_cases, pack_words, split_words
from karpa_tf.data.tags import OUTSIDE
from karpa_tf.lines import InALine
from karpa_tf.models.ensemble import logits_and_more
from karpa_tf.wordpiece import WordPiece


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
        words = split_words(text)
        token_ids, first = pack_words(self.wordpiece, words, length=self.length)
        features = dense_features(token_ids, None, self.wordpiece.pad_id)
        place = tf.stack([first.value_rowids(), tf.cast(first.flat_values, tf.int64)], axis=1)
        if self.wordpiece.lowercase:
            shape = tf.shape(features["token_ids"], tf.int64)
            features["case_ids"] = tf.scatter_nd(place, letter_cases(words.flat_values), shape)
        # A batch of empty texts has no row, and the model wants one.
        none = tf.cast(tf.equal(token_ids.nrows(), 0), tf.int32)
        features = {name: tf.pad(value, [[0, none], [0, none]]) for name, value in features.items()}
        logits, more = logits_and_more(self.model, features)
        scores = tf.nn.log_softmax(tf.gather_nd(logits, place))
        tag = decode_tags(scores, words.row_lengths(), self.names)
        score = tf.exp(tf.gather(scores, tag, batch_dims=1))
        shape = [None, None]
        return {
            "tokens": words.to_tensor("", shape=shape),
            "tags": words.with_values(tf.gather(tf.constant(self.names), tag)).to_tensor("", shape=shape),
            "scores": words.with_values(score).to_tensor(0.0, shape=shape),
            "words": tf.cast(words.row_lengths(), tf.int32),
            **{
                name: words.with_values(tf.gather_nd(value, place)).to_tensor(0.0, shape=shape)
                for name, value in more.items()
            },
        }


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
