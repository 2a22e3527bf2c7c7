"""The network of four convolutions that few-shot learning is measured with."""

from __future__ import annotations

from typing import Literal

import keras

from karpa_tf.errors import UserError
from karpa_tf.models.image_layers import FrameInk


def build_few_shot_cnn(
    shape: tuple[int, ...],
    outputs: int = 0,
    *,
    filters: int = 64,
    blocks: int = 4,
    normalization: Literal["example", "batch", "none"] = "example",
    downsampling: Literal["strides", "pooling"] = "strides",
    frame: bool = False,
    dtype: str = "float32",
) -> keras.Model:
    """Builds blocks of a 3 x 3 convolution, normalization and a rectifier; each halves height and width.

    Vinyals et al. 2016 (https://arxiv.org/abs/1606.04080) with pooling; MAML's paper (Finn et al. 2017,
    https://arxiv.org/abs/1703.03400, section 5.2) takes strides for Omniglot. There the normalization is by
    the batch, and the batch is the query set: such a network answers a query by looking at the others.

    Input: `image` float32 (batch, height, width[, channels]), 0 to 1. Output: (batch, outputs) logits, or the
    embedding (batch, width) of the last block's places.

    Args:
        shape: of an image.
        outputs: ways; 0: the embedding, for prototypes.
        filters: of each convolution.
        blocks: how many; the image has 2 to that power places in height and width, or more are lost.
        normalization: `example`: each image by itself, over all its places and channels, with a factor and a
            summand a channel; `batch`: see `karpa_tf.meta.Functional`; `none`.
        downsampling: how a block halves the places.
        frame: bring the ink of grey images to one size first; see `FrameInk`.
        dtype: of weights and arithmetic.

    Raises:
        UserError: the image is too small for so many blocks, or has colours and is to be framed.
    """
    least = 2**blocks if downsampling == "pooling" else 1
    if len(shape) not in (2, 3) or min(shape[:2]) < least:
        raise UserError(
            f"{blocks} blocks take images (height, width) or (height, width, channels) of {least} x {least} "
            f"at least. Received: {shape}."
        )
    if frame and len(shape) == 3 and shape[2] != 1:
        raise UserError(f"Grey images are framed, of one channel. Received: {shape}.")
    # === Layers ===
    stride = 2 if downsampling == "strides" else 1
    norms = {"example": lambda n: keras.layers.GroupNormalization(1, dtype=dtype, name=f"norm_{n}")}
    norms["batch"] = lambda n: keras.layers.BatchNormalization(dtype=dtype, name=f"norm_{n}")

    # === Functional Model ===
    image = x = keras.Input(shape, name="image", dtype=dtype)
    if len(shape) == 2:
        x = keras.layers.Reshape((*shape, 1), dtype=dtype, name="channel")(x)
    if frame:
        x = FrameInk(dtype=dtype, name="frame")(x)
    for n in range(blocks):
        x = keras.layers.Conv2D(filters, 3, stride, "same", dtype=dtype, name=f"convolution_{n}")(x)
        if normalization in norms:
            x = norms[normalization](n)(x)
        x = keras.layers.ReLU(dtype=dtype, name=f"rectifier_{n}")(x)
        if downsampling == "pooling":
            x = keras.layers.MaxPooling2D(2, dtype=dtype, name=f"pool_{n}")(x)
    x = keras.layers.Flatten(dtype=dtype, name="embedding")(x)
    if outputs:
        x = keras.layers.Dense(outputs, dtype=dtype, name="logits")(x)
    return keras.Model(image, x, name="few_shot_cnn")
