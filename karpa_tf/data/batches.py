"""Batches that can be rebuilt from their number: the piece that resume, seeds and workers rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine


@dataclass(frozen=True, repr=False)
class Batches(InALine):
    """Training or validation data as a function of the step.

    A run that is killed goes on with the batch it would have seen, and every worker reads its own part
    of the same global batch, because nothing but the step decides what is in a batch.

    Attributes:
        load: `(step, part, parts)` to the `part`-th of `parts` equal slices of global batch `step`, as
            `(features, labels, sample_weights)`. `step` is an int64 scalar tensor, the others are
            Python integers; it runs in tf.data's graph.
        steps_per_epoch: steps in one pass over the data.
        batch_size: rows of a global batch.
    """

    load: Callable[[tf.Tensor, int, int], Any]
    steps_per_epoch: int
    batch_size: int

    def dataset(
        self, start: int = 0, stop: int | None = None, *, part: int = 0, parts: int = 1
    ) -> tf.data.Dataset:
        """Returns batches `start` to `stop` (one epoch by default) as a `tf.data.Dataset`.

        Args:
            start: first step.
            stop: step after the last one; `epochs * steps_per_epoch` for several epochs.
            part: which slice of each global batch, for one worker of several.
            parts: how many slices.

        Raises:
            ValueError: the batch cannot be cut into that many equal slices.
        """
        if self.batch_size % parts:
            raise ValueError(
                f"A batch must divide evenly among the workers. Received: batch_size="
                f"{self.batch_size}, workers={parts}."
            )
        stop = start + self.steps_per_epoch if stop is None else stop
        steps = tf.data.Dataset.range(start * parts, stop * parts).shard(parts, part)
        return steps.map(
            lambda index: self.load(index // parts, part, parts),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        ).prefetch(tf.data.AUTOTUNE)


@dataclass(frozen=True, repr=False)
class _Streamed(Batches):
    """A `tf.data.Dataset` in the place of batches: read from its start, on one worker."""

    source: Any = None

    def dataset(
        self, start: int = 0, stop: int | None = None, *, part: int = 0, parts: int = 1
    ) -> tf.data.Dataset:
        stop = start + self.steps_per_epoch if stop is None else stop
        skipped = start % self.steps_per_epoch
        return self.source.repeat().skip(skipped).take(stop - start).prefetch(tf.data.AUTOTUNE)


def from_dataset(dataset: tf.data.Dataset) -> Batches:
    """Returns a dataset of batches as `Batches`, of which one worker can read one epoch after the other.

    Args:
        dataset: of (features, labels), or (features, labels, sample weights).

    Raises:
        UserError: it does not say how many batches it has, or holds something else.
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise UserError(
            "A tf.data.Dataset to train on holds batches of (features, labels), or (features, labels, "
            f"sample weights). Received: {spec}."
        )
    steps = int(dataset.cardinality())
    if steps <= 0:
        raise UserError(
            "A tf.data.Dataset to train on must say how many batches it has: "
            f"dataset.apply(tf.data.experimental.assert_cardinality(n)). Received: {steps}."
        )

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        raise UserError("A tf.data.Dataset has no batch of a number; make Batches.")

    return _Streamed(load, steps, 1, source=dataset)


def array_batches(features: Any, labels: Any, *, batch_size: int, seed: int | None = None) -> Batches:
    """Returns batches of arrays that lie in memory.

    Args:
        features: an array (rows, ...), or a dict or tuple of them, as the model takes it.
        labels: the same, as the loss takes it.
        batch_size: rows of a batch; the last one of an epoch is filled up with rows of weight 0.
        seed: of the shuffling, anew each epoch; None: in their order.

    Raises:
        UserError: they are no arrays, have no rows or not as many each, or the batch size makes no sense.
    """
    data = _as_tensors(features), _as_tensors(labels)
    sizes = [array.shape[0] if array.shape.rank else None for array in tf.nest.flatten(data)]
    if None in sizes or len(set(sizes)) > 1 or not sizes[0]:
        raise UserError(f"Arrays to make batches of have as many rows each, one at least. Received: {sizes}.")
    order = EpochOrder(sizes[0], batch_size, seed=seed or 0, shuffle=seed is not None)

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        rows = tf.numpy_function(lambda n: order.rows(int(n)), [step], tf.int64, stateful=False)
        rows = slice_part(tf.ensure_shape(rows, [batch_size]), part, parts)
        features, labels = tf.nest.map_structure(lambda x: tf.gather(x, tf.maximum(rows, 0)), data)
        return features, labels, tf.cast(rows >= 0, tf.float32)

    return Batches(load, order.steps_per_epoch, batch_size)


