"""The served function of `bert-classifier`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from karpa_tf.data.sequences import dense_features, pack_texts
from karpa_tf.export.signature import text_input
from karpa_tf.lines import InALine
from karpa_tf.models.ensemble import logits_and_more
from karpa_tf.wordpiece import WordPiece


def text_inputs(text_b: str) -> dict[str, tf.TensorSpec]:
    """Returns the inputs of the signature; `text_b` is the column of the second text, if there is one."""
    return {**text_input(), **({"text_b": tf.TensorSpec([None], tf.string)} if text_b else {})}


@dataclass(frozen=True, repr=False)
class Classify(InALine):
    """Texts to labels and probabilities, in graph ops alone.

    Attributes:
        model: gives logits.
        wordpiece: its vocabulary.
        names: the labels, in the order of the logits.
        length: most pieces that are read of a text.
        pack: makes the model's features of texts (n,), where it is no encoder with a head.
    """

    model: keras.Model
    wordpiece: WordPiece
    names: Sequence[str]
    length: int
    pack: Callable[[tf.Tensor], dict[str, tf.Tensor]] | None = None

    def __call__(self, text: tf.Tensor, text_b: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Classifies texts, or pairs of them.

        Args:
            text: string (n,).
            text_b: string (n,), for a model of pairs.

        Returns:
            `label` string (n,) and `probabilities` float32 (n, classes); of an ensemble also `disagreement`
            float32 (n,).
        """
        if self.pack:
            features = self.pack(text)
        else:
            token_ids, segment_ids = pack_texts(self.wordpiece, text, text_b, length=self.length)
            features = dense_features(token_ids, segment_ids, self.wordpiece.pad_id)
        logits, more = logits_and_more(self.model, features)
        probabilities = tf.nn.softmax(logits)
        label = tf.gather(tf.constant(self.names), tf.argmax(probabilities, axis=1))
        return {"label": label, "probabilities": probabilities, **more}
