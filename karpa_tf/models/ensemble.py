"""Several classifiers of the same inputs as one: the mean of their probabilities, and a disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.models.calibrated import Calibrated

# What exports are compared by: the disagreement is a small difference of large numbers, and so may a score
# be.
SCALES = {"disagreement": 1.0, "unknown_score": 1.0}


class Ensemble(keras.Model):
    """The weighted mean of classifiers' probabilities (Lakshminarayanan et al. 2017, Deep Ensembles).

    https://arxiv.org/abs/1612.01474. Inputs: those of the members. Output: float32 logits (..., classes),
    the logarithms of the mean probabilities: their softmax is the mean.

    Args:
        members: each gives logits (..., classes) of the same inputs.
        weights: of the members, adding up to 1; None: all the same.
        temperature: that the logits are divided by; 1: the probabilities are the mean itself.
    """

    def __init__(
        self,
        members: Sequence[keras.Model],
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        # === Layers ===
        mean = MeanOfProbabilities(weights or [1 / len(members)] * len(members), temperature, name="mean")
        # Members have the same name, and a model wants other ones.
        named = [
            keras.Model(member.input, member.output, name=f"member_{number}")
            for number, member in enumerate(members)
        ]

        # === Functional Model ===
        inputs = tf.nest.map_structure(
            lambda x: keras.Input(x.shape[1:], dtype=x.dtype, name=x.name), members[0].input
        )
        logits, _ = mean([member(inputs) for member in named])
        super().__init__(inputs, logits, name="ensemble")

        # === Config ===
        self.count = len(members)

    @property
    def members(self) -> list[keras.Model]:
        """The classifiers, in their order."""
        return [self.get_layer(f"member_{number}") for number in range(self.count)]

    def with_disagreement(self, features: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the logits float32 (..., classes) of features, and the disagreement float32 (...)."""
        return self.get_layer("mean")([member(features, training=False) for member in self.members])


class MeanOfProbabilities(keras.layers.Layer):
    """A list of logits (..., classes) to the logits of the mean of their probabilities, and the disagreement.

    With members' probabilities p_i and weights w_i the mean is p = sum_i w_i p_i, and the disagreement is the
    generalized Jensen-Shannon divergence H(p) - sum_i w_i H(p_i) in nats, float32 (...): the mutual
    information between the label and the member that is asked (Houlsby et al. 2011,
    https://arxiv.org/abs/1112.5745). It is 0 where all members say the same, and at most the entropy of the
    weights.

    Args:
        shares: the weights, adding up to 1.
        temperature: that the logits of the mean are divided by.
    """

    def __init__(self, shares: Sequence[float], temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.shares = [float(share) for share in shares]
        self.temperature = float(temperature)

    def call(self, logits: Sequence[Any]) -> tuple[Any, Any]:
        logs = tf.nn.log_softmax(tf.stack([tf.cast(x, tf.float32) for x in logits]))
        shares = tf.reshape(tf.constant(self.shares), [-1] + [1] * (len(logs.shape) - 1))
        mean = tf.reduce_logsumexp(logs + tf.math.log(tf.maximum(shares, 1e-30)), axis=0)
        entropies = tf.reduce_sum(shares[..., 0] * _entropy(logs), axis=0)
        return mean / self.temperature, tf.maximum(_entropy(mean) - entropies, 0.0)

    def compute_output_spec(self, logits: Sequence[Any]) -> tuple[Any, Any]:
        shape = logits[0].shape
        return keras.KerasTensor(shape, "float32"), keras.KerasTensor(shape[:-1], "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shares": self.shares, "temperature": self.temperature}


def _entropy(logs: tf.Tensor) -> tf.Tensor:
    """Returns the entropy in nats (...) of logarithms of probabilities (..., classes)."""
    return -tf.reduce_sum(tf.exp(logs) * logs, axis=-1)


def logits_and_more(model: keras.Model, features: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Returns what a classifier gives, and what it serves beside that.

    Args:
        model: the classifier.
        features: as it takes them.

    Returns:
        The logits float32 (..., classes); of an ensemble `disagreement` float32 (...); of a `Calibrated` that
        knows what is unknown `known` bool and `unknown_score` float32 (batch,).
    """
    if isinstance(model, Calibrated):
        return model.with_more(features)
    if not isinstance(model, Ensemble):
        return model(features, training=False), {}
    logits, disagreement = model.with_disagreement(features)
    return logits, {"disagreement": disagreement}
