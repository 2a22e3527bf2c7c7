"""Magnitude pruning: the schedule is the paper's, and what is zero stays zero whatever the optimizer does."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from karpa_tf.data.batches import array_batches
from karpa_tf.training.loop import Stage, train
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import SGD, AdamW
from karpa_tf.training.pruning import Sparsity, zeros
from karpa_tf.training.supervised import SupervisedStep


def make_model(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    keras.utils.set_random_seed(0)
    ids = keras.Input([5], dtype="int32")
    x = keras.layers.Embedding(40, 6, name="embedding")(ids)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(20, "relu", name="hidden")(x)
    model = keras.Model(ids, keras.layers.Dense(3, name="logits")(x))
    model.compile(optimizer, SparseCrossEntropy())
    return model


def test_the_schedule_is_that_of_the_paper() -> None:
    sparsity = Sparsity(make_model(AdamW(0.01)), 0.8, steps=1000)
    assert (sparsity.end, sparsity.every) == (600, 12)
    assert [m.path.split("/")[0] for m in sparsity.matrices] == ["embedding", "hidden", "logits"]
    # Zhu & Gupta 2017, equation 1: s_f + (s_i - s_f) (1 - t / (n dt))^3.
    for step in (0, 12, 300, 588):
        assert sparsity.at(step) == pytest.approx(0.8 + (0 - 0.8) * (1 - step / 600) ** 3)
    assert sparsity.at(600) == sparsity.at(1000) == 0.8
    assert [sparsity.first_epoch(spe) for spe in (1, 100, 600, 599, 1000)] == [599, 5, 0, 1, 0]


def test_the_smallest_weights_go_and_exactly_as_many_as_are_to() -> None:
    model = make_model(AdamW(0.01))
    kernel = model.get_layer("hidden").kernel
    before = np.asarray(kernel)
    sparsity = Sparsity(model, 0.75, steps=10)
    sparsity.prune(sparsity.end)
    after = np.asarray(kernel)
    assert (after == 0).sum() == int(0.75 * before.size)
    assert np.array_equal(after[after != 0], before[after != 0])
    assert np.abs(before[after == 0]).max() <= np.abs(after[after != 0]).min()
    # Of equal ones too.
    kernel.assign(np.ones_like(before))
    sparsity.prune(sparsity.end)
    assert (np.asarray(kernel) == 0).sum() == int(0.75 * before.size)
    assert zeros([kernel]) == 0.75


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: AdamW(0.01, weight_decay=0.01, lazy=True, global_clipnorm=1.0),
        lambda: AdamW(0.01, use_ema=True, ema_momentum=0.9),
        lambda: SGD(0.1, 0.9, lookahead=40),
    ],
    ids=["lazy", "running average", "lookahead"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_was_pruned_stays_so(optimizer, accumulate) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 40, (80, 5)).astype(np.int32), rng.integers(0, 3, 80).astype(np.int32)
    model = make_model(optimizer())
    sparsity = Sparsity(model, 0.8, steps=40)
    step = SupervisedStep(model, accumulate=accumulate, sparsity=sparsity)
    seen: list[list[np.ndarray]] = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([np.asarray(m) for m in sparsity.matrices])

    batches = array_batches(x, y, batch_size=16, seed=0)
    history = train(Stage(step, batches, 8), callbacks=[Watch()])
    assert len(seen) == 8 and history[-1]["loss"] < history[0]["loss"]
    for now, later in itertools.pairwise(seen):
        assert all((b[a == 0] == 0).all() for a, b in zip(now, later, strict=True))
    for matrix in sparsity.matrices:
        values = np.asarray(matrix)
        assert (values == 0).sum() == int(0.8 * values.size)
        assert not np.signbit(values[values == 0]).any()  # zeros of two signs compress badly
    trained = [a[a != 0] for a in seen[5]], [b[b != 0] for b in seen[7]]
    assert all(not np.array_equal(a, b) for a, b in zip(*trained, strict=True))
