"""Model-agnostic meta-learning, by the full gradient (second order) or the first order's.

Finn et al. 2017, https://arxiv.org/abs/1703.03400.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from karpa_tf.meta.adapt import adapt
from karpa_tf.meta.algorithm import Algorithm, figures
from karpa_tf.meta.tasks import TaskBatch


class MAML(Algorithm):
    """Descends on the loss of the query sets after the steps on the support sets.

    `theta <- theta - beta d/dtheta sum_i L_i(theta - alpha d/dtheta L_i(theta))` (equation 1, with the
    mean over the tasks for their sum). The gradient goes through the steps and has second derivatives of
    the support loss in it.

    Args:
        model: see `Algorithm`, also for the other arguments.
        first_order: leave those out: the gradient at the adapted weights is taken for that at the start
            (FOMAML, section 5.2; Nichol et al. 2018, https://arxiv.org/abs/1803.02999, section 4).
        every_step: descend on the mean of the query losses after each step, not on that after the last
            (Antoniou et al. 2019, https://arxiv.org/abs/1810.09502, the multi-step loss, of equal weights).
        **kwargs: those of `Algorithm`.
    """

    def __init__(
        self, model: keras.Model, *, first_order: bool = False, every_step: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(model, **kwargs)
        self.first_order, self.every_step = first_order, every_step

    def gradients(self, batch: TaskBatch) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the gradient of the query loss after adaptation by each of `variables`, and that loss.

        Args:
            batch: of tasks.
        """
        with tf.GradientTape() as tape:
            support, query = self.features(batch.support, True), self.features(batch.query, True)
            weights = self.functional.tile(tf.shape(batch.support)[0])
            losses = []
            for step in range(self.inner_steps):
                weights = adapt(
                    self.functional,
                    weights,
                    support,
                    batch.support_labels,
                    steps=1,
                    rates=self.rates,
                    first_order=self.first_order,
                    training=True,
                )
                if self.every_step or step == self.inner_steps - 1:
                    found = figures(self.functional(weights, query, True), batch.query_labels)
                    losses.append(found["loss"])
            loss = tf.add_n(losses) / len(losses)
        variables = [v.value for v in self.variables]
        return tape.gradient(loss, variables, unconnected_gradients="zero"), found
