"""Several losses of one model, each over the rows that have a label for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.supervised import SupervisedStep


class MultiTaskStep(SupervisedStep):
    """An update of a model with several heads by the sum of their losses.

    The loss of a task is the mean cross-entropy over its own rows in the batch (those of a weight above 0),
    and the loss of the batch is the sum over the tasks that it has rows of: another one adds nothing and gets
    no gradient.

        sum_t w_t L_t,  or with `log_variances` s_t  sum_t exp(-s_t) L_t + s_t / 2

    (Kendall et al. 2018, https://arxiv.org/abs/1705.07115, for classification), for the tasks t of the batch.

    Figures: `loss`; `NAME_loss` and `NAME_accuracy` of each task over its own rows; `NAME_weight`, if they
    are learned.

    Args:
        model: gives logits (batch, ..., classes) by task, compiled. Batches have labels and weights by task,
            (batch, ...).
        weights: w by task; 1 where none is given.
        log_variances: s by task, of the model's variables.
        more: what else `SupervisedStep` takes, but for metrics, distillation and attacks.
    """

    def __init__(
        self,
        model: keras.Model,
        weights: Mapping[str, float] | None = None,
        log_variances: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(model, **more)
        self.tasks = sorted(model.output)
        self.weights = {task: (weights or {}).get(task, 1.0) for task in self.tasks}
        self.log_variances = dict(log_variances or {})
        self.watched = [f"{task}_loss" for task in self.tasks]
        learned = [f"{task}_weight" for task in self.log_variances]
        self._names = ["loss", *self.watched, *(f"{task}_accuracy" for task in self.tasks), *learned]
        self.summed = 3 * len(self.tasks)
        self._loss = SparseCrossEntropy()

    def weigh(self, batch: Any) -> tf.Tensor:
        """Returns the weights of a batch, summed, float32 (tasks,)."""
        _, _, weights = batch
        return tf.stack([tf.reduce_sum(weights[task]) for task in self.tasks])

    def loss_and_sums(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a batch's losses, right labels and weights, summed: float32 (tasks, 3), and (3 tasks,)."""
        features, labels, weights = batch
        outputs = self.model(features, training=True)
        rows = []
        for task in self.tasks:
            losses = self._loss.call(labels[task], outputs[task])
            found = tf.argmax(outputs[task], axis=-1, output_type=labels[task].dtype)
            right = tf.cast(found == labels[task], tf.float32)
            weight = weights[task]
            rows.append([tf.reduce_sum(x * weight) for x in (losses, right, tf.ones_like(weight))])
        sums = tf.stack(rows)
        return sums, tf.reshape(sums, [-1])

    def mean(self, loss: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        # The part of the batch's weight is 0 for a task without rows, and adds up to 1 over all replicas.
        total = tf.constant(0.0)
        for number, task in enumerate(self.tasks):
            mean, part = loss[number, 0] / weight[number], loss[number, 2] / weight[number]
            s = self.log_variances.get(task)
            total += self.weights[task] * mean if s is None else tf.exp(-s) * mean + s / 2 * part
        return total

    def figures(self, sums: tf.Tensor, weight: tf.Tensor) -> tuple[Mapping[str, Any], Any]:
        table = tf.reshape(sums, [len(self.tasks), 3])
        one = tf.constant(1.0 / self.strategy.num_replicas_in_sync)
        figures, weights = {"loss": self.mean(table, weight)}, {"loss": one}
        for place, kind in enumerate(("loss", "accuracy")):
            for number, task in enumerate(self.tasks):
                figures[f"{task}_{kind}"], weights[f"{task}_{kind}"] = table[number, place], table[number, 2]
        for task, s in self.log_variances.items():
            figures[f"{task}_weight"], weights[f"{task}_weight"] = tf.exp(-s) * one, one
        return figures, weights
