"""The update of both networks of a GAN, against one written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.augmentation import image_batches
from karpa_tf.models import build_dcgan_discriminator, build_dcgan_generator
from karpa_tf.training import AdamW, Checkpoints, GanStep, Stage, train
from tests.training.helpers import StopAt

RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 256, (32, 8, 8, 1), np.uint8), np.arange(32, dtype=np.int32) % 3


def make_step(classes: int, optimizer: Any, ema: bool = False) -> GanStep:
    keras.utils.set_random_seed(3)
    generator = build_dcgan_generator((8, 8, 1), classes, latent=4, filters=4)
    discriminator = build_dcgan_discriminator((8, 8, 1), classes, filters=4, units=8)
    average = {"use_ema": True, "ema_momentum": 0.5} if ema else {}
    return GanStep(generator, discriminator, (optimizer(**average), optimizer()), seed=5)


@pytest.mark.parametrize("classes", [0, 3])
def test_one_pass_gives_both_gradients(classes: int) -> None:
    """Of the two losses, each with a pass and a gradient of its own."""
    step = make_step(classes, lambda: keras.optimizers.SGD(1.0))
    z = tf.random.stateless_normal([16, 4], [5, 0])
    image, label = tf.cast(PIXELS[:16], tf.float32), [tf.one_hot(LABELS[:16], 3)] if classes else []
    copies = keras.models.clone_model(step.generator), keras.models.clone_model(step.discriminator)
    for copy, network in zip(copies, (step.generator, step.discriminator), strict=True):
        copy.set_weights(network.get_weights())
    generator, discriminator = copies
    figures = dict(step((tf.constant(PIXELS[:16]), tf.constant(LABELS[:16]), tf.ones([16]))))
    with tf.GradientTape(persistent=True) as tape:
        fake = generator([z, *label], training=True)
        # In one call: each would move the vectors of the spectral norms.
        logits = discriminator(
            [tf.concat([image, fake], 0), *(tf.tile(x, [2, 1]) for x in label)], training=True
        )
        real, generated = map(tf.math.log_sigmoid, (logits[:16], -logits[16:]))
        losses = (
            -tf.reduce_mean(tf.math.log_sigmoid(logits[16:])),
            -tf.reduce_mean(real) - tf.reduce_mean(generated),
        )
    assert figures["loss"] == pytest.approx(float(losses[0]), rel=1e-3)
    assert figures["discriminator_loss"] == pytest.approx(float(losses[1]), rel=1e-3)
    for copy, network, loss in zip(copies, (step.generator, step.discriminator), losses, strict=True):
        gradients = tape.gradient(loss, [v.value for v in copy.trainable_variables])
        for before, gradient, after in zip(
            copy.trainable_variables, gradients, network.trainable_variables, strict=True
        ):
            size = float(tf.reduce_max(tf.abs(gradient))) + 1e-7
            np.testing.assert_allclose(before - gradient, after, atol=2e-3 * size + 1e-6, err_msg=after.path)


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    def run(folder: Path, resume: bool = False, stop: int = 0) -> GanStep:
        step = make_step(3, lambda **more: AdamW(0.01, weight_decay=0.0, **more), ema=True)
        batches = image_batches(PIXELS, LABELS, batch_size=16, seed=1)
        train(
            Stage(step, batches, 3, stop_if_diverged=False),
            callbacks=[StopAt(stop)] if stop else [],
            checkpoints=Checkpoints(folder),
            resume=resume,
        )
        return step

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=3)
    again = run(tmp_path / "stopped", resume=True)
    for a, b in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    # What is evaluated is the average, and training goes on from the weights.
    before = again.generator.get_weights()
    with again.evaluated():
        now = again.generator.get_weights()
        assert any(np.abs(a - b).max() > 0 for a, b in zip(before, now, strict=True))
        average = [v for v in again.optimizers[0].variables if v.path.endswith("average")]
        for a, b in zip(average, again.generator.trainable_variables, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(before, again.generator.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
