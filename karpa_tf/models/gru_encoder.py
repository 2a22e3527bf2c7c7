"""An encoder of pieces with BERT's inputs and outputs: an embedding and a bidirectional GRU."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from karpa_tf.models.bert import Dropout
from karpa_tf.models.bidirectional_gru import BidirectionalGRU


def build_gru_encoder(
    vocabulary_size: int,
    *,
    width: int = 256,
    segments: int = 2,
    dropout: float = 0.1,
    dtype: str = "float32",
) -> keras.Model:
    """Builds an embedding and a bidirectional GRU of `width / 2` units in each direction.

    Inputs: those of `build_bert`. Output: (batch, time, width), the states of both directions side by side,
    float32 or, in mixed precision, bfloat16.

    Args:
        vocabulary_size: number of pieces.
        width: of the embedding and of the output; even.
        segments: kinds of segments.
        dropout: share of the activations dropped in training, to the next 1/256.
        dtype: `float32` or `mixed_bfloat16`.

    Raises:
        ValueError: `width` is odd.
    """
    if width % 2:
        raise ValueError(f"width must be even. Received: {width}.")

    # === Layers ===
    def table(rows: int, name: str) -> keras.layers.Embedding:
        start = keras.initializers.TruncatedNormal(stddev=0.02)
        return keras.layers.Embedding(rows, width, start, dtype="float32", name=name)

    tokens, kinds = table(vocabulary_size, "token_embedding"), table(segments, "segment_embedding")
    gru = BidirectionalGRU(width // 2, dtype=dtype, name="gru")

    # === Functional Model ===
    token_ids = keras.Input([None], dtype="int32", name="token_ids")
    segment_ids = keras.Input([None], dtype="int32", name="segment_ids")
    padding_mask = keras.Input([None], dtype="bool", name="padding_mask")
    x = keras.layers.Add(dtype=dtype, name="embeddings")([tokens(token_ids), kinds(segment_ids)])
    x = Dropout(dropout, dtype=dtype, name="drop_embeddings")(x)
    x = JoinStates(dtype=dtype, name="states")(*gru(x, mask=padding_mask))
    x = Dropout(dropout, dtype=dtype, name="drop_states")(x)
    inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
    return keras.Model(inputs, x, name="gru_encoder")


@keras.saving.register_keras_serializable(package="karpa_tf")
class JoinStates(keras.layers.Layer):
    """Two (batch, time, units) side by side, without the mask that the GRU hands on: a pool has its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, before: Any, after: Any) -> Any:
        return tf.concat([before, after], axis=-1)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None

    def compute_output_shape(self, before_shape: Any, after_shape: Any) -> Any:
        return (*before_shape[:-1], before_shape[-1] + after_shape[-1])
