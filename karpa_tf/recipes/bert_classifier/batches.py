"""Labelled texts in batches, and what a model gives for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.data.sequences import encode_texts, rows_of, sequence_batches
from karpa_tf.data.tables import Rows, label_ids
from karpa_tf.recipes.families.encoders import Task
from karpa_tf.training.evaluation import Outputs

from . import BertClassifierSettings

# Rows that are evaluated at once.
_AT_ONCE = 64


@dataclass(frozen=True)
class Texts:
    """Texts in batches.

    Attributes:
        batches: of pieces, labels and weights.
        labels: int32 (rows,), in the order of the rows.
        order: the rows in the order of the batches, -1 where one fills up; empty in training.
    """

    batches: Batches
    labels: np.ndarray
    order: np.ndarray

    def rows(self, outputs: Outputs) -> np.ndarray:
        """Returns what a model gives for each row (rows, ...), in the order of the rows."""
        batches = np.concatenate([batch for batch, _, _ in outputs])
        result = np.zeros_like(batches[: len(self.labels)])
        result[self.order[self.order >= 0]] = batches[self.order >= 0]
        return result

    def probabilities(self, outputs: Outputs) -> np.ndarray:
        """Returns probabilities float32 (rows, classes), in the order of the rows."""
        return tf.nn.softmax(self.rows(outputs)).numpy()


def batch_texts(
    task: Task[BertClassifierSettings], rows: Rows, *, training: bool, say: Callable[[str], Any]
) -> Texts:
    """Cuts texts into pieces and puts texts of like length into a batch.

    Raises:
        UserError: a label that the model does not have.
    """
    config = task.config
    sequences = encode_texts(task.wordpiece, rows.texts, rows.texts_b, config.sequence_length)
    if sequences.cut:
        are, were = ("is", "was") if sequences.cut == 1 else ("are", "were")
        say(
            f"{sequences.cut:,} of {len(rows):,} texts {are} longer than {config.sequence_length} pieces and "
            f"{were} cut; --sequence_length reads more."
        )
    labels = label_ids(rows.labels, task.names, config.data)
    weights = np.ones(len(rows), np.float32)
    if training and config.class_weights == "balanced":
        weights = balanced_weights(labels, task.names)
    batches = sequence_batches(
        sequences,
        labels,
        weights,
        task.wordpiece,
        batch_size=config.batch_size if training else _AT_ONCE,
        seed=config.seed if training else None,
        buckets=config.buckets,
        token_dropout=config.token_dropout,
    )
    return Texts(batches, labels, np.zeros(0, int) if training else rows_of(sequences, _AT_ONCE))


def balanced_weights(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns weights float32 (rows,) with which every label counts as much as the others."""
    counts = np.bincount(labels, minlength=len(names))
    return (len(labels) / (len(names) * np.maximum(counts, 1)))[labels].astype(np.float32)
