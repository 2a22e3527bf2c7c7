"""The inner loop: weights of its own for each task, by gradient steps on its support set, in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from karpa_tf.meta.functional import Functional

# What a class that a task does not have gets for a logit.
_NEVER = -1e9


def task_losses(outputs: tf.Tensor, labels: Any, row_weights: Any = None) -> tf.Tensor:
    """Returns the mean loss of each task [t].

    Args:
        outputs: [t, k, ways] logits, or [t, k, outputs] of a regression.
        labels: int [t, k]: cross entropy; or float [t, k, outputs]: squared error, averaged over the outputs.
        row_weights: float [t, k]; a row of padding has 0. None: all rows count alike.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.is_integer:
        hit = tf.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        losses = -tf.reduce_sum(hit * tf.nn.log_softmax(outputs), -1)
    else:
        losses = tf.reduce_mean(tf.square(outputs - tf.cast(labels, outputs.dtype)), -1)
    if row_weights is None:
        return tf.reduce_mean(losses, 1)
    row_weights = tf.cast(row_weights, losses.dtype)
    return tf.reduce_sum(losses * row_weights, 1) / tf.maximum(tf.reduce_sum(row_weights, 1), 1e-9)


def absent(labels: tf.Tensor, row_weights: tf.Tensor, ways: Any, dtype: Any) -> tf.Tensor:
    """Returns what to add to logits [t, n, ways] so that classes without a row cannot win: [t, 1, ways].

    Args:
        labels: int [t, k].
        row_weights: [t, k].
        ways: outputs of the network.
        dtype: of the logits.
    """
    seen = tf.reduce_max(tf.one_hot(labels, ways) * tf.cast(row_weights > 0, tf.float32)[..., None], 1)
    return tf.cast(_NEVER * (1.0 - seen), dtype)[:, None]


def adapt(
    functional: Functional,
    weights: Sequence[tf.Tensor],
    support: Any,
    labels: Any,
    *,
    steps: Any,
    rates: Sequence[Any],
    row_weights: Any = None,
    first_order: bool = False,
    pull: float = 0.0,
    anchor: Sequence[tf.Tensor] | None = None,
    training: bool = False,
) -> list[tf.Tensor]:
    """Returns each task's weights [t, *shape] after gradient descent on its support set.

    A step is `w - rate * d/dw (L(w) + pull / 2 * |w - anchor|^2)` (Finn et al. 2017,
    https://arxiv.org/abs/1703.03400, section 2.2; with a pull Rajeswaran et al. 2019,
    https://arxiv.org/abs/1909.04630, equation 3). The result can be differentiated by weights and rates.

    Args:
        functional: the model.
        weights: for each of its variables [t, *shape].
        support: [t, k, ...].
        labels: [t, k] or [t, k, outputs]; see `task_losses`.
        steps: an int: so many steps one after the other in the graph, as training wants them; or an int32
            tensor: a loop in the graph.
        rates: for each variable a number, or a tensor of its shape (Meta-SGD, Li et al. 2017,
            https://arxiv.org/abs/1707.09835).
        row_weights: [t, k]; rows of padding have 0, and classes without a row are left out of the softmax.
        first_order: take the gradients of the steps for constants.
        pull: strength of the pull to the anchor.
        anchor: None: the weights given.
        training: as for the model.
    """
    start = list(weights)
    anchor = start if anchor is None else anchor

    def step(weights: list[tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            loss = support_losses(functional, weights, support, labels, row_weights, training)
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        if first_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
        if pull:
            gradients = [g + pull * (w - a) for g, w, a in zip(gradients, weights, anchor, strict=True)]
        return [w - rate * g for w, g, rate in zip(weights, gradients, rates, strict=True)]

    if isinstance(steps, int):
        for _ in range(steps):
            start = step(start)
        return start
    _, adapted = tf.while_loop(
        lambda i, _: i < steps, lambda i, weights: (i + 1, step(list(weights))), (tf.constant(0), start)
    )
    return list(adapted)


def support_losses(
    functional: Functional,
    weights: Sequence[Any],
    support: Any,
    labels: Any,
    row_weights: Any = None,
    training: bool = False,
) -> tf.Tensor:
    """Returns the loss of each task [t] on its support set, as `adapt` lowers it; arguments as there."""
    outputs = functional(weights, support, training)
    if row_weights is not None and labels.dtype.is_integer:
        outputs += absent(labels, row_weights, outputs.shape[-1], outputs.dtype)
    return task_losses(outputs, labels, row_weights)
