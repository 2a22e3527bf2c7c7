"""What `meta` exports: its signature by what tasks are made of, tasks to try it with, and the model card."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.export.signature import Signature
from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.recipes.families.vectors import Encoder
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

from . import MetaSettings
from .data import VALIDATION_SEED, open_tasks
from .served import signature_of


@dataclass(frozen=True)
class Trained:
    """A run with its best weights.

    Attributes:
        config: its settings.
        algorithm: with the weights.
        inverted: whether its images were dark on light.
        encoder: of texts.
    """

    config: MetaSettings
    algorithm: Algorithm
    inverted: bool
    encoder: Encoder | None


def signature(trained: Trained) -> Signature:
    """Returns what a run serves."""
    config = trained.config
    read: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    variables = list(trained.algorithm.learner.weights)
    if trained.encoder:
        spec = tf.TensorSpec([None, None], tf.string)
        read = trained.encoder
        variables += trained.encoder.model.weights
    elif config.kind == "images":
        size = [config.image_size] * 2 + [3] * config.color
        spec = tf.TensorSpec([None, None, *size], tf.float32)
        read = functools.partial(_pixels, grey=not config.color, inverted=trained.inverted)
    else:
        spec = tf.TensorSpec([None, None, 1], tf.float32)
    return signature_of(
        trained.algorithm,
        read,
        spec,
        variables=variables,
        steps=config.served_steps,
        ways=0 if config.kind == "sinusoids" else config.ways,
    )


def _pixels(images: tf.Tensor, grey: bool, inverted: bool) -> tf.Tensor:
    """Returns images of 0 to 255 as the network was trained on them."""
    images = images / 255.0
    if inverted:
        images = 1.0 - images
    return images[..., None] if grey else images


def rows(trained: Trained) -> list[dict[str, Any]]:
    """Returns tasks to try an export with."""
    config = trained.config
    rng = np.random.default_rng(VALIDATION_SEED)
    if config.kind == "texts":
        texts = ["a cup of tea", "tea, please", "where is the train?", "a ticket to Ghent"]
        row = {"support": texts, "labels": ["drink", "drink", "travel", "travel"]}
        other = {"support": ["日本", "Ça va naïve", "tea", "🙂"], "labels": ["a", "b", "b", ""]}
        query = ["a cup of coffee", "when does it leave?"]
        return [{**row, "query": query}, {**other, "query": query}]
    data = open_tasks(config, None)
    batch = data.splits["validation"].sample(rng, 4, shots=config.shots, queries=min(config.queries, 3))
    return [_row(trained, *values) for values in zip(*batch[:3], strict=True)]


def _row(trained: Trained, support: np.ndarray, labels: np.ndarray, query: np.ndarray) -> dict[str, Any]:
    """Returns a task as a request has it."""
    if trained.config.kind == "sinusoids":
        return {"support": support.tolist(), "targets": labels.tolist(), "query": query.tolist()}

    def pixels(images: np.ndarray) -> list[Any]:
        images = 255 * (1 - images if trained.inverted else images)
        return (images if trained.config.color else images[..., 0]).tolist()

    names = [f"class {label}" for label in labels]
    return {"support": pixels(support), "labels": names, "query": pixels(query)}


def model_card(folder: RunFolder, trained: Trained, metrics: Mapping[str, Any]) -> str:
    """Returns the model card of a run."""
    config = trained.config
    metric = "mse" if config.kind == "sinusoids" else "accuracy"
    steps = f"{config.served_steps} gradient steps" if config.served_steps else "prototypes"
    if metric == "mse":
        task = f"{config.shots} points of a sinusoid"
        served = """- in: `support` and `targets` float32 [t, k, 1], `query` float32 [t, n, 1]
- out: `prediction` float32 [t, n, 1]"""
    else:
        task = f"{config.shots} examples of each of {config.ways} classes"
        kind = "string [t, k]" if config.kind == "texts" else "float32 [t, k, height, width], 0 to 255"
        same = kind.replace("k", "n", 1)
        served = f"""- in: `support` {kind}; `labels` string [t, k], any words ("": padding);
  `query` {same}
- out: `label` string [t, n]; `probabilities` float32 [t, n, ways], in the order of `classes`
  string [t, ways]"""
    return f"""# {folder.recipe}

Learns a task from the examples in the request itself, by {steps}, and answers its queries.
Trained on tasks of {config.data} by {config.algorithm}: {task}.

A request brings t tasks, with k examples to learn from and n queries each:

{served}

On {metrics["facts"]["tasks"]} tasks of classes that training has not seen:

{metrics_table(metrics, [metric, f"{metric}_ci95"])}

{settings_list(folder.read_config())}
"""
