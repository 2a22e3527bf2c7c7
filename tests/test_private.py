"""The private parts of Keras behind `karpa_tf.private`: one test each, which fails when a part moves.

Those of legacy Keras and TF-Agents are tested in tests/rl/legacy.py, in a process with legacy Keras.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf import private


def make_model() -> keras.Model:
    inner = keras.Sequential(
        [keras.layers.Dense(3, name="first"), keras.layers.BatchNormalization(name="norm")]
    )
    return keras.Sequential([keras.Input([2]), inner, keras.layers.Dropout(0.5), keras.layers.Dense(1)])


def step(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable, gradient: list[float]
) -> np.ndarray:
    if not optimizer.built:
        optimizer.build([variable])
    optimizer.apply([tf.constant(gradient)], [variable])
    return variable.numpy()


def test_inner_layers_are_found_at_every_depth() -> None:
    model = make_model()
    names = [layer.name for layer in private.inner_layers(model)]
    assert {"first", "norm"} < set(names) and model.name not in names and len(names) == len(set(names))


def test_statistics_are_the_moving_averages_and_no_seed() -> None:
    model = make_model()
    norm = model.layers[0].get_layer("norm")
    assert len(model.non_trainable_variables) == 3  # the third is the dropout's seed
    found = private.statistics(model)
    assert [id(v) for v in found] == [id(norm.moving_mean), id(norm.moving_variance)]


def test_the_kernel_is_what_the_file_holds() -> None:
    layer = keras.layers.Dense(3, dtype="mixed_bfloat16")
    layer.build([None, 2])
    layer.enable_lora(1)
    layer.lora_kernel_b.assign(tf.ones_like(layer.lora_kernel_b))
    assert private.kernel(layer).dtype == "float32" and private.kernel(layer).shape == (2, 3)
    # Keras' own has the adapters in it.
    assert np.abs(np.asarray(layer.kernel, np.float32) - private.kernel(layer).numpy()).max() > 1e-3


def test_a_graph_of_layers_runs_with_something_else_in_the_place_of_each() -> None:
    model = make_model()
    x = tf.ones([2, 2])
    seen: list[str] = []

    def doubled(layer: keras.layers.Layer) -> Callable[..., tf.Tensor]:
        seen.append(layer.name)
        return lambda *args, **kwargs: 2.0 * layer(*args, **kwargs)

    found = private.run_graph(private.graph_of(model), x, doubled)
    assert seen == [layer.name for layer in model.layers]
    np.testing.assert_allclose(found, 2.0 * model.layers[2](4.0 * model.layers[0](x)), rtol=1e-5)
    functional = keras.Model(model.inputs, model.outputs)
    assert private.graph_of(functional) is functional

    class Own(keras.Model):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x

    assert private.graph_of(Own()) is None and private.graph_of(keras.layers.Dense(1)) is None


def test_a_mask_is_seen_on_the_output_that_carries_it() -> None:
    ids = tf.constant([[1, 0]])
    assert private.has_mask(keras.layers.Embedding(3, 2, mask_zero=True)(ids))
    assert not private.has_mask(keras.layers.Embedding(3, 2)(ids))


def test_metrics_given_to_compile_are_seen() -> None:
    model = make_model()
    model.compile("sgd", "mse")
    assert not private.has_compiled_metrics(model)
    model.compile("sgd", "mse", metrics=["mae"])
    assert private.has_compiled_metrics(model)


# --- Optimizers -----------------------------------------------------------------------------------


def test_the_strategy_is_that_of_the_scope() -> None:
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        optimizer = keras.optimizers.SGD()
    assert private.strategy_of(optimizer) is strategy
    assert private.strategy_of(keras.optimizers.SGD()) is tf.distribute.get_strategy()


def test_gradients_are_taken_as_they_come(monkeypatch) -> None:
    def refuse(*_) -> None:
        raise AssertionError("Keras sums the gradients")

    variable = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(0.5)
    monkeypatch.setattr(keras.optimizers.SGD, "_all_reduce_sum_gradients", refuse)
    with pytest.raises(AssertionError, match="Keras sums"):
        step(optimizer, variable, [1.0, 1.0])
    private.take_gradients_as_sums(optimizer)
    np.testing.assert_array_equal(step(optimizer, variable, [1.0, 1.0]), [0.5, 1.5])


def test_variables_of_an_optimizer_have_their_places() -> None:
    variables = [keras.Variable([float(i)], name=f"v{i}") for i in range(3)]
    optimizer = keras.optimizers.Adam()
    optimizer.build(variables)
    assert [private.index_of(optimizer, v) for v in reversed(variables)] == [2, 1, 0]
    # `update_step` gets TensorFlow's variable.
    assert private.index_of(optimizer, variables[1].value) == 1
    assert [id(v) for v in private.trained_variables(optimizer)] == [id(v) for v in variables]


def test_moments_are_those_of_adam() -> None:
    variable, optimizer = keras.Variable([1.0]), keras.optimizers.AdamW(beta_1=0.9, beta_2=0.99)
    step(optimizer, variable, [2.0])
    first, second = private.moments(optimizer, 0)
    np.testing.assert_allclose([first.numpy()[0], second.numpy()[0]], [0.1 * 2, 0.01 * 4], rtol=1e-6)


def test_variables_left_out_of_the_decay_do_not_decay() -> None:
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([kernel, bias])
    assert private.decays(optimizer, kernel) and not private.decays(optimizer, bias)


class Halved(private.OptimizerHooks, keras.optimizers.SGD):
    def clip_by_global_norm(self, gradients):
        return [gradient / 2 for gradient in gradients]


def test_an_optimizer_decays_by_itself() -> None:
    optimizer = Halved(0.5, weight_decay=0.1)
    np.testing.assert_array_equal(step(optimizer, keras.Variable([1.0]), [0.0]), [1.0])


@pytest.mark.parametrize(
    ("clip", "moved"), [({}, 8.0), ({"global_clipnorm": 1.0}, 4.0), ({"clipvalue": 3.0}, 3.0)]
)
def test_an_optimizer_clips_the_global_norm_by_itself_and_the_rest_as_keras_does(clip, moved) -> None:
    np.testing.assert_array_equal(step(Halved(1.0, **clip), keras.Variable([0.0]), [8.0]), [-moved])
