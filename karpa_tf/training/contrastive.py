"""Supervised contrastive learning: rows of one label come close to each other, and away from the others."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.training.supervised import SupervisedStep


def supervised_contrastive(labels: tf.Tensor, vectors: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns the supervised contrastive loss of each row of a batch (Khosla et al. 2020, equation 2).

    https://arxiv.org/abs/2004.11362: the mean of -log p over the other rows of its label, where p is the
    softmax, over all other rows, of the products of the vectors by the temperature.

    Args:
        labels: int (n,).
        vectors: float32 (n, width), of length 1.
        temperature: above 0.

    Returns:
        float32 (n,), in nats; 0 for a row that is alone with its label.
    """
    itself = tf.eye(tf.shape(vectors)[0], dtype=tf.bool)
    products = tf.where(itself, -1e9, tf.matmul(vectors, vectors, transpose_b=True) / temperature)
    same = tf.cast((labels[:, None] == labels[None, :]) & ~itself, tf.float32)
    total = tf.reduce_sum(same * tf.nn.log_softmax(products), axis=1)
    return -total / tf.maximum(tf.reduce_sum(same, axis=1), 1.0)


class ContrastiveStep(SupervisedStep):
    """An update of a classifier's encoder by the supervised contrastive loss of its vectors.

    Args:
        model: the classifier, compiled; of its layers those behind the vectors must not be trained.
        vectors: of the same layers, gives vectors float32 (batch, width) of length 1.
        temperature: of the loss, e.g. 0.07.
        accumulate: must be 1.

    Raises:
        UserError: a batch would be cut into parts, whose rows are not compared.
    """

    def __init__(
        self, model: keras.Model, vectors: keras.Model, *, temperature: float = 0.07, accumulate: int = 1
    ) -> None:
        super().__init__(model, accumulate=accumulate)
        if self.parts > 1:
            raise UserError(
                "The contrastive loss compares all rows of a batch: use it with strategy none and accumulate "
                f"1. Received: {self.parts} parts."
            )
        self.vectors = vectors
        self.temperature = temperature

    def loss_and_sums(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        features, labels, weights = batch
        losses = supervised_contrastive(labels, self.vectors(features, training=True), self.temperature)
        loss = tf.reduce_sum(losses * weights)
        return loss, tf.stack([loss, tf.reduce_sum(weights)])
