"""A Keras model as a function of weights that differ from task to task."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.meta.functional import Functional, groups_have_gradients
from tests.meta.helpers import WAYS, assign, make_dense, make_images, make_tasks, weights_of_tasks

TASKS = 3


def images(tasks: int = TASKS, rows: int = 4) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(tasks, rows, 6, 6, 2))


def one_by_one(model: keras.Model, weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    before = [np.array(v) for v in model.trainable_variables]
    found = []
    for task, inputs in enumerate(x):
        assign(model.trainable_variables, [w[task] for w in weights])
        found.append(np.asarray(model(inputs)))
    assign(model.trainable_variables, before)
    return np.stack(found)


class Subclassed(keras.Model):
    """Neither functional nor Sequential."""

    def __init__(self) -> None:
        super().__init__(dtype="float64")
        self.inner = keras.layers.Dense(WAYS, dtype="float64")
        self.build([None, 6, 6, 2])

    def build(self, shape: Any) -> None:
        self.inner.build([None, 72])
        self.built = True

    def call(self, x: Any) -> Any:
        return self.inner(tf.reshape(x, [-1, 72]))


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("make", "dtype", "portable"),
    [
        (make_images, "float64", False),
        (make_images, "float32", False),
        (make_images, "float32", True),
        (lambda dtype: make_images(dtype, "batch"), "float32", False),
        (lambda dtype: Subclassed(), "float64", False),
    ],
    ids=["float64", "float32", "portable", "batch", "subclassed"],
)
def test_tasks_at_once_are_what_they_are_one_by_one(
    make: Any, dtype: str, portable: bool, known: bool
) -> None:
    model = make(dtype)
    functional = Functional(model, portable=portable)
    weights, x = [w.astype(dtype) for w in weights_of_tasks(model, TASKS)], images().astype(dtype)
    call: Any = functional
    if not known:
        specs = [tf.TensorSpec([None, *w.shape[1:]], dtype) for w in weights]
        spec = tf.TensorSpec([None, None, *x.shape[2:]], dtype)
        call = tf.function(functional, input_signature=[specs, spec], autograph=False)
    found = call([tf.constant(w) for w in weights], tf.constant(x))
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(found, one_by_one(model, weights, x), atol=tolerance, rtol=tolerance)


def test_weights_may_be_those_of_all_tasks_or_the_models_own() -> None:
    model = make_images()
    functional = Functional(model)
    weights, x = weights_of_tasks(model, TASKS), images()
    own = [np.asarray(v) for v in model.trainable_variables]
    for number in range(len(weights)):
        for value in (own[number], None):
            given = [tf.constant(w) for w in weights]
            given[number] = None if value is None else tf.constant(value)
            mixed = list(weights)
            mixed[number] = np.stack([own[number]] * TASKS)
            np.testing.assert_allclose(
                functional(given, tf.constant(x)), one_by_one(model, mixed, x), atol=1e-10
            )
    tiled = functional.tile(TASKS)
    np.testing.assert_allclose(
        functional(tiled, x), one_by_one(model, [np.stack([w] * TASKS) for w in own], x)
    )


def test_gradients_of_gradients_are_right_in_float32_too() -> None:
    """Where it is there, the convolution in groups is what trains."""
    found = {}
    values = weights_of_tasks(make_images(), TASKS)
    for dtype, portable in (("float64", True), ("float32", False), ("float32", True)):
        functional = Functional(make_images(dtype), portable=portable)
        weights = [tf.constant(w, dtype) for w in values]
        with tf.GradientTape() as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(weights)
                loss = tf.reduce_sum(tf.square(functional(weights, tf.constant(images(), dtype))))
            square = tf.add_n([tf.reduce_sum(tf.square(g)) for g in inner.gradient(loss, weights)])
        found[dtype, portable] = outer.gradient(square, weights)
    exact = found["float64", True]
    for way in (("float32", False), ("float32", True)):
        for a, b in zip(exact, found[way], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4 * float(tf.norm(a)))
    assert isinstance(groups_have_gradients(), bool)


def test_batch_normalization_looks_at_no_other_example_unless_it_is_transductive() -> None:
    model = make_images(norm="batch")
    x = tf.constant(images())
    for transductive in (False, True):
        functional = Functional(model, transductive=transductive)
        weights = functional.tile(TASKS)
        every, some = functional(weights, x, True), functional(weights, x[:, :2], True)
        assert np.allclose(every[:, :2], some, atol=1e-10) != transductive
    # A set's own statistics are those that Keras takes in training, of a task by itself.
    for task in range(TASKS):
        np.testing.assert_allclose(every[task], model(x[task], training=True), atol=1e-8)


def test_a_call_changes_no_variable_and_makes_no_layer() -> None:
    model = make_images(norm="batch")
    before, layers = [np.array(v) for v in model.variables], list(model.layers)
    functional = Functional(model)
    functional(functional.tile(TASKS), images(), True)
    assert model.layers == layers
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_prints_in_a_line() -> None:
    assert repr(Functional(make_dense())).startswith("Functional(model=sequential")
    assert make_tasks().support.shape == (2, WAYS, 5)
