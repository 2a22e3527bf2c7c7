"""Small data, models and readers that several tests of training use."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches, EpochOrder, slice_part
from karpa_tf.training.optimizers import SGD, AdamW
from karpa_tf.training.schedule import WarmupThenDecay

WORDS, USED = 40, 12


def make_batches(seed: int | None = 0, batch_size: int = 8) -> Batches:
    """Rows of 6 ids; the label of a place is the id before it; random weights of 0 and 1."""
    rng = np.random.default_rng(7)
    rows = rng.integers(0, 10, (45, 6)).astype(np.int32)
    labels = np.roll(rows, 1, axis=1)
    weights = rng.integers(0, 2, rows.shape).astype(np.float32)
    order = EpochOrder(len(rows), batch_size, seed=seed or 0, shuffle=seed is not None)

    def read(step):
        index = order.rows(int(step))
        return rows[index], labels[index], weights[index] * (index >= 0)[:, None].astype(np.float32)

    def load(step, part, parts):
        batch = tf.numpy_function(read, [step], [tf.int32, tf.int32, tf.float32])
        batch = [tf.ensure_shape(x, [batch_size, 6]) for x in batch]
        return tuple(slice_part(x, part, parts) for x in batch)

    return Batches(load, order.steps_per_epoch, batch_size)


def make_model(seed: int = 1, dropout: float = 0.0, learning_rate: float = 0.01, steps: int = 100):
    keras.utils.clear_session()  # the same names of layers each time
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(10, 8)(inputs)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.GRU(8, return_sequences=True)(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(AdamW(WarmupThenDecay(learning_rate, steps), global_clipnorm=1.0), loss)
    return model


def assert_same_weights(one, other, exact: bool = True) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, atol=2e-6)


def read_events(folder: Path) -> dict[tuple[str, str, int], list[bytes]]:
    from tensorflow.core.util import event_pb2

    events: dict[tuple[str, str, int], list[bytes]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                # What holds times.
                if "speed/" not in value.tag and not value.tag.startswith(("_hparams_", "status")):
                    key = (path.parent.name, value.tag, event.step)
                    events.setdefault(key, []).append(value.tensor.SerializeToString())
    return events


def make_wide_batches(widths=(3, 5, 3, 8), batch_size: int = 4) -> Batches:
    """Batches as wide as said; of `WORDS` ids the first `USED` occur, and not all in a batch."""

    def read(step):
        rng = np.random.default_rng((11, int(step) % len(widths)))
        rows = rng.integers(0, USED, (batch_size, widths[int(step) % len(widths)])).astype(np.int32)
        weights = rng.integers(0, 2, rows.shape).astype(np.float32)
        return rows, (rows + 1) % WORDS, weights

    def load(step, part, parts):
        batch = tf.numpy_function(read, [step], [tf.int32, tf.int32, tf.float32])
        batch = [tf.ensure_shape(x, [batch_size, None]) for x in batch]
        return tuple(slice_part(x, part, parts) for x in batch)

    return Batches(load, len(widths), batch_size)


def make_wide_model(optimizer=None) -> keras.Model:
    """A model with an optimizer that is lazy, if none is given."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input([None], dtype="int32")
    x = keras.layers.Embedding(WORDS, 4, "random_normal", name="embedding")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(WORDS, name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    optimizer = optimizer or AdamW(0.05, weight_decay=0.1, global_clipnorm=1.0, lazy=True)
    model.compile(optimizer, loss)
    return model


def make_lookahead() -> SGD:
    """Gradient descent whose weights meet the slow ones after five of the eight steps and after the last."""
    return SGD(0.3, 0.8, lookahead=8)


class StopAt(keras.callbacks.Callback):
    """A Ctrl-C at a step of the run."""

    clock = 0

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.clock == self.step:
            signal.raise_signal(signal.SIGINT)
