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

from karpa_tf.models import build_airbench, build_image_cnn
from karpa_tf.models.airbench import without_standardize
from karpa_tf.recipes.families.images import ImageRecipe

from . import ABOUT, Cifar10CnnSettings


class Cifar10Cnn(ImageRecipe[Cifar10CnnSettings]):
    """A convolutional network."""

    about = ABOUT
    channels = 3

    def build(
        self, config: Cifar10CnnSettings, shape: tuple[int, int, int], classes: int, **common: Any
    ) -> keras.Model:
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

    def initialize(self, model: keras.Model, images: np.ndarray) -> None:
        """Whitens the first layer, if the network has one that is to be."""
        if model.name == "airbench":
            model.get_layer("whitened_patches").whiten(images)

    def for_int8(self, model: keras.Model) -> keras.Model:
        """Spares the whitened patches the rounding of standardized pixels."""
        return without_standardize(model) if model.name == "airbench" else model
