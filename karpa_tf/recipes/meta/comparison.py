"""What a run is compared with: plain classifiers, and the same network trained in the ordinary way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.judging.few_shot import Predict, best_setting, logistic_regression, nearest_centroid
from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.meta.maml import MAML
from karpa_tf.meta.pretraining import pretrain, with_new_head
from karpa_tf.meta.tasks import TaskData, Tasks
from karpa_tf.recipes.families import common
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.step import TracedByShape

from . import MetaSettings
from .data import VALIDATION_SEED, same_tasks
from .network import build_network

# Steps on a task of the fine-tuned network; its rates, of which the best on some validation tasks is taken.
_STEPS = 10
_RATES, _CHOOSING = (0.001, 0.01, 0.03, 0.1, 0.3), 60


def answer(algorithm: Algorithm, steps: Sequence[int]) -> Predict:
    """Returns what answers queries after numbers of steps on a task; traced once a shape."""
    predict = TracedByShape(tf.function(functools.partial(algorithm.predict, steps=steps), autograph=False))
    return lambda *task: predict(*map(tf.constant, task)).numpy()


def baselines(folder: RunFolder, config: MetaSettings, data: TaskData) -> dict[str, Predict]:
    """Returns what a run is compared with, by name.

    Args:
        folder: of the run; the network that was trained in the ordinary way is kept there.
        config: of the run.
        data: its tasks.
    """
    known = data.splits["train"]
    found: dict[str, Predict] = {}
    if known.ways:
        found["nearest centroid"] = nearest_centroid()
        found["logistic regression"] = logistic_regression()
    else:
        found["mean of the support set"] = lambda _, labels, query: np.broadcast_to(
            np.mean(labels, 1, keepdims=True), (*query.shape[:2], known.outputs)
        )
    if not config.baseline_steps:
        return found
    model = _pretrained(folder, config, known)
    validation = same_tasks(data.splits["validation"], config, _CHOOSING, VALIDATION_SEED)
    fine_tune = _fine_tuning(model)
    rate = best_setting(validation, fine_tune, _RATES)
    found[f"pretrained, fine-tuned ({_STEPS} steps)"] = fine_tune(rate)
    if known.ways:
        features = keras.Model(model.input, model.layers[-1].input)
        found["pretrained, logistic regression"] = logistic_regression(lambda x: features(x).numpy())
    return found


def _fine_tuning(model: keras.Model) -> Callable[[float], Predict]:
    """Returns what makes of a rate the fine-tuning of a network on each task; traced once for all rates."""
    variable = tf.Variable(0.0)
    answers = answer(MAML(model, inner_rate=variable), [_STEPS])

    def make(rate: float) -> Predict:
        def predict(*task: Any) -> np.ndarray:
            variable.assign(rate)
            return answers(*task)

        return predict

    return make


def _pretrained(folder: RunFolder, config: MetaSettings, known: Tasks) -> keras.Model:
    """Returns the same network, trained in the ordinary way; a run does that once."""
    body = build_network(config, known.shape, 0 if known.ways else known.outputs)
    path = folder.assets / "pretrained.weights.h5"
    if not path.exists():
        model = pretrain(body, known, steps=config.baseline_steps, seed=config.seed)
        model.save_weights(path)
        return model
    model = with_new_head(body, known)
    with common.reading_weights(folder):
        model.load_weights(path)
    return model
