"""What meta-learning has to beat: the same network, pretrained in the ordinary way and fine-tuned."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.meta.classes import ClassTasks
from karpa_tf.meta.tasks import Tasks, task_batches
from karpa_tf.training.fitting import fit


def pretrain(
    body: keras.Model,
    tasks: Tasks,
    *,
    steps: int,
    seed: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
) -> keras.Model:
    """Trains a network as an ordinary classifier of all training classes; or as a regression over all tasks.

    Args:
        body: the network without its head, whose features (n, d) a new head gets; of a regression the whole
            network. It is trained.
        tasks: those of the training split.
        steps: updates by Adam.
        seed: of the batches.
        batch_size: examples of a batch.
        learning_rate: at the start; it falls to 0 along a cosine.

    Returns:
        The network to fine-tune on a task. Of a classifier its head is one for the ways of a task, with
        weights of 0: that for all training classes has no use any more.
    """
    if isinstance(tasks, ClassTasks):
        outputs: Any = keras.layers.Dense(len(tasks.classes))(body.output)
        model, batches = keras.Model(body.input, outputs), _class_batches(tasks, batch_size, seed, steps)
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        model, batches, loss = body, _examples(tasks, batch_size, seed, steps), "mse"
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate), loss)
    fit(model, batches)
    return with_new_head(body, tasks)


def with_new_head(body: keras.Model, tasks: Tasks) -> keras.Model:
    """Returns the network to fine-tune on a task: see `pretrain`.

    Args:
        body: as there.
        tasks: as there.
    """
    if not tasks.ways:
        return body
    head = keras.layers.Dense(tasks.ways, kernel_initializer="zeros", name="new_head")
    return keras.Model(body.input, head(body.output))


def _class_batches(tasks: ClassTasks, batch_size: int, seed: int, steps: int) -> Batches:
    """Returns batches (examples, classes) of rows drawn from all."""

    def draw(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.random.default_rng((seed, 5, int(step))).integers(len(tasks.places), size=batch_size)
        return tasks.floats(rows), tasks.places[rows]

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        examples, classes = tf.numpy_function(draw, [step], [tf.float32, tf.int64], stateful=False)
        return tf.ensure_shape(examples, [batch_size, *tasks.shape]), tf.ensure_shape(classes, [batch_size])

    return Batches(load, steps, batch_size)


def _examples(tasks: Tasks, batch_size: int, seed: int, steps: int) -> Batches:
    """Returns batches (examples, labels) of a task each row."""
    batches = task_batches(tasks, meta_batch=batch_size, shots=1, queries=1, seed=seed, steps_per_epoch=steps)

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        batch = batches.load(step, part, parts)
        return batch.support[:, 0], batch.support_labels[:, 0]

    return Batches(load, steps, batch_size)
