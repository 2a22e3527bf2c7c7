"""A multilayer perceptron on images: the essay's 784-64-10, and better ones."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from karpa_tf.models.image_layers import FastBatchNormalization, Standardize


def build_image_mlp(
    shape: tuple[int, int, int],
    classes: int,
    *,
    units: Sequence[int] = (64,),
    batch_normalization: bool = False,
    dropout: float = 0.0,
    mean: Sequence[float] = (0.0,),
    deviation: Sequence[float] = (255.0,),
    dtype: str = "float32",
) -> keras.Model:
    """Builds a perceptron with rectified hidden layers.

    Input: `image` float32 (batch, height, width, channels), 0 to 255. Output: float32 logits (batch,
    classes).

    Args:
        shape: height, width and channels.
        classes: number of labels.
        units: width of each hidden layer.
        batch_normalization: normalize what enters the rectifiers (Ioffe & Szegedy 2015,
            https://arxiv.org/abs/1502.03167).
        dropout: share of the hidden activations dropped in training.
        mean: taken from each channel, of the values 0 to 255.
        deviation: what each channel is divided by then.
        dtype: `float32` or `mixed_bfloat16`.

    Example:

        model = build_image_mlp((28, 28, 1), 10)
        model(np.zeros([1, 28, 28, 1], "float32")).shape  # (1, 10)
    """
    # === Layers ===
    standardize = Standardize(mean, deviation, dtype=dtype, name="standardize")
    flatten = keras.layers.Flatten(dtype=dtype, name="flatten")
    head = keras.layers.Dense(classes, dtype="float32", name="logits")

    # === Functional Model ===
    image = keras.Input(shape, name="image")
    x = flatten(standardize(image))
    for number, width in enumerate(units):
        dense = keras.layers.Dense(
            width,
            use_bias=not batch_normalization,
            kernel_initializer="he_normal",
            dtype=dtype,
            name=f"hidden_{number}",
        )
        x = dense(x)
        if batch_normalization:
            x = FastBatchNormalization(0.9, scale=True, dtype=dtype, name=f"norm_{number}")(x)
        x = keras.layers.Activation("relu", dtype=dtype, name=f"relu_{number}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, dtype=dtype, name=f"dropout_{number}")(x)
    return keras.Model(image, head(x), name="image_mlp")
