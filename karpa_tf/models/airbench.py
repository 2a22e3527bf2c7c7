"""A convolutional network that learns CIFAR-10 in minutes: whitened patches, then six convolutions.

After Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
https://arxiv.org/abs/2404.00498, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from karpa_tf.models.image_layers import FastBatchNormalization, FastConv2D, Standardize


def build_airbench(
    shape: tuple[int, int, int],
    classes: int,
    *,
    widths: Sequence[int] = (64, 256, 256),
    depth: int = 2,
    activation: str = "gelu",
    scale: float = 1 / 9,
    mean: Sequence[float] = (127.5,),
    deviation: Sequence[float] = (127.5,),
    dtype: str = "float32",
) -> keras.Model:
    """Builds a frozen layer of whitened 2 x 2 patches and three blocks, each half as wide and high as before.

    `whiten` sets the first layer from training images; until then it is random.

    Input: `image` float32 (batch, height, width, channels), 0 to 255. Output: float32 logits (batch,
    classes).

    Args:
        shape: height, width and channels; 12 x 12 at least.
        classes: number of labels.
        widths: channels of each block.
        depth: convolutions of a block.
        activation: after each batch normalization.
        scale: of the logits.
        mean: taken from each channel, of the values 0 to 255.
        deviation: what each channel is divided by then.
        dtype: `float32` or `mixed_bfloat16`.
    """
    # === Layers ===
    standardize = Standardize(mean, deviation, dtype=dtype, name="standardize")
    patches = WhitenedPatches(dtype=dtype, name="whitened_patches")
    start = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    head = keras.layers.Dense(
        classes, use_bias=False, kernel_initializer=start, dtype="float32", name="logits"
    )

    def act(x: Any, name: str) -> Any:
        return keras.layers.Activation(activation, dtype=dtype, name=name)(x)

    # === Functional Model ===
    image = keras.Input(shape, name="image")
    x = act(patches(standardize(image)), "patches_active")
    for block, width in enumerate(widths):
        for number in range(depth):
            name = f"block_{block}_{number}"
            x = FastConv2D(
                width,
                3,
                pool=2 if number == 0 else 1,
                padding="same",
                use_bias=False,
                kernel_initializer=IdentityFirst(),
                dtype=dtype,
                name=name,
            )(x)
            if number == 0:
                x = keras.layers.MaxPooling2D(2, dtype=dtype, name=f"{name}_pool")(x)
            # The network is so short that averages over few steps are the best ones.
            x = FastBatchNormalization(0.6, scale=False, epsilon=1e-6, dtype=dtype, name=f"{name}_norm")(x)
            x = act(x, f"{name}_active")
    x = keras.layers.GlobalMaxPooling2D(dtype="float32", name="pool")(x)
    logits = keras.layers.Rescaling(scale, dtype="float32", name="scaled_logits")(head(x))
    return keras.Model(image, logits, name="airbench")


def without_standardize(model: keras.Model) -> keras.Model:
    """Returns the network in float32 with its first convolution taking images of 0 to 255 as they are.

    For int8: standardized pixels are rounded, and whitening makes those errors up to 45 times as large.

    Args:
        model: by `build_airbench`, in float32.
    """
    standardize, patches = model.get_layer("standardize"), model.get_layer("whitened_patches")

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer is standardize:
            return keras.layers.Identity(name=layer.name)
        if layer is patches:
            return keras.layers.Conv2D(layer.kernel.shape[-1], layer.side, name=layer.name)
        return type(layer).from_config(layer.get_config())

    folded = keras.models.clone_model(model, clone_function=clone)
    for layer in folded.layers:
        if layer.name != patches.name:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    # A column of channels, as they lie in the kernel.
    mean, deviation = (np.array(x, np.float32)[:, None] for x in (standardize.mean, standardize.deviation))
    kernel = np.asarray(patches.kernel) / deviation
    folded.get_layer(patches.name).set_weights([kernel, -(kernel * mean).sum(axis=(0, 1, 2))])
    return folded


@keras.saving.register_keras_serializable(package="karpa_tf")
class WhitenedPatches(keras.layers.Layer):
    """A convolution whose outputs for natural images are uncorrelated and of like size; its kernel stays.

    Each direction of the patches is there with its opposite, for the sake of what follows. Nothing here is
    learned, which spares the gradient of the largest maps.

    Args:
        side: of a patch.
    """

    def __init__(self, side: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.side = side

    def build(self, shape: Any) -> None:
        width = self.side**2 * shape[-1]
        start = keras.initializers.GlorotUniform(seed=0)
        self.kernel = self.add_weight(
            shape=(self.side, self.side, shape[-1], 2 * width),
            initializer=start,
            trainable=False,
            name="kernel",
        )
        self.built = True

    def call(self, x: Any) -> Any:
        """(batch, height, width, channels) to (batch, height - 1, width - 1, 8 x channels) for side 2."""
        return keras.ops.conv(x, self.kernel, padding="valid")

    def whiten(self, images: np.ndarray, floor: float = 5e-4) -> None:
        """Sets the kernel.

        Args:
            images: float32 (n, height, width, channels) as `call` gets them; some thousands are enough.
            floor: added to the variances, so that directions in which nothing varies stay bounded.
        """
        windows = np.lib.stride_tricks.sliding_window_view(images, (self.side, self.side), axis=(1, 2))
        # (n, y, x, channels, side, side) to rows of (side, side, channels), as the kernel has them.
        rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, self.kernel.shape[-1] // 2)
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        directions = vectors[:, ::-1] / np.sqrt(values[::-1] + floor)
        kernel = np.concatenate([directions, -directions], axis=1)
        self.kernel.assign(kernel.reshape(self.kernel.shape).astype(np.float32))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "side": self.side}


@keras.saving.register_keras_serializable(package="karpa_tf")
class IdentityFirst(keras.initializers.Initializer):
    """A kernel of 3 x 3 that at first hands its input on, as far as there are channels for it.

    What channels there are beyond are uniform, within the inverse root of the fan-in.
    """

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """float32 (height, width, inputs, outputs)."""
        height, width, inputs, outputs = shape
        random = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        kernel = np.array(random(shape, dtype))
        same = min(inputs, outputs)
        kernel[..., :same] = 0
        kernel[height // 2, width // 2, range(same), range(same)] = 1
        return keras.ops.convert_to_tensor(kernel, dtype)
