"""A classifier whose probabilities are as often right as they say, and that says what it does not know."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine


@dataclass(frozen=True, repr=False)
class UnknownScore(InALine):
    """How little rows are like what a classifier has learned; the higher, the more unknown.

    Attributes:
        kind: `maximum softmax`: 1 - the largest probability (Hendrycks & Gimpel 2017,
            https://arxiv.org/abs/1610.02136). `energy`: -logsumexp of the logits (Liu et al. 2020,
            https://arxiv.org/abs/2010.03759, equation 4). `neighbours`: 1 - the cosine with the k-th nearest
            of known vectors (Sun et al. 2022, https://arxiv.org/abs/2204.06507).
        arrays: of `neighbours` `bank` float32 (m, width), vectors of length 1, and `k`.
        threshold: rows above it are unknown.
    """

    kind: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    threshold: float = np.inf

    def __call__(self, logits: Any, features: Any) -> tf.Tensor:
        """Returns the score float32 (n,), in graph ops.

        Args:
            logits: float32 (n, classes).
            features: float32 (n, width), what the last layer reads; not looked at where logits are enough.
        """
        if self.kind == "maximum softmax":
            return 1.0 - tf.reduce_max(tf.nn.softmax(logits), axis=1)
        if self.kind == "energy":
            return -tf.reduce_logsumexp(logits, axis=1)
        cosines = tf.matmul(tf.math.l2_normalize(features, axis=1), self.arrays["bank"], transpose_b=True)
        return 1.0 - tf.math.top_k(cosines, int(self.arrays["k"])).values[:, -1]


def features_of(model: keras.Model) -> Any:
    """Returns the symbolic tensor (batch, width) that the layer `logits` reads; None: there is no such."""
    if hasattr(model, "features"):  # what was made of several passes
        return model.features
    layer = next((layer for layer in model.layers if layer.name == "logits"), None)
    return None if layer is None else layer.input


class Calibrated(keras.Model):
    """A classifier with its logits divided by a temperature, and a score of what is unknown.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. Inputs: those of the classifier, whose
    layers it has. Output: float32 logits (batch, classes).

    Args:
        model: gives logits (batch, classes).
        temperature: that they are divided by.
        unknown: the score; None: it says nothing of what is unknown.
    """

    def __init__(
        self, model: keras.Model, temperature: float = 1.0, unknown: UnknownScore | None = None
    ) -> None:
        # === Functional Model ===
        logits = keras.layers.Rescaling(1 / temperature, dtype="float32", name="temperature")(model.output)
        super().__init__(model.input, logits, name=model.name)

        # === Config ===
        self.unknown = unknown
        self.features = features_of(model)

    @functools.cached_property
    def _with_features(self) -> keras.Model:
        features = self.output if self.features is None else self.features
        return keras.Model(self.input, [self.output, features])

    def with_more(self, features: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the logits float32 (batch, classes) of features, and `known` bool and `unknown_score`."""
        if self.unknown is None:
            return self(features, training=False), {}
        logits, vectors = self._with_features(features, training=False)
        score = self.unknown(logits, vectors)
        return logits, {"known": score <= self.unknown.threshold, "unknown_score": score}
