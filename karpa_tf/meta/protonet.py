"""Prototypical networks: a class is the mean of its examples' embeddings; no gradient steps.

Snell et al. 2017, https://arxiv.org/abs/1703.05175.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.meta.algorithm import Algorithm, figures, mask_absent
from karpa_tf.meta.functional import Functional
from karpa_tf.meta.tasks import TaskBatch


class ProtoNet(Algorithm):
    """Descends on the loss of the query sets, whose logits are minus the squared distances to the prototypes.

    Args:
        model: a Keras model of one output [n, width], the embedding.
        ways: classes of a task, at most.
        transductive: see `Functional`.
    """

    def __init__(self, model: keras.Model, *, ways: int, transductive: bool = False) -> None:
        super().__init__(model, transductive=transductive)
        self.ways = ways

    def gradients(self, batch: TaskBatch) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the gradient of the query loss by each of `variables`, and that loss.

        Args:
            batch: of tasks.
        """
        with tf.GradientTape() as tape:
            found = figures(self._answers(self.functional, batch[:3], None, True), batch.query_labels)
        variables = [v.value for v in self.variables]
        return tape.gradient(found["loss"], variables, unconnected_gradients="zero"), found

    def predict(
        self,
        support: Any,
        labels: Any,
        query: Any,
        *,
        steps: Sequence[int] | None = None,
        row_weights: Any = None,
        portable: bool = False,
    ) -> tf.Tensor:
        """Returns the logits [steps, t, n, ways], the same after any number of steps; see `Algorithm`.

        Args:
            support: [t, k, ...].
            labels: int [t, k].
            query: [t, n, ...].
            steps: as many answers are given, one by default.
            row_weights: [t, k]; rows of padding have 0.
            portable: see `Functional`.
        """
        functional = Functional(self.model, transductive=self.transductive, portable=portable)
        answers = self._answers(functional, (support, labels, query), row_weights)
        answers = mask_absent(answers[None], labels, row_weights)
        return tf.repeat(answers, 1 if steps is None else len(steps), 0)

    def _answers(
        self, functional: Functional, task: Sequence[Any], row_weights: Any = None, training: bool = False
    ) -> tf.Tensor:
        support, labels, query = task
        own = [None] * len(functional.variables)
        support, query = functional(own, support, training), functional(own, query, training)
        members = tf.one_hot(labels, self.ways, dtype=support.dtype)
        if row_weights is not None:
            members *= tf.cast(row_weights, support.dtype)[..., None]
        # Equation 1: [t, ways, width].
        sums = tf.matmul(members, support, transpose_a=True)
        prototypes = sums / tf.maximum(tf.reduce_sum(members, 1), 1e-9)[..., None]
        # Equation 2, with the squared Euclidean distance (section 2.3), without the query's own square, which
        # all classes share.
        inner = tf.matmul(query, prototypes, transpose_b=True)
        return 2.0 * inner - tf.reduce_sum(tf.square(prototypes), -1)[:, None]
