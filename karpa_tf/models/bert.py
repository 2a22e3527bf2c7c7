"""BERT's encoder, written for speed on a CPU: the same function as keras-hub's, in half its time or less.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
https://arxiv.org/abs/1810.04805. What is written by hand here are the passes over memory between the
matmuls, which take as long as the matmuls themselves when each is an op of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

# The names that LoRA may be given: the dense layers of a block.
DENSE_LAYERS = ("query", "key", "value", "attention_output", "intermediate", "output")


def build_bert(
    vocabulary_size: int,
    *,
    layers: int = 4,
    heads: int = 4,
    width: int = 256,
    head_width: int | None = None,
    intermediate: int = 1024,
    positions: int = 512,
    segments: int = 2,
    activation: str = "gelu",
    epsilon: float = 1e-12,
    dropout: float = 0.1,
    dtype: str = "float32",
) -> keras.Model:
    """Builds a BERT encoder.

    Inputs, by name: `token_ids` int32 (batch, time), `segment_ids` int32 (batch, time), `padding_mask`
    bool (batch, time), true at pieces. Output: (batch, time, width), float32 or, in mixed precision,
    bfloat16.

    Args:
        vocabulary_size: number of pieces.
        layers: transformer blocks.
        heads: attention heads of a block.
        width: of the embedding and of the blocks' outputs; a multiple of `heads`, unless theirs is given.
        head_width: of a head; None: `width / heads`. Another one is that of a BERT which has lost heads.
        intermediate: units between the two dense layers of a block.
        positions: longest sequence.
        segments: kinds of segments.
        activation: `gelu`, or `gelu_approximate` (by tanh) as keras-hub's own presets have it.
        epsilon: of the layer norms.
        dropout: share of activations and attention weights dropped in training, to the next 1/256.
        dtype: `float32` or `mixed_bfloat16`.

    Raises:
        ValueError: `width` is no multiple of `heads`, the activation is unknown, or `dropout` is not from 0
            to below 1.
    """
    if head_width is None and width % heads:
        raise ValueError(f"width must be a multiple of heads. Received: width={width}, heads={heads}.")

    # === Layers ===
    embeddings = BertEmbeddings(
        vocabulary_size, width, positions, segments, epsilon, dropout, dtype=dtype, name="embeddings"
    )
    blocks = [
        TransformerBlock(
            heads,
            intermediate,
            activation,
            epsilon,
            dropout,
            head_width,
            dtype=dtype,
            name=f"block_{number}",
        )
        for number in range(layers)
    ]

    # === Functional Model ===
    token_ids = keras.Input([None], dtype="int32", name="token_ids")
    segment_ids = keras.Input([None], dtype="int32", name="segment_ids")
    padding_mask = keras.Input([None], dtype="bool", name="padding_mask")
    inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
    x = embeddings(token_ids, segment_ids)
    for block in blocks:
        x = block(x, padding_mask)
    return keras.Model(inputs, x, name="bert")


@keras.saving.register_keras_serializable(package="karpa_tf")
class BertEmbeddings(keras.layers.Layer):
    """Sum of token, position and segment embeddings, normalized.

    int32 (batch, time) twice to (batch, time, width). The gradient of the token embedding is sparse.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        positions: int,
        segments: int,
        epsilon: float,
        dropout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config: dict[str, Any] = {
            "vocabulary_size": vocabulary_size,
            "width": width,
            "positions": positions,
            "segments": segments,
            "epsilon": epsilon,
            "dropout": dropout,
        }
        self.norm = LayerNorm(epsilon, dtype=self.dtype_policy, name="norm")
        self.drop = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, token_ids_shape: Any, segment_ids_shape: Any) -> None:
        width = self.config["width"]

        def table(rows: int, name: str) -> keras.layers.Embedding:
            # float32: casting a whole table for some of its rows would be a pass over it.
            start = keras.initializers.TruncatedNormal(stddev=0.02)
            layer = keras.layers.Embedding(rows, width, start, dtype="float32", name=name)
            layer.build((None, None))
            return layer

        self.tokens = table(self.config["vocabulary_size"], "token_embedding")
        self.positions = table(self.config["positions"], "position_embedding")
        self.segments = table(self.config["segments"], "segment_embedding")
        self.norm.build((None, None, width))

    def call(self, token_ids: Any, segment_ids: Any, training: bool = False) -> Any:
        x = self.tokens(token_ids) + self.segments(segment_ids)
        x += self.positions(tf.range(_shape(token_ids)[1]))
        return self.drop(self.norm(tf.cast(x, self.compute_dtype)), training=training)

    def compute_output_spec(self, token_ids: Any, segment_ids: Any, training: bool = False) -> Any:
        return keras.KerasTensor((*token_ids.shape, self.config["width"]), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.config}


