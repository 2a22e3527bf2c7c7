"""Masked words from a BERT: the encoder, BERT's own transform, and the embedding's weights once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.models.bert import BertEmbeddings, LayerNorm, gelu


def build_bert_masked_lm(bert: keras.Model) -> BertMaskedLM:
    """Builds a masked language model on an encoder (Devlin et al. 2019, section 3.1), to pretrain it.

    Inputs, by name: `token_ids` int32 and `padding_mask` bool (batch, time), `masked_positions` int32
    (batch, positions). Output: float32 logits (batch, positions, vocabulary).

    Args:
        bert: the encoder, of `build_bert`.
    """
    # === Layers ===
    embeddings = bert.get_layer("embeddings")
    dtype = embeddings.dtype_policy
    # As in BERT itself, the transform has the encoder's activation and epsilon.
    head = MaskedHead(embeddings, bert.get_layer("block_0").activation, dtype=dtype, name="masked_head")

    # === Functional Model ===
    token_ids = keras.Input([None], dtype="int32", name="token_ids")
    padding_mask = keras.Input([None], dtype="bool", name="padding_mask")
    positions = keras.Input([None], dtype="int32", name="masked_positions")
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask, "masked_positions": positions}
    x = embeddings(token_ids, keras.ops.zeros_like(token_ids))
    for layer in bert.layers:
        if layer.name.startswith("block_"):
            x = layer(x, padding_mask)
    model = BertMaskedLM(inputs, head(x, positions), name="bert_masked_lm")
    object.__setattr__(model, "_bert", bert)  # not a part: its layers are the model's own
    return model


@keras.saving.register_keras_serializable(package="karpa_tf")
class BertMaskedLM(keras.Model):
    """What `build_bert_masked_lm` returns; its config is that of the encoder, so that the table stays one."""

    def get_config(self) -> dict[str, Any]:
        return {"bert": keras.saving.serialize_keras_object(self._bert)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> BertMaskedLM:
        return build_bert_masked_lm(keras.saving.deserialize_keras_object(config["bert"], custom_objects))


@keras.saving.register_keras_serializable(package="karpa_tf")
class MaskedHead(keras.layers.Layer):
    """(batch, time, width) and positions (batch, n) to float32 logits (batch, n, vocabulary)."""

    def __init__(
        self, embeddings: BertEmbeddings, activation: Callable[[Any], Any] = gelu, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.activation = activation
        # Not tracked as a part: the table belongs to the encoder.
        object.__setattr__(self, "_embeddings", embeddings)

    def build(self, x_shape: Any, positions_shape: Any) -> None:
        width = x_shape[-1]
        self.transform = keras.layers.Dense(width, dtype=self.dtype_policy, name="transform")
        self.transform.build(x_shape)
        epsilon = self._embeddings.config["epsilon"]
        self.norm = LayerNorm(epsilon, dtype=self.dtype_policy, name="norm")
        self.norm.build(x_shape)
        words = self._embeddings.config["vocabulary_size"]
        self.bias = self.add_weight(shape=(words,), initializer="zeros", name="bias", autocast=False)

    def call(self, x: Any, positions: Any) -> Any:
        x = self.norm(self.activation(self.transform(tf.gather(x, positions, batch_dims=1))))
        table = tf.cast(self._embeddings.tokens.embeddings, x.dtype)
        logits = tf.matmul(x, table, transpose_b=True)
        return tf.cast(logits, tf.float32) + self.bias

    def compute_output_spec(self, x: Any, positions: Any) -> Any:
        words = self._embeddings.config["vocabulary_size"]
        return keras.KerasTensor((*positions.shape, words), "float32")
