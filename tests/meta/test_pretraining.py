"""The baseline of ordinary training: it learns all training classes; a task begins with a head of zeros."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.judging.few_shot import nearest_centroid, score
from karpa_tf.meta.classes import ClassTasks
from karpa_tf.meta.maml import MAML
from karpa_tf.meta.pretraining import pretrain
from karpa_tf.meta.sinusoids import Sinusoids
from karpa_tf.meta.tasks import TaskBatch


def directions(classes: int, seed: int) -> ClassTasks:
    """Points whose first two numbers tell the class, beside much larger ones that do not."""
    rng = np.random.default_rng(seed)
    places = np.arange(40 * classes) % classes
    angle = 2 * np.pi * (places + rng.random()) / classes
    told = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=[len(places), 2])
    points = np.concatenate([told, 3 * rng.normal(size=[len(places), 8])], 1)
    return ClassTasks(points.astype(np.float32), [f"{x:02}" for x in places], 3)


def body(inputs: int, outputs: int = 0) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input([inputs])
    y = keras.layers.Dense(32, activation="relu")(keras.layers.Dense(32, activation="relu")(x))
    return keras.Model(x, keras.layers.Dense(outputs)(y) if outputs else y)


def test_a_pretrained_network_is_better_than_raw_features_on_new_classes() -> None:
    network = body(10)
    tuned = pretrain(network, directions(20, 0), steps=400, seed=0, learning_rate=0.01)
    batch = directions(12, 1).sample(np.random.default_rng(0), 60, shots=5, queries=5)
    _, scores = score(
        [batch],
        {
            "raw": nearest_centroid(),
            "features": nearest_centroid(lambda x: network(x).numpy()),
            "tuned": lambda *task: MAML(tuned, inner_rate=0.3).predict(
                *map(tf.constant, task), steps=[0, 10]
            ),
        },
    )
    mean = {name: found.mean(-1) for name, found in scores.items()}
    # Before a step all answers are class 0: a third.
    assert mean["tuned"][0] == pytest.approx(1 / 3) and mean["tuned"][1] > mean["raw"] + 0.1
    assert mean["features"] > mean["raw"] + 0.1


def test_a_regression_is_pretrained_to_the_mean_of_all_tasks() -> None:
    network = body(1, 1)
    assert pretrain(network, Sinusoids(), steps=400, seed=0, learning_rate=0.01) is network
    # The mean over phases of a sin(x - p), with a mean of 2.55, is -2.55 * 2 / pi * cos(x).
    batch = TaskBatch(*Sinusoids().sample(np.random.default_rng(0), 1, shots=1, queries=200))
    wanted = -2.55 * 2 / np.pi * np.cos(batch.query[0])
    assert np.square(network(batch.query[0]).numpy() - wanted).mean() < 0.3 * np.square(wanted).mean()
