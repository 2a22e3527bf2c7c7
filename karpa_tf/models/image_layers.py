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


# Most places of an image up to which the kernel's gradient below is the faster one, and the examples that it
# takes at once: strides that are a larger power of two collide in the processor's cache.
_FEW_PLACES = 49
_EXAMPLES_AT_ONCE = 64


@keras.saving.register_keras_serializable(package="karpa_tf")
class FastConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` (odd kernel, padding `same`, no strides) that is quick to train on small maps.

    For maps up to 7 x 7 in bfloat16 TensorFlow's op for the kernel's gradient runs at less than half of a
    convolution's speed. The same sums are a convolution as well: input channels as its batch, examples as
    its channels, and the gradient of the output as its kernel.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """(batch, height, width, channels) to (batch, height, width, filters)."""
        x = tf.convert_to_tensor(inputs)
        if x.dtype != tf.bfloat16 or x.shape[1] * x.shape[2] > _FEW_PLACES:
            return super().convolution_op(inputs, kernel)
        return _convolve(x, tf.convert_to_tensor(kernel))


@tf.custom_gradient
def _convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
    height, width = kernel.shape[0] // 2, kernel.shape[1] // 2
    padding = [[0, 0], [height, height], [width, width], [0, 0]]
    parts = (x.shape[0] or 1) // _EXAMPLES_AT_ONCE
    if parts == 0 or x.shape[0] % parts:
        parts = 1

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_input = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(x), 1, "SAME")
        sums = [
            tf.nn.conv2d(tf.transpose(some, [3, 1, 2, 0]), tf.transpose(back, [1, 2, 0, 3]), 1, padding)
            for some, back in zip(tf.split(x, parts), tf.split(upstream, parts), strict=True)
        ]
        return of_input, tf.transpose(tf.add_n(sums), [1, 2, 0, 3])

    return tf.nn.conv2d(x, kernel, 1, "SAME"), gradient


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
