"""`cifar10-cnn`: a convolutional network for small colour images, from images to a served model.

    karpa-tf train cifar10-cnn --data cifar10.zip         class folders, an .npz, cifar-10-batches-py
    karpa-tf train cifar10-cnn --config essay --data ...  two convolutions and three dense layers

What it reaches stands in the header of each YAML file beside this one; what the recipe does, in
`families/images.py`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from karpa_tf.models.airbench import build_airbench, without_standardize
from karpa_tf.models.image_cnn import build_image_cnn
from karpa_tf.recipes.families import images

from . import ABOUT, Cifar10CnnSettings


def build(
    config: Cifar10CnnSettings,
    shape: tuple[int, int, int],
    classes: int,
    mean: list[float],
    deviation: list[float],
    dtype: str,
) -> keras.Model:
    """Builds the network that the settings ask for."""
    common: dict[str, Any] = {"mean": mean, "deviation": deviation, "dtype": dtype}
    if config.network == "essay":
        return build_image_cnn(shape, classes, dropout=config.dropout, **common)
    return build_airbench(
        shape,
        classes,
        widths=config.block_widths(),
        depth=config.depth,
        activation=config.activation,
        **common,
    )


def start(model: keras.Model, images: np.ndarray) -> None:
    """Whitens the first layer, if the network has one that is to be."""
    if model.name == "airbench":
        model.get_layer("whitened_patches").whiten(images)


def for_int8(model: keras.Model) -> keras.Model:
    """Spares the whitened patches the rounding of standardized pixels."""
    return without_standardize(model) if model.name == "airbench" else model


NETWORK = images.Network(Cifar10CnnSettings, channels=3, build=build, start=start, for_int8=for_int8)


class Cifar10Cnn(images.ImageRecipe):
    """A convolutional network."""

    about = ABOUT
    network = NETWORK
