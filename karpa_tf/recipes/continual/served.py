"""What `continual` serves, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.lines import InALine
from karpa_tf.recipes.families.recognize import image_input
from karpa_tf.recipes.families.vectors import Encoder
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

from . import ContinualSettings
from .stream import Stream


@dataclass(frozen=True, repr=False)
class Trained(InALine):
    """A run with its last weights.

    Attributes:
        config: its settings.
        stream: its tasks.
        model: the network.
        encoder: makes vectors of texts.
    """

    config: ContinualSettings
    stream: Stream
    model: keras.Model
    encoder: Encoder | None

    def __call__(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answers rows, in graph ops alone.

        Args:
            inputs: `image` float32 (n, height, width), or with 3 channels behind, of 0 to 255; or `text`
                string (n,).

        Returns:
            `label` string (n,) and `probabilities` float32 (n, outputs). Stream task: `label` string (n,
            tasks), the answer if a row is of the first task, of the second, and so on; the probabilities of
            each task's classes add up to 1.
        """
        (features,) = inputs.values()
        if self.encoder:
            features = self.encoder(features)
        elif features.shape.rank == 3:
            features = features[..., None]
        logits, names = self.model(features), tf.constant(self.stream.names)
        if self.stream.kind != "task":
            probabilities = tf.nn.softmax(logits)
            return {"label": tf.gather(names, tf.argmax(logits, 1)), "probabilities": probabilities}
        count = len(self.stream.tasks)
        own = np.stack([self.stream.of_task(task, count) for task in range(count)])
        each = tf.where(own[None], logits[:, None], -1e9)
        probabilities = tf.reduce_sum(tf.nn.softmax(each), axis=1)
        return {"label": tf.gather(names, tf.argmax(each, 2)), "probabilities": probabilities}

    def signature(self) -> Signature:
        """Returns what is served."""
        if not self.encoder:
            inputs, variables, check = image_input(self.config.shape), self.model.weights, None
        else:
            inputs, variables = text_input(), [*self.model.weights, *self.encoder.model.weights]
            check = _check_text
        if self.stream.kind != "task":
            return Signature(self, inputs, variables=variables, check=check, names=self.stream.names)
        # The probabilities are no distribution over all names.
        return Signature(self, inputs, variables=variables, check=check, shown=["label of each task: label"])


def _check_text(number: int, row: Mapping[str, Any]) -> None:
    if not str(row["text"]).strip():
        raise UserError(f"Row {number} has an empty text: there is nothing to classify.")


_SCENARIOS = {
    "class": "among all classes",
    "task": "among the classes of each task: the first label counts if a row is of the first task, and so on",
    "domain": "which of its task's classes a row is of, whatever the task",
}


def model_card(folder: RunFolder, trained: Trained, metrics: Mapping[str, Any]) -> str:
    """Returns the model card of a run."""
    config, stream = trained.config, trained.stream
    each = f"[n, {len(stream.tasks)}]" if stream.kind == "task" else "[n]"
    size = f"[n, {', '.join(map(str, config.shape[: 2 + config.color]))}]"
    taken = "`text` string [n]" if trained.encoder else f"`image` float32 {size}, 0 to 255"
    tasks = "\n".join(f"{number}. {', '.join(task)}" for number, task in enumerate(stream.tasks, 1))
    return f"""# {folder.recipe}

A classifier that has learned tasks of {config.data} one after the other, by {config.method}; it answers
{_SCENARIOS[stream.kind]}. The tasks:

{tasks}

- in: {taken}
- out: `label` string {each}; `probabilities` float32 [n, {len(stream.names)}], in the order of `labels.txt`

On {metrics["facts"]["rows"]} held-out rows, the mean over the tasks:

{metrics_table(metrics, ["accuracy", "forgetting", "backward_transfer", "memory_bytes"])}

{settings_list(folder.read_config())}
"""
