"""A teacher's loss, beside Keras' own and within a step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data import array_batches
from karpa_tf.training import AdamW, SparseCrossEntropy, Stage, SupervisedStep, train
from karpa_tf.training.distillation import Distillation, TaughtRows, distillation_loss

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_it_is_the_loss_of_keras_distillation(temperature: float) -> None:
    teacher, student = RNG.normal(0, 3, (2, 40, 7)).astype(np.float32)
    ours = distillation_loss(tf.constant(teacher), tf.constant(student), temperature)
    # Of the loss's name, its default, Keras 3.15 makes a function that gets logits for probabilities.
    keras_loss = keras.distillation.LogitsDistillation(temperature, keras.losses.KLDivergence())
    theirs = keras_loss.compute_loss(teacher, student)
    assert float(tf.reduce_mean(ours)) == pytest.approx(float(theirs), rel=1e-3)
    np.testing.assert_allclose(
        distillation_loss(tf.constant(teacher), tf.constant(teacher), 2.0), 0, atol=1e-5
    )


def network(seed: int = 0, units: int = 3) -> keras.Model:
    start = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(units, kernel_initializer=start)])
    model.compile(AdamW(0.05), SparseCrossEntropy(label_smoothing=0.1))
    return model


def test_a_step_adds_both_losses_row_by_row_and_counts_no_row_that_fills_up() -> None:
    """And in parts, one after the other, it is the same update."""
    x, labels = RNG.normal(size=[10, 4]).astype(np.float32), RNG.integers(0, 3, 10)
    logits = RNG.normal(size=[10, 3]).astype(np.float32)
    shares = np.where(np.arange(10) < 7, 0.25, 1.0)
    batches = array_batches(x, np.arange(10), batch_size=16)  # six rows of weight 0
    weights = []
    for parts in (1, 2):
        model = network()
        before = model(x)
        step = SupervisedStep(
            model,
            {"accuracy": keras.metrics.sparse_categorical_accuracy},
            accumulate=parts,
            distillation=Distillation(TaughtRows(labels, logits, shares), 2.0),
        )
        figures = step(next(iter(batches.dataset())))
        hard = SparseCrossEntropy(label_smoothing=0.1).call(labels, before)
        soft = distillation_loss(tf.constant(logits), before, 2.0)
        assert figures["loss"] == pytest.approx(float(np.mean((1 - shares) * hard + shares * soft)), rel=1e-5)
        assert figures["accuracy"] == pytest.approx(np.mean(before.numpy().argmax(1) == labels))
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_student_that_hears_the_teacher_alone_becomes_it() -> None:
    x = RNG.normal(size=[200, 4]).astype(np.float32)
    teacher, student = network(1), network(2)
    logits = teacher(x).numpy()
    lesson = TaughtRows(np.zeros(200), logits, np.ones(200))  # all labels are wrong or luck
    step = SupervisedStep(student, distillation=Distillation(lesson, 3.0))
    history = train(Stage(step, array_batches(x, np.arange(200), batch_size=50, seed=0), epochs=60))
    assert history[-1]["loss"] < 1e-3 * history[0]["loss"]
    probabilities = [tf.nn.softmax(model(x)) for model in (teacher, student)]
    np.testing.assert_allclose(*probabilities, atol=0.02)
