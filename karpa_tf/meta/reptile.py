"""Reptile: move to where the steps on a task lead.

Nichol et al. 2018, https://arxiv.org/abs/1803.02999.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.meta.adapt import adapt
from karpa_tf.meta.algorithm import Algorithm, figures
from karpa_tf.meta.tasks import TaskBatch


class Reptile(Algorithm):
    """Descends along the mean over the tasks of `(theta - phi_i) / alpha` (algorithm 2).

    `phi_i` is where k steps of rate alpha on task i lead; so the direction is the sum of the gradients on
    the way. With one step it is the gradient of the loss averaged over the tasks; with more it holds the term
    that makes gradients of different rows of a task agree (section 5.1). It is no loss's gradient.

    A task has no query set here: support and query rows are one set, of which each step sees every k-th row.

    Args:
        model: see `Algorithm`, also for the other arguments.
        **kwargs: those of `Algorithm`.

    Raises:
        UserError: rates are to be learned, which this cannot do.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if self.learn_rates:
            raise UserError("reptile has no gradient for rates: learn_rates goes with maml, fomaml and anil.")

    def gradients(self, batch: TaskBatch) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the direction for each of `variables`, and the loss and accuracy of the query rows before.

        Args:
            batch: of tasks, rows of a class together.
        """
        rows = tf.concat([batch.support, batch.query], 1)
        labels = tf.concat([batch.support_labels, batch.query_labels], 1)
        start = weights = self.functional.tile(tf.shape(rows)[0])
        for step in range(self.inner_steps):
            some = rows[:, step :: self.inner_steps], labels[:, step :: self.inner_steps]
            weights = adapt(self.functional, weights, *some, steps=1, rates=self.rates, training=True)
        moved = [tf.reduce_mean(a - b, 0) / self.inner_rate for a, b in zip(start, weights, strict=True)]
        return moved, figures(self.functional(weights, batch.query), batch.query_labels)
