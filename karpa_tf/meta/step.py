"""Meta-learning under the loop that all trainings share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf import private
from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.meta.tasks import TaskBatch
from karpa_tf.training.step import Step, all_reduce


class MetaStep(Step):
    """One update of what an algorithm learns across tasks; a batch is one of tasks.

    Args:
        algorithm: whose variables were made under the strategy's scope.
        optimizer: of Keras; it is built here.
        strategy: see `Step`.

    Attributes:
        model: the algorithm's learner, with the optimizer as its `optimizer`.
    """

    model: keras.Model

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        super().__init__(strategy)
        self.algorithm, self.optimizer = algorithm, optimizer
        self.model = algorithm.learner
        self.model.optimizer = optimizer
        with self.strategy.scope():
            optimizer.build(algorithm.variables)
        private.take_gradients_as_sums(optimizer)

    @property
    def variables(self) -> Sequence[Any]:
        """The learner's variables and the optimizer's."""
        return [*self.model.variables, *self.optimizer.variables]

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        """Makes one update.

        Args:
            batch: a `TaskBatch`.

        Returns:
            The algorithm's figures, means over the tasks, and 1.
        """
        gradients, figures = self.algorithm.gradients(TaskBatch(*batch))
        parts = tf.cast(self.strategy.num_replicas_in_sync, tf.float32)
        gradients = all_reduce(self.strategy, [g / tf.cast(parts, g.dtype) for g in gradients])
        self.apply_gradients(figures, (self.optimizer, gradients, self.algorithm.variables))
        return figures, 1.0
