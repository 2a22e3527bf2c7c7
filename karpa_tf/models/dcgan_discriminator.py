"""The discriminator of a small DCGAN."""

from __future__ import annotations

from typing import Any

import keras

from karpa_tf.models.dcgan_generator import check_shape
from karpa_tf.models.image_layers import Standardize
from karpa_tf.models.spectral import SpectralConv2D, SpectralDense


def build_dcgan_discriminator(
    shape: tuple[int, int, int],
    classes: int = 0,
    *,
    filters: int = 32,
    units: int = 128,
    dtype: str = "float32",
) -> keras.Model:
    """Builds two convolutions of 4 x 4 that halve height and width, and a dense layer.

    Radford et al. 2016 (https://arxiv.org/abs/1511.06434), with spectral normalization of every kernel
    (Miyato et al. 2018, https://arxiv.org/abs/1802.05957) in the place of batch normalization: an image is
    read by itself. A class is taken in by projection (Miyato & Koyama 2018, https://arxiv.org/abs/1802.05637,
    equation 3): its vector times the features is added.

    Inputs: `image` float32 (batch, height, width, channels), 0 to 255; with classes also `label` float32
    (batch, classes), 1 at the class and 0 elsewhere. Output: float32 logits (batch,), above 0 for real.

    Args:
        shape: height, width and channels of an image; height and width are multiples of 4.
        classes: how many; 0: without a label.
        filters: channels of the first convolution; the second one has twice as many.
        units: of the dense layer.
        dtype: `float32` or `mixed_bfloat16`.

    Raises:
        UserError: height or width is no multiple of 4.
    """
    check_shape(shape)
    # === Layers ===
    common: dict[str, Any] = {"activation": "leaky_relu", "kernel_initializer": "he_normal", "dtype": dtype}
    convolutions = [
        SpectralConv2D(width, 4, 2, padding="same", name=f"convolution_{number}", **common)
        for number, width in enumerate((filters, 2 * filters))
    ]
    hidden = SpectralDense(units, name="hidden", **common)
    head = SpectralDense(1, dtype="float32", name="logit")

    # === Functional Model ===
    inputs = [keras.Input(shape, name="image")]
    x = Standardize([127.5], [127.5], dtype=dtype, name="standardize")(inputs[0])
    for convolution in convolutions:
        x = convolution(x)
    x = hidden(keras.layers.Flatten(dtype=dtype, name="flatten")(x))
    logits = head(x)
    if classes:
        inputs.append(keras.Input([classes], name="label"))
        vectors = SpectralDense(classes, use_bias=False, dtype="float32", name="projection")
        of_class = keras.layers.Dot(1, dtype="float32", name="of_class")([vectors(x), inputs[1]])
        logits = keras.layers.Add(dtype="float32", name="sum")([logits, of_class])
    logits = keras.layers.Reshape([], dtype="float32", name="logits")(logits)
    return keras.Model(inputs, logits, name="discriminator")
