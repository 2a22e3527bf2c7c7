"""The generator of a small DCGAN."""

from __future__ import annotations

import keras

from karpa_tf.errors import UserError
from karpa_tf.models.image_layers import FastBatchNormalization


def build_dcgan_generator(
    shape: tuple[int, int, int],
    classes: int = 0,
    *,
    latent: int = 64,
    filters: int = 32,
    dtype: str = "float32",
) -> keras.Model:
    """Builds a dense layer and two transposed convolutions of 4 x 4, each of which doubles height and width.

    Radford et al. 2016 (https://arxiv.org/abs/1511.06434), with batch normalization and rectifiers. The class
    is given beside z (Mirza & Osindero 2014, https://arxiv.org/abs/1411.1784): what it adds to the first
    layer is a picture of its own. Halfway between two classes is an input too.

    Inputs: `z` float32 (batch, latent), standard normal; with classes also `label` float32 (batch, classes),
    1 at the class and 0 elsewhere. Output: `image` float32 (batch, height, width, channels), 0 to 255.

    Args:
        shape: height, width and channels of an image; height and width are multiples of 4.
        classes: how many; 0: without a label.
        latent: width of z.
        filters: channels of the last hidden layer; the first one has twice as many.
        dtype: `float32` or `mixed_bfloat16`.

    Raises:
        UserError: height or width is no multiple of 4.
    """
    height, width, channels = check_shape(shape)
    # === Layers ===
    places = (height // 4, width // 4, 2 * filters)
    first = keras.layers.Dense(places[0] * places[1] * places[2], use_bias=False, dtype=dtype, name="first")
    double = keras.layers.Conv2DTranspose(
        filters, 4, 2, "same", use_bias=False, dtype=dtype, name="convolution_0"
    )
    last = keras.layers.Conv2DTranspose(channels, 4, 2, "same", dtype=dtype, name="convolution_1")

    # === Functional Model ===
    inputs = [keras.Input([latent], name="z")]
    x = inputs[0]
    if classes:
        inputs.append(keras.Input([classes], name="label"))
        x = keras.layers.Concatenate(dtype=dtype, name="z_and_label")(inputs)
    x = keras.layers.Reshape(places, dtype=dtype, name="places")(first(x))
    x = FastBatchNormalization(0.99, dtype=dtype, name="norm_0")(x)
    x = double(keras.layers.ReLU(dtype=dtype, name="relu_0")(x))
    x = FastBatchNormalization(0.99, dtype=dtype, name="norm_1")(x)
    x = last(keras.layers.ReLU(dtype=dtype, name="relu_1")(x))
    x = keras.layers.Activation("sigmoid", dtype="float32", name="sigmoid")(x)
    return keras.Model(
        inputs, keras.layers.Rescaling(255.0, dtype="float32", name="image")(x), name="generator"
    )


def check_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape of an image; raises a UserError if it cannot be halved twice."""
    if len(shape) != 3 or any(side < 8 or side % 4 for side in shape[:2]):
        raise UserError(
            "A DCGAN makes images (height, width, channels) whose sides are multiples of 4, 8 at least. "
            f"Received: {shape}."
        )
    return shape
