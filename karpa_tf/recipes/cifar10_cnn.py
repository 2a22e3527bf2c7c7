"""`cifar10-cnn`: a convolutional network for small colour images, from images to a served model.

    karpa-tf train cifar10-cnn --data cifar10.zip         class folders, an .npz, cifar-10-batches-py
    karpa-tf train cifar10-cnn --config essay --data ...  two convolutions and three dense layers

What it reaches stands in the header of each file in `karpa_tf/settings/cifar10-cnn`; what the recipe does, in
`vision.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf.configs import Cifar10CnnConfig
from karpa_tf.export.signature import Signature
from karpa_tf.models.airbench import build_airbench
from karpa_tf.models.image_cnn import build_image_cnn
from karpa_tf.recipes import vision
from karpa_tf.training.attacks import parse_attack
from karpa_tf.training.run_folder import RunFolder


def build(
    config: Cifar10CnnConfig,
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


NETWORK = vision.Network(Cifar10CnnConfig, channels=3, build=build, start=start)


def train(config: Cifar10CnnConfig, folder: RunFolder, *, resume: bool = False) -> dict[str, float]:
    """Trains into a run folder and returns the final figures."""
    return vision.train(NETWORK, config, folder, resume=resume)


def evaluate(
    folder: RunFolder, data: str | None = None, *, attack: str = "none", epsilon: str = "8/255"
) -> dict[str, Any]:
    """Judges a run, also under an attack (fgsm, pgd); see `vision.evaluate`."""
    return vision.evaluate(NETWORK, folder, data, attack=parse_attack(attack, epsilon))


def explain(folder: RunFolder, inputs: list[str]) -> dict[str, Any]:
    """Shows what speaks for the labels of images; see `vision.explain`."""
    return vision.explain(NETWORK, folder, inputs)


def signature(folder: RunFolder) -> Signature:
    """Returns what `predict` calls and `export` writes."""
    return vision.signature(NETWORK, folder)


def export(
    folder: RunFolder,
    to: str | Path = "savedmodels",
    *,
    format: str = "savedmodel",
    quantize: str = "",
    force: bool = False,
) -> dict[str, Any]:
    """Writes the next version of `savedmodels/cifar10-cnn`; see `vision.export`."""
    return vision.export(NETWORK, folder, to, format=format, quantize=quantize, force=force)
