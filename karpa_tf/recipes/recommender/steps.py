"""Updates of the towers, and of the re-ranker behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.models.two_towers import marked, parts_of
from karpa_tf.training.step import Step
from karpa_tf.training.two_towers import NEVER, sampled_softmax


class TwoTowerStep(Step):
    """An update of both towers; a batch is one of `history_batches`.

    Args:
        item_tower: see `karpa_tf.models.build_item_tower`.
        user_tower: see `karpa_tf.models.build_user_tower`.
        model: of both and of what else the run trains, which a checkpoint holds.
        optimizer: of Keras; it is built here.
        words: int32 (items + 1, most), of each item; row 0 is of none.
        log_q: float32 (items + 1,), see `sampled_softmax`; None: no correction.
    """

    model: keras.Model

    def __init__(
        self,
        item_tower: keras.Model,
        user_tower: keras.Model,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        words: np.ndarray,
        log_q: np.ndarray | None,
    ) -> None:
        super().__init__()
        self.item_tower, self.user_tower, self.model = item_tower, user_tower, model
        self.optimizer = model.optimizer = optimizer
        self.words, self.log_q = tf.constant(words), None if log_q is None else tf.constant(log_q)
        self._trained = [*item_tower.trainable_variables, *user_tower.trainable_variables]
        optimizer.build(self._trained)

    @property
    def variables(self) -> Sequence[Any]:
        """The model's variables and the optimizer's."""
        return [*self.model.variables, *self.optimizer.variables]

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        """Makes one update.

        Args:
            batch: history int32 (users, history) and targets int32 (users, t).

        Returns:
            `loss`, the mean over the targets; and how many these are.
        """
        history, targets = batch
        # Each item once: what it costs follows from the items of the batch, and not from all that there are.
        ids, places = tf.unique(tf.concat([tf.reshape(history, [-1]), tf.reshape(targets, [-1])], 0))
        past, asked = tf.split(
            places, [history.shape[0] * history.shape[1], targets.shape[0] * targets.shape[1]]
        )
        weight = tf.reduce_sum(tf.cast(targets > 0, tf.float32))
        with tf.GradientTape() as tape:
            liked, bias, said = parts_of(self.item_tower([ids, tf.gather(self.words, ids)], training=True))
            vectors = tf.gather(said, tf.reshape(past, history.shape))
            users = self.user_tower([vectors, tf.cast(history > 0, tf.float32)], training=True)
            scores = tf.matmul(users, tf.gather(liked, asked), transpose_b=True) + tf.gather(bias, asked)
            known = marked(tf.reshape(past, history.shape), tf.size(ids))
            losses = sampled_softmax(scores, targets, self.log_q, tf.gather(known, asked, axis=1))
            loss = tf.reduce_sum(losses)
            mean = loss / weight
        gradients = tape.gradient(mean, [v.value for v in self._trained])
        self.apply_gradients(loss, (self.optimizer, gradients, self._trained))
        return {"loss": loss}, weight


class RerankStep(Step):
    """An update of the re-ranker on the items that the towers would hand to it; the towers stay as they are.

    A batch is one of `held_out_batches`, of targets that the towers have not learned from: of those that they
    have, their scores are too good. The loss of a user is the cross-entropy of the softmax over his
    candidates and the share of each of the targets among them (ListNet's top-one probabilities, Cao et al.
    2007, section 4.2).

    Args:
        item_tower: see `TwoTowerStep`, also for the following.
        user_tower: gives the user's vector.
        reranker: see `karpa_tf.models.build_reranker`.
        model: of all parts.
        optimizer: of Keras; it is built here.
        words: int32 (items + 1, most).
        ids: int32 (items + 1,), in the item tower; 0 is none.
        retrieved: candidates of a user.
    """

    model: keras.Model

    def __init__(
        self,
        item_tower: keras.Model,
        user_tower: keras.Model,
        reranker: keras.Model,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        words: np.ndarray,
        ids: np.ndarray,
        retrieved: int,
    ) -> None:
        super().__init__()
        self.item_tower, self.user_tower, self.reranker, self.model = item_tower, user_tower, reranker, model
        self.optimizer = model.optimizer = optimizer
        self.items = [tf.constant(ids), tf.constant(words)]
        self.retrieved = min(retrieved, len(ids) - 1)
        self.vectors = tf.Variable(tf.zeros([len(ids), item_tower.output.shape[-1]]), trainable=False)
        optimizer.build(reranker.trainable_variables)

    @property
    def variables(self) -> Sequence[Any]:
        """The model's variables and the optimizer's."""
        return [*self.model.variables, *self.optimizer.variables]

    def begin(self) -> None:
        """Computes the items' vectors, which are the same in all updates."""
        self.vectors.assign(self.item_tower(self.items, training=False))

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        """Makes one update.

        Args:
            batch: history int32 (users, history) and targets int32 (users, t).

        Returns:
            `loss`, the mean over the users who have a target among the candidates; and how many these are.
        """
        history, targets = batch
        there = tf.cast(history > 0, tf.float32)
        liked, bias, said = parts_of(self.vectors)
        past = tf.gather(said, history)
        scores = tf.matmul(self.user_tower([past, there], training=False), liked, transpose_b=True) + bias
        # What is in the history is no candidate, and row 0 is none.
        count = tf.shape(scores)[1]
        excluded = marked(history, count) | (tf.range(count) == 0)
        scores, candidates = tf.math.top_k(tf.where(excluded, NEVER, scores), self.retrieved)
        right = tf.cast(tf.gather(marked(targets, count), candidates, batch_dims=1), tf.float32)
        share = right / tf.maximum(tf.reduce_sum(right, -1, keepdims=True), 1.0)
        number = tf.reduce_sum(tf.reduce_max(right, -1))
        trained = self.reranker.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.reranker([history, candidates, scores], training=True)
            loss = -tf.reduce_sum(share * tf.nn.log_softmax(logits))
            mean = loss / tf.maximum(number, 1.0)
        gradients = tape.gradient(mean, [v.value for v in trained])
        self.apply_gradients(loss, (self.optimizer, gradients, trained))
        return {"loss": loss}, number
