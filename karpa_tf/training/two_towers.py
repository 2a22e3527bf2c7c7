"""What two towers learn from: batches of histories, and a softmax over the items of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches

# A score of what cannot be.
NEVER = -1e9


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
    scores = tf.where(flat == 0, NEVER, scores)
    own = tf.gather(scores, tf.reshape(tf.range(users * count), [users, count]), batch_dims=1)
    if excluded is not None:
        scores = tf.where(excluded, NEVER, scores)
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
