"""Elastic weight consolidation: what earlier tasks have learned holds the weights where it needs them.

Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.training.supervised import Metric, SupervisedStep


class EwcStep(SupervisedStep):
    """An update by the loss and a quadratic penalty: strength / 2 * sum of F (w - w*)^2.

    w* are the weights after the task before, and F is the sum of the tasks' Fisher information: the online
    form of the method (Schwarz et al. 2018, https://arxiv.org/abs/1805.06370), with one F and one w* however
    many tasks there are; see `remember`. While there is no task before, both are 0.

    Args:
        model: compiled and built; it gives logits.
        metrics: as for `SupervisedStep`.
        strength: of the penalty, lambda.
        before: the step of the task before, after `remember`; None: there is none, or a checkpoint has it.

    Attributes:
        information: F, a variable for each of the model's that are trained.
        anchor: w*, likewise.
    """

    def __init__(
        self,
        model: keras.Model,
        metrics: Mapping[str, Metric] | None = None,
        *,
        strength: float,
        before: EwcStep | None = None,
    ) -> None:
        super().__init__(model, metrics)
        self._names = [*self._names, "penalty"]
        self.strength = strength
        weights = model.trainable_variables
        zeros = [tf.zeros(v.shape) for v in weights]
        kept = (before.information, before.anchor) if before else (zeros, zeros)
        self.information: list[tf.Variable]
        self.anchor: list[tf.Variable]
        self.information, self.anchor = ([tf.Variable(x, trainable=False) for x in some] for some in kept)

    @property
    def variables(self) -> Sequence[Any]:
        """Those of the usual step, F and w*."""
        return [*super().variables, *self.information, *self.anchor]

    def penalty(self) -> tf.Tensor:
        """Returns the penalty of the present weights, a scalar."""
        weights = [v.value for v in self.model.trainable_variables]
        parts = zip(self.information, weights, self.anchor, strict=True)
        return self.strength / 2 * tf.add_n([tf.reduce_sum(f * tf.square(w - a)) for f, w, a in parts])

    def loss_and_sums(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of a batch summed over its weights, and the figures' sums likewise."""
        loss, sums = super().loss_and_sums(batch)
        *figures, weight = tf.unstack(sums)
        penalty = self.penalty() * weight
        figures[0] += penalty
        return loss + penalty, tf.stack([*figures, penalty, weight])

    def remember(self, information: Sequence[np.ndarray], decay: float = 1.0) -> None:
        """Adds what a task has learned: its Fisher information to F, and w* becomes the present weights.

        Args:
            information: of `fisher_information`, after the task.
            decay: what F is multiplied by first; 1: all tasks count alike.
        """
        for total, new in zip(self.information, information, strict=True):
            total.assign(decay * total + new)
        for anchor, weight in zip(self.anchor, self.model.trainable_variables, strict=True):
            anchor.assign(weight.value)


def fisher_information(
    model: keras.Model, features: np.ndarray, candidates: np.ndarray | None = None
) -> list[np.ndarray]:
    """Returns the diagonal of a classifier's Fisher information at its present weights w.

    It is the mean over rows x of E[(d log p(y | x) / dw)^2], where y is distributed as the model's own
    softmax p(. | x); the expectation is taken exactly, over all y. With the data's labels for y it would be
    the "empirical Fisher", which is another matrix (Kunstner et al. 2019, https://arxiv.org/abs/1905.12558).

    Args:
        model: gives logits (n, outputs), each row by itself.
        features: (n, ...), of any labels. A row takes a backward pass for each candidate.
        candidates: bool (outputs,), the outputs that the softmax is over; None: all.

    Returns:
        float32, an array for each trainable variable, of its shape.

    Raises:
        UserError: there are no rows, or no candidates.
    """
    weights = [v.value for v in model.trainable_variables]
    if candidates is None:
        candidates = np.ones(model.compute_output_shape(features.shape)[-1], bool)
    places = np.flatnonzero(candidates)
    if not len(features) or not len(places):
        raise UserError(
            "Fisher information is a mean over rows, and over outputs that may be answered. Received: "
            f"{len(features)} rows, {len(places)} outputs."
        )

    @tf.function(autograph=False)
    def summed(rows: tf.Tensor, places: tf.Tensor) -> list[tf.Tensor]:
        count = tf.size(places)

        def add(number: tf.Tensor, *sums: tf.Tensor) -> Any:
            row = rows[number // count][None]
            with tf.GradientTape() as tape:
                logits = tf.gather(model(row, training=False)[0], places)
                likelihood = tf.nn.log_softmax(tf.cast(logits, tf.float32))[number % count]
            gradients = tape.gradient(likelihood, weights, unconnected_gradients="zero")
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            share = tf.exp(likelihood)
            more = [total + share * tf.square(g) for total, g in zip(sums, gradients, strict=True)]
            return number + 1, *more

        start = (0, *(tf.zeros(weight.shape) for weight in weights))
        last = tf.shape(rows)[0] * count
        return tf.while_loop(lambda number, *_: number < last, add, start, parallel_iterations=1)[1:]

    sums = summed(tf.constant(features), tf.constant(places, tf.int32))
    return [np.asarray(total) / len(features) for total in sums]
