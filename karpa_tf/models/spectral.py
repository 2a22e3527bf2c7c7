"""Layers with spectral normalization (Miyato et al. 2018, https://arxiv.org/abs/1802.05957)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def spectral_norm(kernel: tf.Tensor, u: keras.Variable, training: bool | None) -> tf.Tensor:
    """Returns the largest singular value of a kernel as a matrix (all but the last axis, the last axis).

    One step of the power iteration (algorithm 1 of the paper) from where the last training step has left it;
    the gradient goes through the value and not through the vectors.

    Args:
        kernel: float32 (..., outputs).
        u: float32 (1, outputs), an approximate right singular vector; moved in training.
        training: whether it is.
    """
    matrix = tf.reshape(kernel, [-1, kernel.shape[-1]])
    still = tf.stop_gradient(matrix)
    right = tf.convert_to_tensor(u)
    left = tf.math.l2_normalize(tf.matmul(right, still, transpose_b=True))
    if training:
        right = tf.math.l2_normalize(tf.matmul(left, still))
        u.assign(right)
    return tf.reduce_sum(tf.matmul(left, matrix) * right)


class _Saved(keras.layers.Layer):
    """Keras' own layers keep their kernel and bias alone in files; here are all variables of the layer."""

    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables


@keras.saving.register_keras_serializable(package="karpa_tf")
class SpectralConv2D(_Saved, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel is divided by its largest singular value."""

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs: Any) -> None:
        # Not cast to bfloat16 before it is divided.
        super().__init__(filters, kernel_size, strides, **kwargs, autocast=False)

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.u = self.add_weight((1, self.filters), "random_normal", trainable=False, name="u")

    def call(self, x: Any, training: bool | None = None) -> Any:
        """(batch, height, width, channels) to (batch, height, width, filters)."""
        kernel = tf.convert_to_tensor(self.kernel)
        kernel = tf.cast(kernel / spectral_norm(kernel, self.u, training), self.compute_dtype)
        x = self.convolution_op(tf.cast(x, self.compute_dtype), kernel)
        return self.activation(x if self.bias is None else x + tf.cast(self.bias, x.dtype))


@keras.saving.register_keras_serializable(package="karpa_tf")
class SpectralDense(_Saved, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel is divided by its largest singular value."""

    def __init__(self, units: int, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(units, activation, **kwargs, autocast=False)

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.u = self.add_weight((1, self.units), "random_normal", trainable=False, name="u")

    def call(self, x: Any, training: bool | None = None) -> Any:
        """(batch, width) to (batch, units)."""
        kernel = tf.convert_to_tensor(self.kernel)
        kernel = tf.cast(kernel / spectral_norm(kernel, self.u, training), self.compute_dtype)
        x = tf.matmul(tf.cast(x, self.compute_dtype), kernel)
        return self.activation(x if self.bias is None else x + tf.cast(self.bias, x.dtype))
