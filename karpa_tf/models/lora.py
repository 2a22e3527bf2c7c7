"""Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) on a BERT, with Keras' own layers."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from karpa_tf import private
from karpa_tf.models.bert import DENSE_LAYERS
from karpa_tf.models.presets import blocks, encoder_variables


def freeze_encoder(model: keras.Model) -> None:
    """Leaves only the layers behind the encoder to be trained.

    Args:
        model: built on `build_bert`.
    """
    model.get_layer("embeddings").trainable = False
    for block in blocks(model):
        block.trainable = False


def enable_lora(model: keras.Model, rank: int, targets: Sequence[str] = DENSE_LAYERS) -> None:
    """Freezes the encoder but for adapters, and the biases beside them.

    Args:
        model: built on `build_bert`.
        rank: of the adapters; their product starts at zero and counts in full.
        targets: which dense layers of a block get one: names of `DENSE_LAYERS`.

    Raises:
        ValueError: a target is none of them.
    """
    if unknown := [name for name in targets if name not in DENSE_LAYERS]:
        raise ValueError(f"targets must be among {', '.join(DENSE_LAYERS)}. Received: {unknown[0]}.")
    freeze_encoder(model)
    for block in blocks(model):
        block.trainable = True
        for part in private.inner_layers(block):
            part.trainable = False
        for name in targets:
            layer = block.dense_layer(name)
            layer.trainable = True
            layer.enable_lora(rank, lora_alpha=rank)


def merge_lora(model: keras.Model, plain: keras.Model) -> None:
    """Copies a model with adapters into one without: each kernel plus the product of its adapters.

    Args:
        model: the one with adapters.
        plain: the same without; its weights are overwritten.
    """
    source, target = encoder_variables(model), encoder_variables(plain)
    for name, variable in target.items():
        variable.assign(source[name])
    for block, copy in zip(blocks(model), blocks(plain), strict=True):
        for name in DENSE_LAYERS:
            layer = block.dense_layer(name)
            if layer.lora_enabled:
                # Not `layer.kernel`: in mixed precision that is rounded to bfloat16.
                product = keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
                private.kernel(copy.dense_layer(name)).assign_add(
                    product * (layer.lora_alpha / layer.lora_rank)
                )
    encoder = [plain.get_layer("embeddings"), *blocks(plain)]
    for layer in plain.layers:
        if layer.weights and layer not in encoder:
            layer.set_weights(model.get_layer(layer.name).get_weights())
