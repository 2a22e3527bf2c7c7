"""The served functions of `multi-task`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import keras
import tensorflow as tf

from karpa_tf.lines import InALine
from karpa_tf.recipes.families.tag_words import read_words
from karpa_tf.wordpiece import WordPiece

from .data import Head


@dataclass(frozen=True, repr=False)
class Answer(InALine):
    """Texts to what some tasks say of them, in one pass and in graph ops alone.

    Attributes:
        model: gives logits by task.
        wordpiece: its vocabulary.
        heads: the tasks that answer.
        length: most pieces of a row; labels are of a text's first row.
        cases: whether the model reads `case_ids`.
        prefix: whether an output's name begins with that of its task.
    """

    model: keras.Model
    wordpiece: WordPiece
    heads: Mapping[str, Head]
    length: int
    cases: bool
    prefix: bool = True

    def __call__(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answers texts.

        Args:
            text: string (n,).

        Returns:
            For a task of texts `label` string (n,) and `probabilities` float32 (n, classes); for one of words
            what `TagWords` gives.
        """
        read = read_words(self.wordpiece, text, length=self.length, cases=self.cases)
        logits = self.model(read.features, training=False)
        answers: dict[str, tf.Tensor] = {}
        for name, head in self.heads.items():
            if head.kind == "words":
                found = read.tagged(logits[name], head.names)
            else:
                probabilities = tf.nn.softmax(tf.gather(logits[name], read.row))
                label = tf.gather(tf.constant(head.names), tf.argmax(probabilities, axis=1))
                found = {"label": label, "probabilities": probabilities}
            answers |= {f"{name}_{key}" if self.prefix else key: value for key, value in found.items()}
        return answers
