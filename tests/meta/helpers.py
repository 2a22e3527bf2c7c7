"""Tasks and networks so small that finite differences can be taken of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.meta.tasks import TaskBatch

WAYS = 3


@keras.saving.register_keras_serializable(package="tests")
class Gate(keras.layers.Layer):
    """A layer that karpa_tf has never heard of."""

    def build(self, shape: Any) -> None:
        self.gate = self.add_weight([shape[-1]], "random_normal", name="gate")

    def call(self, x: Any) -> Any:
        return x * tf.tanh(1.0 + tf.convert_to_tensor(self.gate))


def make_tasks(
    tasks: int = 2, rows: int = WAYS, queries: int = 4, shape: tuple = (5,), seed: int = 0
) -> TaskBatch:
    """Tasks of three classes in float64; rows of a class are together."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(rows) % WAYS)
    return TaskBatch(
        tf.constant(rng.normal(size=(tasks, rows, *shape))),
        tf.constant(np.tile(labels, (tasks, 1)), tf.int32),
        tf.constant(rng.normal(size=(tasks, queries, *shape))),
        tf.constant(rng.integers(0, WAYS, (tasks, queries)), tf.int32),
    )


def make_dense(outputs: int = WAYS, dtype: str = "float64", seed: int = 0) -> keras.Model:
    """A smooth network: rectifiers make the loss after adaptation jump, and finite differences with it."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(4, "tanh", dtype=dtype), keras.layers.Dense(outputs, dtype=dtype)]
    return keras.Sequential([keras.Input([5], dtype=dtype), *layers])


def make_images(dtype: str = "float64", norm: str = "layer") -> keras.Model:
    """A functional model: convolutions, normalizations, a branch, a model in it, a layer of one's own."""
    keras.utils.set_random_seed(1)
    layers, kind = keras.layers, {"dtype": dtype}
    image = x = keras.Input((6, 6, 2), **kind)
    x = layers.Conv2D(3, 3, 2, "same", activation="tanh", **kind)(x)
    x = x + layers.Conv2D(3, 2, padding="same", use_bias=False, **kind)(x)
    if norm == "batch":
        x = layers.BatchNormalization(**kind)(x)
    else:
        x = layers.GroupNormalization(3, **kind)(x)
        x = layers.LayerNormalization(**kind)(x)
    x = Gate(**kind)(x)
    inner = keras.Sequential([keras.Input(x.shape[1:], **kind), layers.Conv2D(2, (2, 3), **kind)])
    x = layers.Flatten(**kind)(layers.AveragePooling2D((2, 1), **kind)(inner(x)))
    return keras.Model(image, layers.Dense(WAYS, **kind)(x))


def weights_of_tasks(model: keras.Model, tasks: int) -> list[np.ndarray]:
    """Returns for each trainable variable values [tasks, *shape] around its own."""
    rng = np.random.default_rng(2)
    return [np.asarray(v) + 0.3 * rng.normal(size=(tasks, *v.shape)) for v in model.trainable_variables]


def assign(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def call_with(model: keras.Model, weights: Any, x: Any) -> tf.Tensor:
    """Keras' own way to call a model with other weights, one task at a time."""
    outputs, _ = model.stateless_call(weights, [v.value for v in model.non_trainable_variables], x)
    return outputs
