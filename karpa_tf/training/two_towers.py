"""Training two towers by a sampled softmax whose negatives are the other users' items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.models.two_towers import marked, parts_of
from karpa_tf.training.step import Step

_NEVER = -1e9


def sampled_softmax(
    scores: tf.Tensor, targets: tf.Tensor, log_q: tf.Tensor | None = None, excluded: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns the loss of each target among the targets of the whole batch, as sampled negatives.

    The softmax of scores - log q, where q is how often an item is drawn into a batch (Yi et al. 2019,
    https://doi.org/10.1145/3298689.3346996, equation 4; Bengio & Senécal 2008): without it, items that are
    drawn often are pushed down for being popular. An item that is in the batch several times counts as often:
    so the sum over the batch is that over all items, in expectation and by a factor.

    Args:
        scores: float32 (users, users * t), of each user and the targets of all users.
        targets: int (users, t), the items; 0 is none, and has the loss 0.
        log_q: float32 (items,), by item; None: no correction.
        excluded: bool (users, users * t), what is no negative of a user.

    Returns:
        float32 (users, t), in nats.
    """
    users, count = targets.shape
    flat = tf.reshape(targets, [-1])
    if log_q is not None:
        scores -= tf.gather(log_q, flat)
    scores = tf.where(flat == 0, _NEVER, scores)
    own = tf.gather(scores, tf.reshape(tf.range(users * count), [users, count]), batch_dims=1)
    if excluded is not None:
        scores = tf.where(excluded, _NEVER, scores)
    total = tf.reduce_logsumexp(scores, -1, keepdims=True)
    return tf.where(targets > 0, total - own, 0.0)


def history_batches(
    taken: Sequence[np.ndarray], *, users: int, targets: int, history: int, seed: int, steps_per_epoch: int
) -> Batches:
    """Returns batches in which a part of what a user took is his history, and the rest is to be predicted.

    Args:
        taken: by user the items that he took, int (count,), from 1; a user of fewer than two is left out.
        users: in a batch, drawn anew each time.
        targets: of a user in a batch; drawn more than once where he has fewer.
        history: most items of a history.
        seed: of users, parts and targets, together with the step.
        steps_per_epoch: steps of an epoch.

    Returns:
        Batches of (history int32 (users, history), targets int32 (users, targets)); 0 is padding.
    """

    def cut(rng: np.random.Generator, user: int) -> tuple[np.ndarray, np.ndarray]:
        items = rng.permutation(usable[user])
        # One at least on each side.
        place = min(max(int(len(items) * rng.uniform(0.3, 0.9)), 1), len(items) - 1)
        return items[:place], np.resize(items[place:], targets)

    usable = [np.asarray(items, np.int32) for items in taken if len(items) > 1]
    return _batches(cut, len(usable), (users, history, targets), seed, steps_per_epoch)


def held_out_batches(
    taken: Sequence[np.ndarray], asked: Sequence[np.ndarray], *, users: int, seed: int, steps_per_epoch: int
) -> Batches:
    """Returns such batches of histories as they are, and of items that are to be predicted from them.

    Args:
        taken: by user the items of his history, int (count,), from 1.
        asked: by user other items; a user without any, or without a history, is left out.
        users: in a batch, drawn anew each time.
        seed: of the users, together with the step.
        steps_per_epoch: steps of an epoch.
    """
    usable = [pair for pair in zip(taken, asked, strict=True) if all(map(len, pair))]
    history, targets = (max(len(pair[side]) for pair in usable) for side in (0, 1))
    return _batches(
        lambda rng, user: usable[user], len(usable), (users, history, targets), seed, steps_per_epoch
    )


def _batches(
    parts: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]],
    count: int,
    shape: tuple[int, int, int],
    seed: int,
    steps_per_epoch: int,
) -> Batches:
    """Returns batches of users drawn of `count`, of histories and targets, as wide as `shape` says."""
    users, history, targets = min(shape[0], count), *shape[1:]

    def batch(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, 8, int(step)))
        known, asked = np.zeros((users, history), np.int32), np.zeros((users, targets), np.int32)
        for row, user in enumerate(rng.choice(count, users, replace=False)):
            for to, items in zip((known, asked), parts(rng, user), strict=True):
                to[row, : len(items)] = items[: to.shape[1]]
        return known, asked

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        known, asked = tf.numpy_function(batch, [step], [tf.int32, tf.int32], stateful=False)
        return tf.ensure_shape(known, [users, history]), tf.ensure_shape(asked, [users, targets])

    return Batches(load, steps_per_epoch, users)


def drawing_shares(taken: Sequence[np.ndarray], items: int) -> np.ndarray:
    """Returns how often each item is a target of `history_batches`, float32 (items + 1,), of sum 1.

    Args:
        taken: as there.
        items: how many there are.
    """
    usable = [row for row in taken if len(row) > 1]
    shares = np.zeros(items + 1)
    for row in usable:
        shares[row] += 1 / len(row) / len(usable)
    return shares.astype(np.float32)


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
        scores, candidates = tf.math.top_k(tf.where(excluded, _NEVER, scores), self.retrieved)
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
