"""Changes of images that keep what they show, in graph ops on whole batches; batches of such images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches, EpochOrder, slice_part

Flip = Literal["none", "random", "alternating"]
# Numbers that keep the random streams of a step apart.
_CHANGES, _FILL = 5, 6


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; every step anew.

    Attributes:
        shift: most pixels that an image is moved, in each direction.
        flip: mirror left and right at random, or in turn: alternating (Jordan 2024,
            https://arxiv.org/abs/2404.00498, section 3.6) shows an image and its mirror image in every second
            epoch, so that no image is seen the same way twice in a row.
        rotate: most degrees that it is turned.
        scale: most that it grows or shrinks, as a share of its size.
        shear: most that it is slanted, as a share of its height.
        cutout: side of a square that is wiped out (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).
        edge: what moves in at the edges: `zero`, or the image `reflect`ed.
    """

    shift: int = 0
    flip: Flip = "none"
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    cutout: int = 0
    edge: Literal["zero", "reflect"] = "zero"

    @property
    def bends(self) -> bool:
        """Whether pixels come to lie between pixels."""
        return bool(self.rotate or self.scale or self.shear)


def augment(
    pixels: tf.Tensor,
    augmentation: Augmentation,
    random: tf.Tensor,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Changes images, each in its own way.

    Args:
        pixels: uint8 (n, height, width, channels).
        augmentation: how.
        random: float32 (n, 8), between 0 and 1: what decides.
        mirrored: bool (n,), for alternating flips: whether each is mirrored now.

    Returns:
        uint8 (n, height, width, channels).
    """
    height, width = pixels.shape[1], pixels.shape[2]
    a = augmentation

    def spread(column: int, most: float) -> tf.Tensor:
        return (2.0 * random[:, column] - 1.0) * most

    if a.shift or a.flip != "none" or a.bends:
        dx, dy = (tf.floor(random[:, i] * (2 * a.shift + 1)) - a.shift for i in (0, 1))
        if a.bends:
            dx, dy = spread(0, a.shift), spread(1, a.shift)
        angle = spread(2, math.radians(a.rotate))
        grow = 1.0 / (1.0 + spread(3, a.scale))
        slant = spread(4, a.shear)
        flip = tf.zeros_like(dx, tf.bool)
        if a.flip == "random":
            flip = random[:, 5] < 0.5
        elif a.flip == "alternating" and mirrored is not None:
            flip = mirrored
        sign = tf.where(flip, -1.0, 1.0)
        cos, sin = tf.cos(angle) * grow, tf.sin(angle) * grow
        # From a pixel of the result to one of the image, about the centre.
        xx, xy = sign * cos, sign * (cos * slant - sin)
        yx, yy = sin, sin * slant + cos
        cx, cy = (width - 1) / 2, (height - 1) / 2
        zero = tf.zeros_like(dx)
        x0 = cx + dx - xx * cx - xy * cy
        y0 = cy + dy - yx * cx - yy * cy
        pixels = tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels,
            transforms=tf.stack([xx, xy, x0, yx, yy, y0, zero, zero], axis=1),
            output_shape=tf.constant([height, width]),
            fill_value=0.0,
            interpolation="BILINEAR" if a.bends else "NEAREST",
            fill_mode="REFLECT" if a.edge == "reflect" else "CONSTANT",
        )
    if a.cutout:

        def hole(column: int, size: int) -> tf.Tensor:
            begin = tf.floor(random[:, column] * size) - a.cutout // 2
            place = tf.range(size, dtype=tf.float32) - begin[:, None]
            return (place >= 0) & (place < a.cutout)

        hidden = hole(6, height)[:, :, None, None] & hole(7, width)[:, None, :, None]
        pixels = tf.where(hidden, tf.zeros_like(pixels), pixels)
    return pixels


def image_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int | None = None,
    augmentation: Augmentation | None = None,
) -> Batches:
    """Returns batches of images: features uint8 (batch, height, width, channels), labels, sample weights.

    Args:
        pixels: uint8 (n, height, width, channels).
        labels: int32 (n,).
        batch_size: images in a batch.
        seed: training: shuffled anew each epoch, and changed. None: in their order, as they are.
        augmentation: how training images are changed.

    The last batch of an epoch is filled up with images of weight 0: in training with others of the data, so
    that batch normalization sees nothing odd.
    """
    training = seed is not None
    order = EpochOrder(len(pixels), batch_size, seed=seed or 0, shuffle=training)
    data, targets = tf.constant(pixels), tf.constant(labels, tf.int32)
    start = tf.constant(np.random.default_rng((seed or 0, 4)).random(len(pixels)) < 0.5)

    def read(step: np.ndarray) -> np.ndarray:
        return order.rows(int(step))

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        rows = tf.ensure_shape(tf.numpy_function(read, [step], tf.int64, stateful=False), [batch_size])
        weights = tf.cast(rows >= 0, tf.float32)

        def random(stream: int, shape: list[int]) -> tf.Tensor:
            numbers = tf.random.experimental.stateless_fold_in([seed or 0, stream], tf.cast(step, tf.int32))
            return tf.random.stateless_uniform(shape, numbers)

        if training:
            # Made for the whole batch, whatever part is asked for: so many workers, the same images.
            others = tf.cast(random(_FILL, [batch_size]) * float(len(pixels)), tf.int64)
            rows = tf.where(rows < 0, tf.minimum(others, len(pixels) - 1), rows)
        rows, weights = slice_part(tf.maximum(rows, 0), part, parts), slice_part(weights, part, parts)
        images = tf.gather(data, rows)
        if training and augmentation is not None:
            epoch = step // order.steps_per_epoch
            mirrored = tf.math.logical_xor(tf.gather(start, rows), epoch % 2 == 1)
            numbers = slice_part(random(_CHANGES, [batch_size, 8]), part, parts)
            images = augment(images, augmentation, numbers, mirrored)
        size = batch_size // parts
        images = tf.ensure_shape(images, [size, *pixels.shape[1:]])
        return images, tf.gather(targets, rows), tf.ensure_shape(weights, [size])

    return Batches(load, order.steps_per_epoch, batch_size)
