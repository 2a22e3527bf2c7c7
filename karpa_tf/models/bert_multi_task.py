"""One BERT encoder under several heads: labels of texts and tags of words, from one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import keras
import tensorflow as tf

from karpa_tf.models.bert import Dropout
from karpa_tf.models.bert_classifier import Pool
from karpa_tf.models.bert_tagger import with_cases

# What a head is for.
Kind = Literal["texts", "words"]


def build_bert_multi_task(
    bert: keras.Model,
    heads: Mapping[str, tuple[Kind, int]],
    *,
    cases: bool = False,
    pooling: Literal["mean", "cls"] = "mean",
    dropout: float = 0.1,
    uncertainty: bool = False,
) -> keras.Model:
    """Builds heads on an encoder.

    Inputs: those of `build_bert`, and with `cases` also `case_ids`, as for `build_bert_tagger`.
    Output: float32 logits by head, (batch, classes) of texts, (batch, time, tags) of words.

    Args:
        bert: the encoder.
        heads: by name what it is for, and its number of classes or tags.
        cases: add an embedding of the kinds of letters that a word has.
        pooling: of texts; see `build_bert_classifier`. All heads share the vector.
        dropout: share of what a head reads dropped in training.
        uncertainty: keep a weight of each head's loss, which is learned, in the layer `uncertainty`.

    Raises:
        ValueError: `pooling` is neither.
    """
    # === Layers ===
    logits = {
        name: keras.layers.Dense(
            classes,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            dtype="float32",
            name=f"{name}_logits",
        )
        for name, (_, classes) in heads.items()
    }

    # === Functional Model ===
    inputs, x = with_cases(bert) if cases else (bert.input, bert.output)
    read = {"words": x}
    if any(kind == "texts" for kind, _ in heads.values()):
        pooled = Pool(pooling, name="pool")(x, inputs["padding_mask"])
        if pooling == "cls":
            pooled = keras.layers.Dense(pooled.shape[-1], "tanh", dtype="float32", name="pooled")(pooled)
        read["texts"] = pooled
    outputs = {
        name: logits[name](Dropout(dropout, dtype=read[kind].dtype, name=f"{name}_drop")(read[kind]))
        for name, (kind, _) in heads.items()
    }
    if uncertainty:
        outputs = Uncertainty(name="uncertainty")(outputs)
    return keras.Model(inputs, outputs, name="bert_multi_task")


@keras.saving.register_keras_serializable(package="karpa_tf")
class Uncertainty(keras.layers.Layer):
    """Hands on what heads give, and keeps s = log(sigma^2) of each head's loss, 0 at first.

    A loss L counts as exp(-s) L + s / 2 (Kendall et al. 2018, https://arxiv.org/abs/1705.07115, for
    classification), which for a fixed L is least where s = log(2 L): its weight exp(-s) is 1 / (2 L) then.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def build(self, shapes: Mapping[str, Any]) -> None:
        self.log_variances = {
            name: self.add_weight(shape=[], initializer="zeros", name=f"{name}_log_variance")
            for name in sorted(shapes)
        }

    def call(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tf.identity(output) for name, output in outputs.items()}
