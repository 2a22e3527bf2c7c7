"""A masked language model with a bidirectional GRU."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

from karpa_tf.models.bidirectional_gru import BidirectionalGRU


@keras.saving.register_keras_serializable(package="karpa_tf")
class StatesAround(keras.layers.Layer):
    """Takes the states at some positions: those that have read a position, or only what is around it.

    Args:
        leave_out: whether the position itself is left out: the forward state before it and the backward
            state after it. What such a pair predicts has not been seen, so that every piece of a text
            can be predicted at once, and not only the masked ones.
    """

    def __init__(self, leave_out: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.leave_out = leave_out
        self.supports_masking = True

    def call(self, forward: Any, backward: Any, positions: Any) -> Any:
        """Gathers states.

        Args:
            forward: (batch, time, units) states of the GRU that reads from the left.
            backward: (batch, time, units) states of the one that reads from the right.
            positions: int32 (batch, positions).

        Returns:
            (batch, positions, 2 * units).
        """
        if self.leave_out:
            forward = ops.pad(forward, [[0, 0], [1, 0], [0, 0]])
            backward = ops.pad(backward, [[0, 0], [0, 1], [0, 0]])
            after = positions + 1
        else:
            after = positions
        both = [
            ops.take_along_axis(states, ops.expand_dims(at, -1), axis=1)
            for states, at in ((forward, positions), (backward, after))
        ]
        return ops.concatenate(both, axis=-1)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None  # what comes out is a row of positions, not of steps

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leave_out": self.leave_out}


@keras.saving.register_keras_serializable(package="karpa_tf")
class Bias(keras.layers.Layer):
    """Adds a trained bias to the last axis."""

    def build(self, input_shape: Any) -> None:
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        return inputs + self.bias


def build_mlm_gru(
    vocabulary_size: int,
    *,
    embedding_size: int = 256,
    units: int = 384,
    objective: Literal["masked", "every"] = "every",
    tied: bool = True,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> keras.Model:
    """Builds Embedding -> Bidirectional GRU -> softmax over the vocabulary, at the asked positions only.

    Inputs, by name: `token_ids` int32 (batch, time), `padding_mask` bool (batch, time) with padding at
    the right, `masked_positions` int32 (batch, positions). Output: float32 logits (batch, positions,
    vocabulary_size).

    Args:
        vocabulary_size: number of pieces.
        embedding_size: width of the embedding.
        units: units of the GRU in each direction.
        objective: `masked`: from the states that have read the position, which must be hidden in the
            input (the essay's). `every`: from the states before and after it.
        tied: project with the embedding's own weights; else with a matrix of its own.
        dropout: share of the activations dropped in training, at the embedding and before the logits.
        dtype: `float32` or `mixed_bfloat16`.
    """
    # === Layers ===
    embedding = keras.layers.ReversibleEmbedding(
        vocabulary_size,
        embedding_size,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=embedding_size**-0.5),
        dtype=dtype,
        name="embedding",
    )
    gru = BidirectionalGRU(units, dtype=dtype, name="gru")
    states = StatesAround(objective == "every", dtype=dtype, name="states")

    # === Functional Model ===
    token_ids = keras.Input([None], dtype="int32", name="token_ids")
    padding_mask = keras.Input([None], dtype="bool", name="padding_mask")
    positions = keras.Input([None], dtype="int32", name="masked_positions")
    x = embedding(token_ids)
    x = keras.layers.Dropout(dropout, dtype=dtype, name="embedding_dropout")(x)
    forward, backward = gru(x, mask=padding_mask)
    x = states(forward, backward, positions)
    x = keras.layers.Dropout(dropout, dtype=dtype, name="states_dropout")(x)
    if tied:
        x = keras.layers.Dense(embedding_size, "gelu", dtype=dtype, name="mix")(x)
        x = keras.layers.LayerNormalization(dtype=dtype, name="norm")(x)
        x = keras.layers.Dropout(dropout, dtype=dtype, name="mix_dropout")(x)
        # Press & Wolf 2017, "Using the Output Embedding to Improve Language Models".
        logits = embedding(x, reverse=True)
        logits = Bias(dtype="float32", name="bias")(logits)
    else:
        logits = keras.layers.Dense(vocabulary_size, dtype=dtype, name="logits")(x)
        logits = keras.layers.Activation("linear", dtype="float32", name="float32")(logits)
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask, "masked_positions": positions}
    return keras.Model(inputs, logits, name="mlm_gru")
