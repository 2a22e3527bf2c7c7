"""Distillation: a classifier that learns from another one's probabilities (Hinton et al. 2015).

https://arxiv.org/abs/1503.02531. `keras.distillation.LogitsDistillation(T, KLDivergence())` is the same
function of logits (a test compares them; its default, `"kl_divergence"`, takes the divergence of the logits
themselves in Keras 3.15). The `Distiller` beside it is not used: it is a model around both models, which asks
the teacher anew for every batch, drops the sample weights, by which our batches say what fills them up, and
takes means over a replica's rows where our steps sum over all of them. Here the loss is a part of
`SupervisedStep`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine

# Features and labels of a batch to its labels int (batch,), what the teacher gives, float32 logits (batch,
# classes), and the share of the teacher's loss, float32 (batch,) or a scalar.
Lesson = Callable[[Any, Any], tuple[Any, Any, Any]]


def distillation_loss(teacher: tf.Tensor, student: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row, in nats.

    T is the temperature. The gradient of the divergence falls with 1 / T^2; the factor keeps its size beside
    that of the labels' loss (Hinton et al. 2015, section 2).

    Args:
        teacher: float32 logits (n, classes).
        student: float32 logits (n, classes).
        temperature: above 0; the higher it is, the more the classes that are not the best one count.

    Returns:
        float32 (n,).
    """
    known = tf.nn.log_softmax(teacher / temperature)
    found = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(known) * (known - found), axis=-1)


@dataclass(frozen=True, repr=False)
class Distillation(InALine):
    """The loss of a model that is taught: 1 - share of its own, on the labels, and a share of the teacher's.

    Attributes:
        lesson: what the teacher says of a batch.
        temperature: of `distillation_loss`.
    """

    lesson: Lesson
    temperature: float

    def loss_and_sums(
        self, model: keras.Model, metrics: Mapping[str, Callable[[Any, Any], Any]], batch: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of a batch summed over its weights, and `[loss, *metrics, 1]` summed likewise.

        Args:
            model: compiled with a loss that has a value a row.
            metrics: functions of labels and outputs.
            batch: features, labels or what the lesson takes for them, weights.
        """
        features, labels, weights = batch
        labels, teacher, share = self.lesson(features, labels)
        outputs = model(features, training=True)
        losses = (1 - share) * model.loss.call(labels, outputs)
        losses += share * distillation_loss(teacher, outputs, self.temperature)
        weight = tf.reduce_sum(weights)
        added = tf.add_n([tf.cast(x, tf.float32) for x in [tf.constant(0.0), *model.losses]])
        loss = tf.reduce_sum(losses * weights) + added * weight
        values = [tf.cast(metric(labels, outputs), tf.float32) for metric in metrics.values()]
        return loss, tf.stack([loss, *(tf.reduce_sum(v * weights) for v in values), weight])


class TaughtRows(InALine):
    """A lesson that was written down: what the teacher says of each row. Batches have row numbers for labels.

    Args:
        labels: int (rows,).
        logits: float32 (rows, classes), the teacher's.
        shares: float32 (rows,), of the teacher's loss.
    """

    def __init__(self, labels: np.ndarray, logits: np.ndarray, shares: np.ndarray) -> None:
        self._tables = tf.constant(labels, tf.int32), tf.constant(logits), tf.constant(shares, tf.float32)

    def __call__(self, features: Any, rows: Any) -> tuple[Any, Any, Any]:
        """Returns labels, logits and shares of a batch's `rows`; the `features` say nothing more."""
        labels, logits, shares = (tf.gather(table, rows) for table in self._tables)
        return labels, logits, shares