def paired_batches(batches: Batches, others: Batches, share: float) -> Batches:
    """Returns batches that have the rows of two: an epoch is one of the first, beside which the others come.

    Args:
        batches: of (features, labels, sample weights).
        others: the same; batch n of both are joined.
        share: of the loss that the others' rows have together, where both batches are full.
    """
    size = batches.batch_size + others.batch_size
    factors = (1 - share) * size / batches.batch_size, share * size / others.batch_size

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        both = [source.load(step, part, parts) for source in (batches, others)]
        both = [(*rest, weights * factor) for (*rest, weights), factor in zip(both, factors, strict=True)]
        return tf.nest.map_structure(lambda *pair: tf.concat(pair, 0), *both)

    return Batches(load, batches.steps_per_epoch, size)


def _as_tensors(arrays: Any) -> Any:
    """Returns an array, or a dict or tuple of them, as tensors; a list is an array."""
    if isinstance(arrays, Mapping):
        return {name: _as_tensors(array) for name, array in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(map(_as_tensors, arrays))
    try:
        return tf.constant(np.asarray(arrays))
    except (TypeError, ValueError) as error:
        raise UserError(f"Batches are made of arrays of numbers or strings: {str(error)[:150]}.") from None


def _check_batch_size(batch_size: Any) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size must be a whole number of at least 1. Received: {batch_size!r}.")


def mixed_batches(parts: Sequence[Batches], *, temperature: float = 1.0, seed: int = 0) -> Batches:
    """Returns batches of several sets of data, each batch of one of them.

    A set of b_i batches has the share b_i^(1/T) / sum_j b_j^(1/T) of an epoch, in an order made of the seed
    and the epoch alone: with T = 1 each is gone through once, with a high T all have the same share
    (Arivazhagan et al. 2019, https://arxiv.org/abs/1907.05019). The next batch of a set is always the one
    behind its last.

    Args:
        parts: the sets, of batches of one size and structure.
        temperature: T, above 0.
        seed: of the order.
    """
    if len(parts) == 1:
        return parts[0]
    sizes = np.array([part.steps_per_epoch for part in parts], np.float64)
    shares = sizes ** (1.0 / temperature)
    counts = np.maximum(1, np.round(sizes.sum() * shares / shares.sum())).astype(int)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.random.default_rng((seed, 7, epoch)).permutation(np.repeat(np.arange(len(parts)), counts))
        numbers = np.zeros(len(drawn), np.int64)
        for number, count in enumerate(counts):
            numbers[drawn == number] = epoch * count + np.arange(count)
        return drawn, numbers

    def place(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epoch, index = divmod(int(step), int(counts.sum()))
        drawn, numbers = order(epoch)
        return drawn[index].astype(np.int32), numbers[index]

    def load(step: tf.Tensor, part: int, of: int) -> Any:
        drawn, number = tf.numpy_function(place, [step], [tf.int32, tf.int64], stateful=False)
        number = tf.ensure_shape(number, [])
        each = [partial(one.load, number, part, of) for one in parts]
        return tf.switch_case(tf.ensure_shape(drawn, []), each)

    return Batches(load, int(counts.sum()), parts[0].batch_size)


class EpochOrder:
    """The order of the examples: a new permutation each epoch, made of the seed and the epoch alone.

    The last batch of an epoch is filled up with -1, so that every batch has the same shape.
    """

    def __init__(self, examples: int, batch_size: int, *, seed: int, shuffle: bool) -> None:
        _check_batch_size(batch_size)
        self.batch_size = batch_size
        self.steps_per_epoch = -(-examples // batch_size)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            rows = np.arange(examples)
            if shuffle:
                rows = np.random.default_rng((seed, epoch)).permutation(examples)
            fill = self.steps_per_epoch * batch_size - examples
            return np.concatenate([rows, np.full(fill, -1)])

        self._order = order

    def rows(self, step: int) -> np.ndarray:
        """int64 (batch_size,): the examples of global batch `step`; -1 where there is none."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]


def slice_part(rows: Any, part: int, parts: int) -> Any:
    """Returns the `part`-th of `parts` equal slices of a batch."""
    size = rows.shape[0] // parts
    return rows[part * size : (part + 1) * size]


def bucket_widths(lengths: np.ndarray, buckets: int) -> list[int]:
    """Returns at most `buckets` widths, rising, that pad rows of these lengths the least in all.

    Args:
        lengths: int (rows,).
        buckets: how many widths; a training step is traced once for each.
    """
    values, counts = np.unique(lengths, return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    # cost[i]: least padded size of the first i lengths with the buckets so far; cut[b][i]: where the last
    # bucket begins.
    cost = np.concatenate([[0.0], np.full(len(values), np.inf)])
    cuts = []
    for _ in range(min(buckets, len(values))):
        total = cost[:, None] + np.where(
            np.arange(len(rows))[:, None] < np.arange(len(rows))[None, :],
            (rows[None, :] - rows[:, None]) * np.concatenate([[0], values])[None, :],
            np.inf,
        )
        total[0, 0] = 0.0
        cuts.append(total.argmin(axis=0))
        cost = total.min(axis=0)
    widths = []
    end = len(values)
    for cut in reversed(cuts):
        if end == 0:
            break
        widths.append(int(values[end - 1]))
        end = int(cut[end])
    return widths[::-1]


class LengthOrder:
    """The order of rows of many lengths: batches of like lengths, so that little is padding.

    Training shuffles anew each epoch, made of the seed and the epoch alone: within a bucket of lengths, and
    the batches among each other. What is left of a bucket goes into the next wider one; one batch of an
    epoch is filled up with -1. Without a seed, the rows are sorted by length.

    Args:
        lengths: int (rows,).
        batch_size: rows in a batch.
        widths: of the buckets, rising; the last holds the longest row.
        seed: of the shuffling; None: sorted, and a batch is as wide as its longest row.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, widths: list[int], seed: int | None = None
    ) -> None:
        _check_batch_size(batch_size)
        self.steps_per_epoch = -(-len(lengths) // batch_size)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((seed or 0, 2, epoch))
            bucket = np.searchsorted(widths, lengths)
            batches: list[np.ndarray] = []
            batch_widths: list[int] = []
            left = np.zeros(0, np.int64)
            for number, width in enumerate(widths):
                rows = np.concatenate([left, rng.permutation(np.flatnonzero(bucket == number))])
                full = len(rows) // batch_size
                if number == len(widths) - 1:
                    full = -(-len(rows) // batch_size)
                    rows = np.concatenate([rows, np.full(full * batch_size - len(rows), -1)])
                batches += list(rows[: full * batch_size].reshape(full, batch_size))
                batch_widths += [width] * full
                left = rows[full * batch_size :]
            shuffled = rng.permutation(len(batches))
            return np.stack(batches)[shuffled], np.array(batch_widths)[shuffled]

        def sorted_by_length(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rows = np.argsort(lengths, kind="stable")
            rows = np.concatenate([rows, np.full(self.steps_per_epoch * batch_size - len(rows), -1)])
            rows = rows.reshape(-1, batch_size)
            return rows, np.where(rows < 0, 0, lengths[rows]).max(axis=1)

        self._order = order if seed is not None else lru_cache(maxsize=1)(sorted_by_length)

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Returns the rows int64 (batch_size,) of global batch `step`, -1 where none is, and its width."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rows, widths = self._order(epoch)
        return rows[index], int(widths[index])


class BalancedOrder:
    """The order of rows in class-balanced batches: two rows each of half as many classes as a batch has rows.

    All classes come in turn, and so do the rows of a class; those of one that has fewer come again. An epoch
    is made of the seed and its number alone.

    Args:
        labels: int (rows,).
        lengths: int (rows,).
        batch_size: rows in a batch; with few classes there are more rows of each.
        widths: that batches may have, rising; the last holds the longest row.
        seed: of the order.
        least: rows that an epoch has at least, however few there are.
    """

    def __init__(
        self,
        labels: np.ndarray,
        lengths: np.ndarray,
        batch_size: int,
        widths: list[int],
        seed: int,
        least: int = 0,
    ) -> None:
        _check_batch_size(batch_size)
        self.steps_per_epoch = -(-max(len(labels), least) // batch_size)
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        together = max(1, min(len(classes), batch_size // 2))

        @lru_cache(maxsize=2)
        def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((seed, 6, epoch))
            turns = _in_turn(rng, np.arange(len(classes)), self.steps_per_epoch * together)
            # The places of a batch by class: equal shares, and one more for the first ones.
            shares = np.bincount(np.arange(batch_size) % together, minlength=together)
            places = np.repeat(turns.reshape(-1, together), shares, axis=1)
            rows = np.zeros_like(places)
            for number, members in enumerate(classes):
                mine = places == number
                rows[mine] = _in_turn(rng, members, int(mine.sum()))
            return rows, np.array(widths)[np.searchsorted(widths, lengths[rows].max(axis=1))]

        self._order = order

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Returns the rows int64 (batch_size,) of global batch `step`, and its width."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rows, widths = self._order(epoch)
        return rows[index], int(widths[index])


def _in_turn(rng: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    """Returns so many values: all of them in some order, then in another one, and so on."""
    rounds = [rng.permutation(values) for _ in range(-(-count // len(values)))]
    return np.concatenate([*rounds, values[:0]])[:count]
