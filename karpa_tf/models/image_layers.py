"""Layers that image models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="karpa_tf")
class Standardize(keras.layers.Layer):
    """Takes the mean from images of 0 to 255 and divides by the deviation, channel by channel.

    Args:
        mean: a number a channel, or one for all.
        deviation: the same.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs, autocast=False)  # bfloat16 has no room for 0 to 255 in fine steps
        self.mean, self.deviation = list(mean), list(deviation)

    def call(self, image: Any) -> Any:
        """float32 (batch, height, width, channels) to the same shape, in the computing type."""
        x = (tf.cast(image, tf.float32) - self.mean) * [1.0 / d for d in self.deviation]
        return tf.cast(x, self.compute_dtype)

    def compute_output_spec(self, image: Any) -> Any:
        return keras.KerasTensor(image.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.mean, "deviation": self.deviation}


@keras.saving.register_keras_serializable(package="karpa_tf")
class FastBatchNormalization(keras.layers.Layer):
    """Batch normalization (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167) over the last axis.

    What `keras.layers.BatchNormalization` computes, by TensorFlow's fused op: Keras 3 writes it in single ops
    in float32, which in mixed precision takes eight times as long, nearly as long as a convolution.

    Args:
        momentum: share of the running averages that a step keeps.
        scale: whether there is a learned factor a channel beside the learned summand.
        epsilon: added to the variance.
    """

    def __init__(
        self, momentum: float = 0.9, *, scale: bool = True, epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs, autocast=False)
        self.momentum, self.scale, self.epsilon = momentum, scale, epsilon

    def build(self, shape: Any) -> None:
        width = (shape[-1],)

        def weight(name: str, start: str, trainable: bool = True) -> Any:
            return self.add_weight(width, start, "float32", trainable=trainable, autocast=False, name=name)

        self.gamma = weight("gamma", "ones") if self.scale else None
        self.beta = weight("beta", "zeros")
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        """(batch, ..., channels) to the same."""
        x = tf.convert_to_tensor(x)
        gamma = tf.ones_like(self.beta) if self.gamma is None else tf.convert_to_tensor(self.gamma)
        if not training:
            factor = gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            summand = self.beta - self.moving_mean * factor
            return x * tf.cast(factor, x.dtype) + tf.cast(summand, x.dtype)
        # The op takes images alone.
        flat = x.shape.rank == 2
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x[:, None, None] if flat else x,
            scale=gamma,
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        for running, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            running.assign(running * self.momentum + now * (1.0 - self.momentum))
        return y[:, 0, 0] if flat else y

    def compute_output_spec(self, x: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"momentum": self.momentum, "scale": self.scale, "epsilon": self.epsilon}
        return {**super().get_config(), **own}