@keras.saving.register_keras_serializable(package="karpa_tf")
class TransformerBlock(keras.layers.Layer):
    """Self-attention and two dense layers, each with a residual and a layer norm behind it.

    (batch, time, width) and a bool mask (batch, time) to (batch, time, width).
    """

    def __init__(
        self,
        heads: int,
        intermediate: int,
        activation: str,
        epsilon: float,
        dropout: float,
        head_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config: dict[str, Any] = {
            "heads": heads,
            "head_width": head_width,
            "intermediate": intermediate,
            "activation": activation,
            "epsilon": epsilon,
            "dropout": dropout,
        }
        if activation not in ("gelu", "gelu_approximate"):
            raise ValueError(f"activation must be gelu or gelu_approximate. Received: {activation}.")
        self.activation = gelu if activation == "gelu" else _gelu_approximate
        policy = self.dtype_policy
        self.attention_norm = LayerNorm(epsilon, dtype=policy, name="attention_norm")
        self.output_norm = LayerNorm(epsilon, dtype=policy, name="output_norm")
        self.drop_attention = Dropout(dropout, dtype=policy, name="drop_attention")
        self.drop_residual = Dropout(dropout, dtype=policy, name="drop_residual")
        self.drop_output = Dropout(dropout, dtype=policy, name="drop_output")

    def build(self, x_shape: Any, padding_mask_shape: Any) -> None:
        width = x_shape[-1]

        def dense(name: str, units: int, inputs: int) -> keras.layers.Dense:
            start = keras.initializers.TruncatedNormal(stddev=0.02)
            layer = keras.layers.Dense(units, kernel_initializer=start, dtype=self.dtype_policy, name=name)
            layer.build((None, None, inputs))
            return layer

        self.head_width = self.config["head_width"] or width // self.config["heads"]
        inner = self.config["heads"] * self.head_width
        self.query, self.key, self.value = (dense(name, inner, width) for name in DENSE_LAYERS[:3])
        self.attention_output = dense("attention_output", width, inner)
        self.intermediate = dense("intermediate", self.config["intermediate"], width)
        self.output_dense = dense("output", width, self.config["intermediate"])
        self.attention_norm.build(x_shape)
        self.output_norm.build(x_shape)

    def call(
        self, x: Any, padding_mask: Any, training: bool = False, gates: Mapping[str, Any] | None = None
    ) -> Any:
        """Returns the block's output.

        Args:
            x: (batch, time, width).
            padding_mask: bool (batch, time), true at pieces.
            training: whether to drop activations.
            gates: factors (batch, count) of what each of the `heads` and of the `neurons` gives.
        """
        batch, time, _ = _shape(x)
        heads, width = self.config["heads"], self.head_width

        def dense(layer: keras.layers.Dense, y: Any) -> Any:
            if training or layer.quantization_mode:
                return layer(y)
            # Of a lone text Keras' way takes a third longer: it finds out shapes in a dozen ops, and where
            # oneDNN may fuse the bias into the product, it arranges the weights anew in each call.
            y = tf.matmul(tf.reshape(y, [-1, y.shape[-1]]), tf.convert_to_tensor(layer.kernel))
            return tf.reshape(y, [batch, time, y.shape[-1]]) + tf.convert_to_tensor(layer.bias)

        def split(y: Any) -> Any:
            if not training:  # oneDNN is slow at small transpositions
                return tf.stack(tf.split(y, heads, axis=-1), axis=1)
            return tf.transpose(tf.reshape(y, [batch, time, heads, width]), [0, 2, 1, 3])

        query = split(dense(self.query, x) * (1.0 / math.sqrt(width)))
        key, value = split(dense(self.key, x)), split(dense(self.value, x))
        scores = tf.matmul(query, key, transpose_b=True)
        scores += tf.cast(tf.where(padding_mask, 0.0, -1e4), x.dtype)[:, None, None, :]
        attention = self.drop_attention(tf.nn.softmax(scores), training=training)
        mixed = tf.matmul(attention, value)
        if gates:
            mixed *= gates["heads"][:, :, None, None]
        if training:
            mixed = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [batch, time, heads * width])
        else:
            mixed = tf.concat(tf.unstack(mixed, heads, axis=1), axis=-1)
        y = self.drop_residual(dense(self.attention_output, mixed), training=training)
        x = self.attention_norm(x + y)
        y = self.activation(dense(self.intermediate, x))
        if gates:
            y *= gates["neurons"][:, None]
        y = dense(self.output_dense, y)
        return self.output_norm(x + self.drop_output(y, training=training))

    def compute_output_spec(self, x: Any, padding_mask: Any, training: bool = False) -> Any:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def dense_layer(self, name: str) -> keras.layers.Dense:
        """Returns one of `DENSE_LAYERS`."""
        return self.output_dense if name == "output" else getattr(self, name)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.config}


