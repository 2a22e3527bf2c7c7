"""A tagger of words: a BERT encoder and one dense layer at every piece."""

from __future__ import annotations

import keras

from karpa_tf.models.bert import Dropout


def build_bert_tagger(bert: keras.Model, tags: int, *, dropout: float = 0.1) -> keras.Model:
    """Builds a tagger on an encoder; keras-hub has none.

    Inputs: those of `build_bert`. Output: float32 logits (batch, time, tags); those at the first piece
    of a word are the word's.

    Args:
        bert: the encoder.
        tags: number of tags.
        dropout: share of the encoder's output dropped in training.
    """
    # === Layers ===
    drop = Dropout(dropout, dtype=bert.output.dtype, name="drop_output")
    head = keras.layers.Dense(
        tags,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        dtype="float32",
        name="logits",
    )

    # === Functional Model ===
    return keras.Model(bert.input, head(drop(bert.output)), name="bert_tagger")
