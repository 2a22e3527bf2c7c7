"""The essay's network for CIFAR-10: two convolutions and three dense layers."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from karpa_tf.models.image_layers import Standardize


def build_image_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    channels: Sequence[int] = (6, 16),
    units: Sequence[int] = (120, 84),
    dropout: float = 0.0,
    mean: Sequence[float] = (127.5,),
    deviation: Sequence[float] = (127.5,),
    dtype: str = "float32",
) -> keras.Model:
    """Builds convolutions of 5 x 5, each with a rectifier and a pooling by 2, and dense layers.

    The shape of LeNet-5 (LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition).

    Input: `image` float32 (batch, height, width, channels), 0 to 255. Output: float32 logits (batch,
    classes).

    Args:
        shape: height, width and channels; 16 x 16 at least.
        classes: number of labels.
        channels: of each convolution.
        units: of each dense layer but the last.
        dropout: share of the dense layers' activations dropped in training.
        mean: taken from each channel, of the values 0 to 255.
        deviation: what each channel is divided by then.
        dtype: `float32` or `mixed_bfloat16`.
    """
    # === Layers ===
    standardize = Standardize(mean, deviation, dtype=dtype, name="standardize")
    head = keras.layers.Dense(classes, dtype="float32", name="logits")

    # === Functional Model ===
    image = keras.Input(shape, name="image")
    x = standardize(image)
    for number, width in enumerate(channels):
        x = keras.layers.Conv2D(width, 5, activation="relu", dtype=dtype, name=f"convolution_{number}")(x)
        x = keras.layers.MaxPooling2D(2, dtype=dtype, name=f"pool_{number}")(x)
    x = keras.layers.Flatten(dtype=dtype, name="flatten")(x)
    for number, width in enumerate(units):
        x = keras.layers.Dense(width, "relu", dtype=dtype, name=f"dense_{number}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, dtype=dtype, name=f"dropout_{number}")(x)
    return keras.Model(image, head(x), name="image_cnn")
