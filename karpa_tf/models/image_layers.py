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
class FrameInk(keras.layers.Layer):
    """Brings what is drawn to one size and to the middle: grey images of ink (1) on paper (0).

    A quarter of the strongest ink bounds the drawing. It is stretched half of the way from its own
    proportions to those of the image (a geometric mean): letters keep their shape, and a line stays a line.
    An image without ink stays as it is.
    """

    # Pixels of an image of 28 around the drawing.
    _MARGIN = 1.0

    def call(self, image: Any) -> Any:
        """float32 (batch, height, width, 1) to the same shape."""
        x = tf.cast(image, tf.float32)
        drawn = (x > 0.25 * tf.reduce_max(x, (1, 2, 3), keepdims=True))[..., 0]
        (top, bottom), (left, right) = (_ends(tf.reduce_any(drawn, axis)) for axis in (2, 1))
        size = tf.cast(tf.shape(x)[1:3], tf.float32)
        margin = self._MARGIN / 28 * size
        height, width = (bottom - top) / 2 + margin[0], (right - left) / 2 + margin[1]
        longer = tf.maximum(height, width)
        height, width = tf.sqrt(longer * height), tf.sqrt(longer * width)
        y, x0 = (top + bottom) / 2, (left + right) / 2
        boxes = tf.stack([y - height, x0 - width, y + height, x0 + width], 1)
        boxes /= tf.tile(tf.maximum(size - 1.0, 1.0), [2])
        boxes = tf.where(tf.reduce_any(drawn, (1, 2))[:, None], boxes, [0.0, 0.0, 1.0, 1.0])
        x = tf.image.crop_and_resize(x, boxes, tf.range(tf.shape(x)[0]), tf.shape(x)[1:3])
        return tf.cast(tf.ensure_shape(x, image.shape), self.compute_dtype)

    def compute_output_spec(self, image: Any) -> Any:
        return keras.KerasTensor(image.shape, self.compute_dtype)


def _ends(drawn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first and the last place that is true, float32 (batch,) each, of bool (batch, places)."""
    places = tf.range(tf.shape(drawn)[1])
    first = tf.reduce_min(tf.where(drawn, places, tf.shape(drawn)[1]), 1)
    last = tf.reduce_max(tf.where(drawn, places, -1), 1)
    return tf.cast(first, tf.float32), tf.cast(last, tf.float32)


# Most places of an image up to which the convolution below is the faster one, and the examples that the
# gradient of its kernel takes at once: too many leave the processor's cache, too few are a detour.
_FEW_PLACES = 225
_EXAMPLES_AT_ONCE = 64


@keras.saving.register_keras_serializable(package="karpa_tf")
class FastConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` (odd kernel, padding `same`, no strides) that is quick to train on small maps.

    In bfloat16 TensorFlow's op for the kernel's gradient runs at a third (3 x 3 places) to three fifths (15 x
    15) of a convolution's speed. The same sums are a convolution as well: input channels as its batch,
    examples as its channels, and the gradient of the output as its kernel. For such maps, the last rows and
    columns that a pooling right after would not read are left out too: of 7 x 7 places one by 2 reads 6 x 6.

    Args:
        filters: channels of the output.
        kernel_size: height and width of the kernel.
        pool: size of the max pooling without padding that follows; 1 where there is none.
    """

    def __init__(
        self, filters: int, kernel_size: int | Sequence[int], *, pool: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.pool = pool

    def compute_output_shape(self, shape: Any) -> tuple[int | None, ...]:
        batch, *places, filters = super().compute_output_shape(shape)
        if self._is_quick(shape):
            places = [n - n % self.pool for n in places]
        return batch, *places, filters

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """(batch, height, width, channels) to (batch, height, width, filters)."""
        if not self._is_quick(inputs.shape):
            return super().convolution_op(inputs, kernel)
        return _convolve(tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel), self.pool)

    def _is_quick(self, shape: Any) -> bool:
        # A kernel that reaches less far than the places left out would not see some of the input.
        reach = min(self.kernel_size) // 2
        few = None not in shape[1:3] and shape[1] * shape[2] <= _FEW_PLACES
        return few and self.compute_dtype == "bfloat16" and self.pool - 1 <= reach

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool": self.pool}


def _convolve(x: tf.Tensor, kernel: tf.Tensor, pool: int) -> tf.Tensor:
    """Returns the convolution in the places that a pooling reads."""
    left_out = [places % pool for places in x.shape[1:3]]
    reach = [size // 2 for size in kernel.shape[:2]]
    padding = [[0, 0], *([r, r - out] for r, out in zip(reach, left_out, strict=True)), [0, 0]]
    wider = [[0, 0], *([r, r + out] for r, out in zip(reach, left_out, strict=True)), [0, 0]]
    parts = (x.shape[0] or 1) // _EXAMPLES_AT_ONCE
    if parts == 0 or x.shape[0] % parts:
        parts = 1

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Not the ops made for it: with such a padding they have no quick kernel in bfloat16.
        turned = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
        of_input = tf.nn.conv2d(upstream, turned, 1, wider)
        sums = [
            tf.nn.conv2d(tf.transpose(some, [3, 1, 2, 0]), tf.transpose(back, [1, 2, 0, 3]), 1, padding)
            for some, back in zip(tf.split(x, parts), tf.split(upstream, parts), strict=True)
        ]
        return of_input, tf.transpose(tf.add_n(sums), [1, 2, 0, 3])

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        return tf.nn.conv2d(x, kernel, 1, padding), gradient

    return convolve(x, kernel)


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
