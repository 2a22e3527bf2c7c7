"""The image networks: their shapes, and the layers of our own beside Keras'."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models.airbench import IdentityFirst, WhitenedPatches, build_airbench, without_standardize
from karpa_tf.models.image_cnn import build_image_cnn
from karpa_tf.models.image_layers import FastBatchNormalization, FastConv2D, Standardize
from karpa_tf.models.image_mlp import build_image_mlp


def parameters(model: keras.Model) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_the_essays_networks_have_the_essays_size() -> None:
    assert parameters(build_image_mlp((28, 28, 1), 10)) == 784 * 64 + 64 + 64 * 10 + 10
    assert parameters(build_image_cnn((32, 32, 3), 10)) == 62_006  # PyTorch's tutorial network


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_every_network_gives_float32_logits_of_images(dtype: str) -> None:
    models = [
        build_image_mlp((28, 28, 1), 10, units=(8, 8), batch_normalization=True, dropout=0.1, dtype=dtype),
        build_image_cnn((32, 32, 3), 10, dropout=0.1, dtype=dtype),
        build_airbench((32, 32, 3), 10, widths=(8, 8, 8), dtype=dtype),
        build_airbench((48, 48, 3), 7, widths=(8, 16), depth=1, activation="silu", dtype=dtype),
    ]
    for model in models:
        image = np.full((2, *model.input.shape[1:]), 255, np.uint8)
        for training in (False, True):
            logits = model(image, training=training)
            assert logits.shape == (2, model.output.shape[1]) and logits.dtype == tf.float32
            assert np.isfinite(logits).all()


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("batch", [128, 6])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_convolution_before_pooling_is_that_of_keras(dtype: str, batch: int, pool: int) -> None:
    x = tf.random.stateless_normal([batch, 7, 5, 16], [1, 2])
    arguments: dict[str, Any] = {"padding": "same", "use_bias": False}
    ours = FastConv2D(24, 3, pool=pool, dtype=dtype, **arguments)
    theirs = keras.layers.Conv2D(24, 3, **arguments)
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.kernel.assign(ours.kernel)
    exact = keras.layers.Conv2D(24, 3, dtype="float64", **arguments)
    exact.build(x.shape)
    # What both get, as the arithmetic holds it.
    held = "bfloat16" if dtype == "mixed_bfloat16" else "float32"
    exact.kernel.assign(tf.cast(tf.cast(ours.kernel.value, held), tf.float64))
    inputs = [x, x, tf.cast(tf.cast(x, held), tf.float64)]
    results = []
    for layer, given in zip((ours, theirs, exact), inputs, strict=True):
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = layer(given)
            assert y.shape == layer.compute_output_shape(x.shape)
            # The mean, for rounding must not decide which place counts.
            y = keras.layers.AveragePooling2D(pool, dtype=layer.dtype_policy)(y)
            loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float64)))
        gradients = tape.gradient(loss, [given, layer.kernel.value])
        results.append([np.asarray(tf.cast(z, tf.float64)) for z in (y, *gradients)])
    # As near to float64 as Keras' own, to a rounding of each of a sum's terms: how they are added differs
    # from CPU to CPU, and some round after each.
    rounding = 2.0**-23 if held == "float32" else 2.0**-8
    for a, b, right in zip(*results, strict=True):
        bound = 2 * np.abs(b - right).max() + rounding * np.sqrt(9 * 24) * np.abs(right).max()
        assert np.abs(a - right).max() <= bound


@pytest.mark.usefixtures("bfloat16")
def test_convolution_leaves_out_what_a_pooling_would_not_read() -> None:
    layer = FastConv2D(8, 3, pool=2, padding="same", dtype="mixed_bfloat16")
    assert layer(tf.zeros([2, 7, 5, 4])).shape == (2, 6, 4, 8)
    again = FastConv2D.from_config(layer.get_config())
    assert again(tf.zeros([2, 7, 5, 4])).shape == (2, 6, 4, 8)


@pytest.mark.parametrize("shape", [(32, 6), (8, 5, 4, 6)])
@pytest.mark.parametrize("scale", [True, False])
def test_batch_normalization_is_that_of_keras(shape: tuple[int, ...], scale: bool) -> None:
    x = tf.random.stateless_normal(shape, [1, 2]) * 3 + 1
    ours = FastBatchNormalization(0.8, scale=scale, epsilon=1e-3)
    theirs = keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-3, scale=scale)
    slopes = []
    for layer in (ours, theirs):
        layer.build(shape)
        layer.beta.assign(tf.range(6.0))
        for _ in range(2):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(tf.sin(y))
        slopes.append((y, *tape.gradient(loss, [x, layer.beta])))
    for a, b in zip(*slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=1e-5)
    # Keras keeps the biased variance, the fused op the unbiased one.
    rows = int(np.prod(shape[:-1]))
    unbiased = (np.asarray(theirs.moving_variance) - 0.64) * rows / (rows - 1) + 0.64
    np.testing.assert_allclose(ours.moving_variance, unbiased, rtol=1e-4)
    theirs.moving_variance.assign(ours.moving_variance)
    np.testing.assert_allclose(ours(x, training=False), theirs(x, training=False), atol=1e-5)


def test_standardize() -> None:
    image = np.array([[[[0, 100, 255]]]], np.uint8)
    out = Standardize([10, 100, 200], [10, 20, 55])(image)
    np.testing.assert_allclose(out, [[[[-1, 0, 1]]]], atol=1e-6)


def test_whitened_patches_are_uncorrelated_and_stay() -> None:
    images = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype(np.float32)
    images[:, 1:] += images[:, :-1]
    images[..., 1] += images[..., 0]
    layer = WhitenedPatches()
    layer.build(images.shape)
    layer.whiten(images)
    out = layer(images).numpy().reshape(-1, 24)
    np.testing.assert_allclose(out[:, :12].T @ out[:, :12] / len(out), np.eye(12), atol=0.02)
    np.testing.assert_allclose(out[:, :12], -out[:, 12:], atol=1e-5)
    assert not layer.trainable_variables


def test_a_network_without_standardize_says_the_same() -> None:
    given = {"widths": [8, 16], "mean": [120.0, 110.0, 100.0], "deviation": [60.0, 50.0, 40.0]}
    model = build_airbench((16, 16, 3), 4, **given)
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype(np.float32)
    model.get_layer("whitened_patches").whiten(model.get_layer("standardize")(images).numpy())
    model(images, training=True)  # batch normalization has seen something
    folded = without_standardize(model)
    np.testing.assert_allclose(folded(images), model(images), atol=1e-4)
    assert "Standardize" not in {type(layer).__name__ for layer in folded.layers}


def test_an_identity_hands_its_input_on() -> None:
    layer = keras.layers.Conv2D(5, 3, padding="same", use_bias=False, kernel_initializer=IdentityFirst())
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(layer(x)[..., :3], x, atol=1e-6)
