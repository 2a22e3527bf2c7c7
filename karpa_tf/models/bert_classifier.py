"""A classifier of texts: a BERT encoder, one vector a text, one dense layer."""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

from karpa_tf.models.bert import Dropout


def build_bert_classifier(
    bert: keras.Model,
    classes: int,
    *,
    pooling: Literal["mean", "cls"] = "mean",
    dropout: float = 0.1,
    unit: bool = False,
) -> keras.Model:
    """Builds a classifier on an encoder.

    Inputs: those of `build_bert`. Output: float32 logits (batch, classes).

    Args:
        bert: the encoder.
        classes: number of labels.
        pooling: `mean` of the vectors of all pieces, or `cls`: that of the first one, `[CLS]`, through
            BERT's own dense layer with tanh.
        dropout: share of the pooled vector dropped in training.
        unit: scale that vector to length 1 first, in the layer `unit`.

    Raises:
        ValueError: `pooling` is neither.
    """
    # === Layers ===
    pool = Pool(pooling, name="pool")
    drop = Dropout(dropout, dtype="float32", name="drop_pooled")
    head = keras.layers.Dense(
        classes,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        dtype="float32",
        name="logits",
    )

    # === Functional Model ===
    inputs = bert.input
    pooled = pool(bert.output, inputs["padding_mask"])
    if pooling == "cls":
        width = pooled.shape[-1]
        pooled = keras.layers.Dense(width, "tanh", dtype="float32", name="pooled")(pooled)
    if unit:
        pooled = keras.layers.UnitNormalization(dtype="float32", name="unit")(pooled)
    return keras.Model(inputs, head(drop(pooled)), name="bert_classifier")


@keras.saving.register_keras_serializable(package="karpa_tf")
class Pool(keras.layers.Layer):
    """One float32 vector (batch, width) of (batch, time, width) and a bool mask (batch, time)."""

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        if kind not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls. Received: {kind}.")
        self.kind = kind

    def call(self, x: Any, padding_mask: Any) -> Any:
        if self.kind == "cls":
            return tf.cast(x[:, 0], tf.float32)
        mask = tf.cast(padding_mask, tf.float32)[:, :, None]
        total = tf.reduce_sum(tf.cast(x, tf.float32) * mask, axis=1)
        return total / tf.maximum(tf.reduce_sum(mask, axis=1), 1.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}