def _shape(x: Any) -> list[Any]:
    """The shape of a tensor, as plain numbers where they are known: that makes a smaller graph."""
    dynamic: Any = None
    shape = []
    for axis, size in enumerate(x.shape):
        if size is None and dynamic is None:
            dynamic = tf.shape(x)
        shape.append(dynamic[axis] if size is None else size)
    return shape


@keras.saving.register_keras_serializable(package="karpa_tf")
class LayerNorm(keras.layers.Layer):
    """Layer normalization over the last axis (Ba et al. 2016) in float32, with its gradient by hand."""

    def __init__(self, epsilon: float = 1e-12, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta", autocast=False)

    def call(self, x: Any) -> Any:
        return _layer_norm(x, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@tf.custom_gradient
def _layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> Any:
    centred = tf.cast(x, tf.float32)
    centred -= tf.reduce_mean(centred, axis=-1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + epsilon)
    normal = centred * scale

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, None]:
        upstream = tf.cast(upstream, tf.float32)
        rows = list(range(len(x.shape) - 1))
        d_gamma = tf.reduce_sum(upstream * normal, axis=rows)
        d_beta = tf.reduce_sum(upstream, axis=rows)
        d_normal = upstream * gamma
        mean = tf.reduce_mean(d_normal, axis=-1, keepdims=True)
        along = tf.reduce_mean(d_normal * normal, axis=-1, keepdims=True)
        return tf.cast(scale * (d_normal - mean - normal * along), x.dtype), d_gamma, d_beta, None

    return tf.cast(normal * gamma + beta, x.dtype), gradient


@tf.custom_gradient
def gelu(x: tf.Tensor) -> Any:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016), of any shape."""
    wide = tf.cast(x, tf.float32)
    below = 0.5 + 0.5 * tf.math.erf(wide * math.sqrt(0.5))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32)  # made again: cheaper than kept
        density = tf.exp(tf.square(wide) * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
        return upstream * tf.cast(below + wide * density, x.dtype)

    return tf.cast(wide * below, x.dtype), gradient


def _gelu_approximate(x: tf.Tensor) -> tf.Tensor:
    inner = math.sqrt(2.0 / math.pi) * x * (1.0 + 0.044715 * tf.square(x))
    return 0.5 * x * (1.0 + tf.tanh(inner))


@keras.saving.register_keras_serializable(package="karpa_tf")
class Dropout(keras.layers.Layer):
    """Dropout that spends a byte of randomness on a number, where Keras' spends four.

    The rate is rounded to the next 1/256, and what is kept is scaled by exactly that.

    Raises:
        ValueError: the rate is not from 0 to below 1.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"dropout must be 0 or more and less than 1. Received: {rate}.")
        self.rate = rate
        self._dropped = min(round(rate * 256), 255)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or not self._dropped:
            return x
        shape = _shape(x)
        size = math.prod(shape) if all(isinstance(d, int) for d in shape) else tf.size(x)
        # tf.random's own function makes a dozen ops of it, which counts when a step is traced.
        key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=self.seed_generator.next())
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[(size + 3) // 4], key=key, counter=counter, alg=1, dtype=tf.int32
        )
        bytes_ = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], shape)
        kept = 256 / (256 - self._dropped)
        return tf.where(bytes_ >= self._dropped, x * kept, tf.zeros([], x.dtype))

    def compute_output_spec(self, x: Any, training: bool = False) -> Any:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}
