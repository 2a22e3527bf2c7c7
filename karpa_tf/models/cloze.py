"""A classifier of texts by the words that a masked language model puts into a gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def build_cloze(
    masked_lm: keras.Model, words: Sequence[Sequence[Sequence[int]]], patterns: int = 1
) -> keras.Model:
    """Builds a classifier on a masked language model (Schick & Schuetze 2021, https://arxiv.org/abs/2001.07676).

    Inputs: those of the language model; a text is several rows of them, one after the other, a row for each
    pattern and each length of a word. Output: float32 logits (texts, classes).

    Args:
        masked_lm: gives logits (rows, masks, vocabulary), of `build_bert_masked_lm` or `build_mlm_gru`.
        words: for each class its words, each a list of the ids of its pieces.
        patterns: number of patterns.
    """
    # === Layers ===
    verbalizer = Verbalizer(words, patterns, dtype="float32", name="verbalizer")

    # === Functional Model ===
    return keras.Model(masked_lm.input, verbalizer(masked_lm.output), name="cloze")


@keras.saving.register_keras_serializable(package="karpa_tf")
class Verbalizer(keras.layers.Layer):
    """Logits of masks, float32 (rows, masks, vocabulary), to logits of classes, float32 (texts, classes).

    The score of a word is the mean of the logarithms of its pieces' probabilities, each at a mask of its own;
    that of a class is the mean probability of its words, as a logarithm, averaged over the patterns. To it
    a bias is added, for the calibration of Zhao et al. 2021 (https://arxiv.org/abs/2102.09690).

    Args:
        words: for each class its words, each a list of the ids of its pieces.
        patterns: number of patterns; the rows of a text are those of the first pattern, with as many masks
            as the shortest words have pieces, then those with more, then those of the next pattern.
    """

    def __init__(self, words: Sequence[Sequence[Sequence[int]]], patterns: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = [[list(map(int, word)) for word in several] for several in words]
        self.patterns = patterns

    @property
    def lengths(self) -> list[int]:
        """How many pieces words have, rising."""
        return sorted({len(word) for several in self.words for word in several})

    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=(len(self.words),), initializer="zeros", name="bias")

    def call(self, logits: Any) -> Any:
        lengths = self.lengths
        masks, vocabulary = tf.shape(logits)[1], logits.shape[2]
        logs = tf.reshape(tf.nn.log_softmax(logits), [-1, self.patterns, len(lengths), masks, vocabulary])

        def score(word: list[int]) -> Any:
            row = logs[:, :, lengths.index(len(word))]
            pieces = [row[:, :, place, piece] for place, piece in enumerate(word)]
            return tf.add_n(pieces) / len(word)

        scores = []
        for several in self.words:
            of_words = tf.stack([score(word) for word in several], axis=2)
            scores.append(tf.reduce_logsumexp(of_words, axis=2) - math.log(len(several)))
        return tf.reduce_mean(tf.stack(scores, axis=2), axis=1) + self.bias

    def compute_output_spec(self, logits: Any) -> Any:
        return keras.KerasTensor((None, len(self.words)), "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "words": self.words, "patterns": self.patterns}
