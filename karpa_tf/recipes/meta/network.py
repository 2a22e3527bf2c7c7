"""The network of `meta`, and the algorithm that trains it, by what tasks are made of."""

from __future__ import annotations

from typing import Any

import keras

from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.meta.anil import ANIL
from karpa_tf.meta.imaml import IMAML
from karpa_tf.meta.maml import MAML
from karpa_tf.meta.protonet import ProtoNet
from karpa_tf.meta.reptile import Reptile
from karpa_tf.models import build_few_shot_cnn, build_sinusoid_mlp
from karpa_tf.recipes.families.settings import whole_numbers

from . import MetaSettings


def build_network(config: MetaSettings, shape: tuple[int, ...], outputs: int) -> keras.Model:
    """Builds the network.

    Args:
        config: of the run.
        shape: of an example.
        outputs: logits or numbers; 0: an embedding.
    """
    if config.kind == "sinusoids":
        return build_sinusoid_mlp(shape[0], outputs, units=whole_numbers("units", config.units))
    if config.kind == "images":
        normalization: Any = "batch" if config.transductive else "example"
        return build_few_shot_cnn(
            shape, outputs, filters=config.filters, normalization=normalization, frame=config.framed
        )
    return build_text_head(shape[0], outputs)


def build_text_head(width: int, outputs: int) -> keras.Model:
    """Builds a network on vectors of texts: they and a linear map of them, which is 0 at first.

    So it begins with what the encoder knows: prototypes are the means of its vectors.

    Input: float32 (batch, width). Output: (batch, outputs), or the embedding (batch, width).

    Args:
        width: of the vectors.
        outputs: logits; 0: the embedding.
    """
    vector = keras.Input([width], name="vector")
    change = keras.layers.Dense(width, kernel_initializer="zeros", use_bias=False, name="change")
    scale = keras.layers.Rescaling(4.0, name="scale")  # distances of vectors of length 1 say too little
    x = scale(keras.layers.Add(name="add")([vector, change(vector)]))
    if outputs:
        x = keras.layers.Dense(outputs, kernel_initializer="zeros", name="logits")(x)
    return keras.Model(vector, x, name="text_head")


def make_algorithm(config: MetaSettings, shape: tuple[int, ...], outputs: int) -> Algorithm:
    """Makes the algorithm that the settings name, with a new network.

    Args:
        config: of the run; filled.
        shape: of an example.
        outputs: logits or numbers.
    """
    if config.algorithm == "protonet":
        network = build_network(config, shape, 0)
        return ProtoNet(network, ways=outputs, transductive=config.transductive)
    network = build_network(config, shape, outputs)
    common: dict[str, Any] = {
        "inner_rate": config.inner_rate,
        "inner_steps": config.inner_steps,
        "transductive": config.transductive,
    }
    if config.algorithm == "reptile":
        return Reptile(network, **common)
    if config.algorithm == "imaml":
        return IMAML(network, pull=config.pull, cg_steps=config.cg_steps, **common)
    common |= {"learn_rates": config.learn_rates, "every_step": config.every_step}
    if config.algorithm == "anil":
        return ANIL(network, **common)
    return MAML(network, first_order=config.algorithm == "fomaml", **common)
