"""Several losses of one model, each over its own rows."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.batches import Batches, array_batches, mixed_batches
from karpa_tf.models.bert_multi_task import Uncertainty
from karpa_tf.training.fitting import fit
from karpa_tf.training.loop import Diverged, Stage, train
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.multi_task import MultiTaskStep

FEATURES = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS = {"a": np.array([0, 1, 2, 0, 1, 2], np.int32), "b": np.array([0, 1, 1, 0, 0, 1], np.int32)}


def make_step(uncertainty: bool = False, frozen: bool = False, rate: float = 0.1, **more) -> MultiTaskStep:
    """Two heads, of 3 and 2 classes, on a dense layer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([3])
    x = keras.layers.Dense(4, "tanh", name="encoder")(inputs)
    outputs = {name: keras.layers.Dense(n, name=f"{name}_logits")(x) for name, n in (("a", 3), ("b", 2))}
    if uncertainty:
        outputs = Uncertainty(name="uncertainty")(outputs)
    model = keras.Model(inputs, outputs)
    for layer in model.layers:
        layer.trainable = not frozen or layer.name == "uncertainty"
    model.compile(keras.optimizers.SGD(rate), SparseCrossEntropy())
    learned = model.get_layer("uncertainty").log_variances if uncertainty else {}
    return MultiTaskStep(model, log_variances=learned, **more)


def batch(a: list[float], b: list[float]) -> tuple:
    """The six rows with weights of each task."""
    weights = {"a": np.array(a, np.float32), "b": np.array(b, np.float32)}
    return tf.nest.map_structure(tf.constant, (FEATURES, LABELS, weights))


def losses_of(step: MultiTaskStep, task: str) -> np.ndarray:
    outputs = step.model(FEATURES)[task]
    return keras.losses.sparse_categorical_crossentropy(LABELS[task], outputs, from_logits=True).numpy()


def test_a_loss_is_the_mean_over_its_own_rows() -> None:
    step = make_step()
    a, b = losses_of(step, "a")[:2], losses_of(step, "b")[2:]
    figures = step(batch([1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]))
    assert figures["a_loss"] == pytest.approx(a.mean(), rel=1e-5)
    assert figures["b_loss"] == pytest.approx(b.mean(), rel=1e-5)
    assert figures["loss"] == pytest.approx(a.mean() + b.mean(), rel=1e-5)
    step = make_step(weights={"b": 0.25})
    assert step(batch([1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]))["loss"] == pytest.approx(
        a.mean() + 0.25 * b.mean(), rel=1e-5
    )


@pytest.mark.parametrize("uncertainty", [False, True])
def test_a_task_that_was_not_drawn_gets_no_gradient(uncertainty: bool) -> None:
    step = make_step(uncertainty)
    before = {v.path: v.numpy() for v in step.model.weights}
    loss = losses_of(step, "a").mean()
    figures = step(batch([1] * 6, [0] * 6))
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)  # and not half of it
    assert "b_loss" not in figures and "b_accuracy" not in dict(figures)
    changed = {v.path for v in step.model.weights if not np.array_equal(v.numpy(), before[v.path])}
    own = {v.path for v in step.model.weights if "b_" not in v.path}
    assert changed == own
    # The encoder moves as if there were no other task.
    with tf.GradientTape() as tape:
        other = make_step()
        mean = tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(
                LABELS["a"], other.model(FEATURES)["a"], from_logits=True
            )
        )
    kernel = other.model.get_layer("encoder").kernel
    expected = kernel - 0.1 * tape.gradient(mean, kernel.value)
    np.testing.assert_allclose(step.model.get_layer("encoder").kernel, expected, atol=1e-6)


@pytest.mark.parametrize("uncertainty", [False, True])
def test_parts_of_a_batch_are_the_same_update(uncertainty: bool) -> None:
    whole, parts = make_step(uncertainty), make_step(uncertainty, accumulate=3)
    given = batch([1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0])
    for _ in range(3):
        figures, others = dict(whole(given)), dict(parts(given))
    assert figures == pytest.approx(others, rel=1e-5)
    for one, other in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_uncertainty_ends_at_its_closed_form() -> None:
    """Of a fixed loss L, exp(-s) L + s / 2 is least at exp(-s) = 1 / (2 L)."""
    step = make_step(uncertainty=True, frozen=True, rate=0.5)
    loss = losses_of(step, "a").mean()
    for _ in range(100):
        figures = step(batch([1] * 6, [0] * 6))
    assert figures["a_weight"] == pytest.approx(1 / (2 * loss), rel=1e-3)
    assert figures["b_weight"] == 1.0  # it was never drawn
    assert figures["loss"] == pytest.approx(0.5 + 0.5 * np.log(2 * loss), rel=1e-3)


def make_set(task: str, rows: int) -> Batches:
    given = batch([float(task == "a")] * 6, [float(task == "b")] * 6)
    features, labels, weights = tf.nest.map_structure(lambda x: np.resize(x, (rows, *x.shape[1:])), given)
    made = array_batches(features, {"labels": labels, "weights": weights}, batch_size=2, seed=0)

    def load(step: tf.Tensor, part: int, parts: int) -> tuple:
        x, facts, used = made.load(step, part, parts)
        return x, facts["labels"], {name: w * used for name, w in facts["weights"].items()}

    return Batches(load, made.steps_per_epoch, 2)


def test_a_large_loss_among_small_ones_is_no_divergence() -> None:
    """Twenty batches of the task with the larger loss in turn are none; a loss that grows is."""
    step = make_step(rate=1e-6)
    for layer, scale in (("a_logits", 30.0), ("b_logits", 0.01)):
        step.model.get_layer(layer).kernel.assign(scale * step.model.get_layer(layer).kernel)
    assert losses_of(step, "a").mean() > 2 * losses_of(step, "b").mean() + 1
    data = mixed_batches([make_set("a", 120), make_set("b", 8)])
    history = train(Stage(step, data, 1))
    assert {"loss", "a_loss", "a_accuracy", "b_loss", "b_accuracy"} == set(history[0])
    with pytest.raises(Diverged):
        train(Stage(make_step(rate=1e4), data, 3))


def test_an_epoch_averages_each_loss_over_its_own_rows() -> None:
    step = make_step(rate=1e-9)
    (logs,) = train(Stage(step, mixed_batches([make_set("a", 24), make_set("b", 6)]), 1))
    assert logs["a_loss"] == pytest.approx(losses_of(step, "a").mean(), rel=1e-4)
    assert logs["b_loss"] == pytest.approx(losses_of(step, "b").mean(), rel=1e-4)
    a, b = logs["a_loss"], logs["b_loss"]
    assert logs["loss"] == pytest.approx((12 * a + 3 * b) / 15, rel=1e-4)  # the mean over batches


def test_other_models_are_fitted_as_before() -> None:
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), SparseCrossEntropy())
    data = array_batches(FEATURES, LABELS["a"], batch_size=2)
    assert set(fit(model, data, epochs=1)[0]) == {"loss"}
