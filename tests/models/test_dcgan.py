"""The networks of a GAN, and spectral normalization."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.models import build_dcgan_discriminator, build_dcgan_generator
from karpa_tf.models.spectral import SpectralConv2D, SpectralDense, spectral_norm

RNG = np.random.default_rng(0)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("shape", "classes"), [((28, 28, 1), 10), ((32, 32, 3), 0)])
def test_images_come_out_and_logits_of_them(shape, classes: int, dtype: str) -> None:
    generator = build_dcgan_generator(shape, classes, latent=6, filters=4, dtype=dtype)
    discriminator = build_dcgan_discriminator(shape, classes, filters=4, dtype=dtype)
    z = tf.random.stateless_normal([5, 6], [1, 2])
    label = [tf.eye(classes)[:5]] if classes else []
    for training in (False, True):
        image = generator([z, *label], training=training)
        assert image.shape == (5, *shape) and image.dtype == tf.float32
        assert image.numpy().min() >= 0 and image.numpy().max() <= 255
        logits = discriminator([image, *label], training=training)
        assert logits.shape == (5,) and logits.dtype == tf.float32
    # Each image is read by itself.
    alone = discriminator([image[2:3], *(x[2:3] for x in label)], training=False)
    again = discriminator([image, *label], training=False)
    assert abs(float(alone[0] - again[2])) < (1e-4 if dtype == "float32" else 0.1)


def test_the_label_changes_the_image_and_the_logit() -> None:
    generator = build_dcgan_generator((16, 16, 1), 3, latent=4, filters=4)
    discriminator = build_dcgan_discriminator((16, 16, 1), 3, filters=4)
    z, label = tf.ones([3, 4]), tf.eye(3)
    images = generator([z, label]).numpy()
    assert np.abs(images[0] - images[1]).max() > 1e-3
    logits = discriminator([tf.constant(images[[0, 0, 0]]), label]).numpy()
    assert len(set(logits.round(6))) == 3


@pytest.mark.parametrize("layer", [SpectralConv2D(6, 4, 2, padding="same"), SpectralDense(6)])
def test_a_kernel_is_divided_by_its_largest_singular_value(layer, tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 8, 8, 3) if isinstance(layer, SpectralConv2D) else (2, 7)).astype(np.float32)
    layer.build(x.shape)
    # Its largest singular values are not alike: then 100 steps are enough.
    drawn = np.random.default_rng(1).standard_normal(layer.kernel.shape)
    layer.kernel.assign(drawn.astype(np.float32))
    largest = np.linalg.svd(layer.kernel.numpy().reshape(-1, 6), compute_uv=False)[0]
    for _ in range(100):
        y = layer(x, training=True)
    plain = keras.layers.Conv2D(6, 4, 2, "same") if x.ndim == 4 else keras.layers.Dense(6)
    plain.build(x.shape)
    plain.set_weights([layer.kernel.numpy() / largest, layer.bias.numpy()])
    np.testing.assert_allclose(y, plain(x), rtol=1e-3, atol=1e-5)
    # Evaluating does not move the vector, and a file of weights holds it.
    before = layer.u.numpy()
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    np.testing.assert_array_equal(model(x), layer(x, training=False))
    np.testing.assert_array_equal(layer.u, before)
    model.save_weights(tmp_path / "a.weights.h5")
    layer.u.assign(0 * before)
    model.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(layer.u, before)


def test_the_gradient_goes_through_the_singular_value() -> None:
    """Numerically: the derivative of the largest singular value, whose vectors stay where they are."""
    kernel = tf.constant(RNG.standard_normal((5, 4)).astype(np.float32))
    u = keras.Variable(np.linalg.svd(kernel)[2][:1])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        norm = spectral_norm(kernel, u, training=False)
    gradient = tape.gradient(norm, kernel).numpy()
    left, values, right = np.linalg.svd(kernel.numpy())
    assert float(norm) == pytest.approx(values[0], rel=1e-5)
    np.testing.assert_allclose(gradient, left[:, :1] @ right[:1], atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 28, 1), (4, 4, 1), (28, 28)])
def test_a_size_that_cannot_be_halved_twice_is_one_sentence(shape) -> None:
    for build in (build_dcgan_generator, build_dcgan_discriminator):
        with pytest.raises(UserError, match="sides are multiples of 4, 8 at least"):
            build(shape)
