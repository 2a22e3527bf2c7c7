"""A masked language model with a bidirectional GRU."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from karpa_tf.models.bidirectional_gru import BidirectionalGRU


@keras.saving.register_keras_serializable(package="karpa_tf")
class AtPositions(keras.layers.Layer):
    """Gathers what two sequences hold at, or just beside, some positions.

    Args:
        beside: whether the positions themselves are left out: `before` is read one step to the left and
            `after` one step to the right. What such a pair predicts has not been seen, so that every
            piece of a text can be predicted at once, and not only the masked ones.
    """

    def __init__(self, beside: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beside = beside
        self.supports_masking = True

    def call(self, before: Any, after: Any, positions: Any) -> Any:
        """Gathers.

        Args:
            before: (batch, time, width).
            after: (batch, time, width).
            positions: int32 (batch, positions).

        Returns:
            (batch, positions, 2 * width); zeros beside the ends of the time.
        """
        if self.beside:
            before = ops.pad(before, [[0, 0], [1, 0], [0, 0]])
            after = ops.pad(after, [[0, 0], [0, 1], [0, 0]])
        places = ((before, positions), (after, positions + 1 if self.beside else positions))
        # TensorFlow's own gather: it keeps the rows whole, where take_along_axis picks numbers.
        return ops.concatenate([tf.gather(x, at, batch_dims=1) for x, at in places], axis=-1)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None  # what comes out is a row of positions, not of steps

    def compute_output_shape(self, before_shape: Any, after_shape: Any, positions_shape: Any) -> Any:
        return (*positions_shape, before_shape[-1] + after_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beside": self.beside}


@keras.saving.register_keras_serializable(package="karpa_tf")
class Bias(keras.layers.Layer):
    """Adds a trained bias to the last axis."""

    def __init__(self, initializer: Any = "zeros", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Any) -> None:
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer=self.initializer, name="bias")

    def call(self, inputs: Any) -> Any:
        return inputs + self.bias

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initializer": keras.initializers.serialize(self.initializer),
        }


def build_mlm_gru(
    vocabulary_size: int,
    *,
    embedding_size: int = 256,
    units: int = 256,
    objective: Literal["masked", "every"] = "every",
    dropout: float = 0.0,
    frequencies: np.ndarray | None = None,
    dtype: str = "float32",
) -> keras.Model:
    """Builds Embedding -> Bidirectional GRU -> softmax over the vocabulary, at the asked positions only.

    Inputs, by name: `token_ids` int32 (batch, time), `padding_mask` bool (batch, time) with padding at
    the right, `masked_positions` int32 (batch, positions). Output: float32 logits (batch, positions,
    vocabulary_size).

    With `objective="masked"` it is the essay's network: the states that have read the hidden piece, and a
    dense layer. With `"every"` a piece is predicted from the states and the embeddings beside it alone,
    through a hidden layer and the embedding's own weights (Press & Wolf 2017, "Using the Output Embedding
    to Improve Language Models"); dropout is the same over time (Gal & Ghahramani 2016).

    Args:
        vocabulary_size: number of pieces.
        embedding_size: width of the embedding.
        units: units of the GRU in each direction.
        objective: `masked` or `every`, as the text's batches have it.
        dropout: share of the activations dropped in training.
        frequencies: (vocabulary_size,) counts of the pieces, to start from their logarithms.
        dtype: `float32` or `mixed_bfloat16`.
    """
    every = objective == "every"

    # === Layers ===
    embedding = keras.layers.ReversibleEmbedding(
        vocabulary_size,
        embedding_size,
        tie_weights=True,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=embedding_size**-0.5),
        dtype=dtype,
        name="embedding",
    )
    gru = BidirectionalGRU(units, dtype=dtype, name="gru")

    # === Functional Model ===
    token_ids = keras.Input([None], dtype="int32", name="token_ids")
    padding_mask = keras.Input([None], dtype="bool", name="padding_mask")
    positions = keras.Input([None], dtype="int32", name="masked_positions")
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask, "masked_positions": positions}
    embedded = embedding(token_ids)
    if every:
        # Small numbers for the softmax, numbers around 1 for the GRU.
        embedded = keras.layers.Rescaling(embedding_size**0.5, dtype=dtype, name="scale")(embedded)
        embedded = keras.layers.SpatialDropout1D(dropout, dtype=dtype, name="drop_embedded")(embedded)
    forward, backward = gru(embedded, mask=padding_mask)
    if every:
        forward = keras.layers.SpatialDropout1D(dropout, dtype=dtype, name="drop_forward")(forward)
        backward = keras.layers.SpatialDropout1D(dropout, dtype=dtype, name="drop_backward")(backward)
    x = AtPositions(every, dtype=dtype, name="states")(forward, backward, positions)
    if every:
        # The neighbours themselves: pairs of words are learned at once, and the states are free for more.
        embedded = embedded * ops.cast(ops.expand_dims(padding_mask, -1), embedded.dtype)
        beside = AtPositions(True, dtype=dtype, name="neighbours")(embedded, embedded, positions)
        x = keras.layers.Concatenate(dtype=dtype, name="context")([x, beside])
        x = keras.layers.Dense(2 * embedding_size, "gelu", dtype=dtype, name="hidden")(x)
        x = keras.layers.Dropout(dropout, dtype=dtype, name="drop_hidden")(x)
        x = keras.layers.Dense(embedding_size, dtype=dtype, name="query")(x)
        x = keras.layers.LayerNormalization(dtype=dtype, name="norm")(x)
        logits = embedding(x, reverse=True)
        start = "zeros"
        if frequencies is not None:
            start = keras.initializers.Constant(np.log((frequencies + 0.5) / (frequencies + 0.5).sum()))
        logits = Bias(start, dtype="float32", name="logits")(logits)
    else:
        x = keras.layers.Dropout(dropout, dtype=dtype, name="drop_states")(x)
        logits = keras.layers.Dense(vocabulary_size, dtype=dtype, name="dense")(x)
        logits = keras.layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model(inputs, logits, name="mlm_gru")
