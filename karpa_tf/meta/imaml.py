"""Implicit MAML: a proximal inner loop, whose gradient needs no memory of the steps.

Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.meta.adapt import adapt, support_losses
from karpa_tf.meta.algorithm import Algorithm, figures
from karpa_tf.meta.tasks import TaskBatch


class IMAML(Algorithm):
    """Descends on the query loss at `argmin_phi L(phi) + lambda / 2 |phi - theta|^2` (equation 3).

    The gradient of task i is the solution g of `(I + H / lambda) g = v`, with v the gradient of the query
    loss and H the Hessian of the support loss, both at phi (lemma 1, equation 6). Conjugate gradient finds
    it, with products of H and a vector (equation 7, algorithm 2). It is exact as far as the inner loop and
    conjugate gradient have converged.

    Args:
        model: see `Algorithm`, also for the other arguments.
        pull: lambda: how strongly the steps are held near the start.
        cg_steps: of conjugate gradient.
        **kwargs: those of `Algorithm`.

    Raises:
        UserError: rates are to be learned, or the pull is not above 0.
    """

    def __init__(self, model: keras.Model, *, pull: float = 2.0, cg_steps: int = 5, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if self.learn_rates:
            raise UserError("imaml has no gradient for rates: learn_rates goes with maml, fomaml and anil.")
        if pull <= 0:
            raise UserError(f"imaml needs a pull above 0. Received: {pull}.")
        self.pull, self.cg_steps = pull, cg_steps

    def gradients(self, batch: TaskBatch) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the implicit gradient for each of `variables`, and the query loss after adaptation.

        Args:
            batch: of tasks.
        """
        functional, support = self.functional, (batch.support, batch.support_labels)
        weights = adapt(
            functional,
            functional.tile(tf.shape(batch.support)[0]),
            *support,
            steps=tf.constant(self.inner_steps),
            rates=self.rates,
            pull=self.pull,
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            found = figures(functional(weights, batch.query), batch.query_labels)
        # The mean over tasks is taken at the end: v is the gradient of a task's own loss.
        tasks = tf.cast(tf.shape(batch.support)[0], found["loss"].dtype)
        v = [g * tasks for g in tape.gradient(found["loss"], weights, unconnected_gradients="zero")]

        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as outer:
            outer.watch(weights)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(weights)
                loss = support_losses(functional, weights, *support)
            slopes = inner.gradient(loss, weights, unconnected_gradients="zero")

        def product(p: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            hessian = outer.gradient(slopes, weights, output_gradients=list(p), unconnected_gradients="zero")
            return [a + h / self.pull for a, h in zip(p, hessian, strict=True)]

        solved = conjugate_gradient(product, v, self.cg_steps)
        return [tf.reduce_mean(g, 0) for g in solved], found


def conjugate_gradient(
    product: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]], right: Sequence[tf.Tensor], steps: int
) -> list[tf.Tensor]:
    """Returns x of `A x = right`, of each task by itself, after so many steps (Hestenes & Stiefel 1952).

    Args:
        product: A times a vector; A is symmetric, and where it is not positive the steps of that task end.
        right: [t, *shape] tensors, one vector a task.
        steps: at most.
    """

    def dot(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.add_n(
            [tf.reduce_sum(tf.reshape(x * y, [tf.shape(x)[0], -1]), 1) for x, y in zip(a, b, strict=True)]
        )

    def plus(a: Sequence[tf.Tensor], factor: tf.Tensor, b: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        shaped = [tf.reshape(factor, [-1] + [1] * (y.shape.rank - 1)) for y in b]
        return [x + f * y for x, f, y in zip(a, shaped, b, strict=True)]

    x, rest = [tf.zeros_like(r) for r in right], list(right)
    direction, square = rest, dot(rest, rest)
    for _ in range(steps):
        image = product(direction)
        curvature = dot(direction, image)
        length = tf.math.divide_no_nan(square, tf.maximum(curvature, 0.0))
        x, rest = plus(x, length, direction), plus(rest, -length, image)
        before, square = square, dot(rest, rest)
        direction = plus(rest, tf.math.divide_no_nan(square, before), direction)
    return x
