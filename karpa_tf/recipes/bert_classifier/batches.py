"""Labelled texts in batches, and what a model gives for them."""

from __future__ import annotations

import numpy as np

from karpa_tf.data.sequences import encode_texts, rows_of, sequence_batches
from karpa_tf.data.tables import Columns, Rows, label_ids
from karpa_tf.recipes.families.encoders import Task
from karpa_tf.recipes.families.examples import Texts, note_of_cut

from . import BertClassifierSettings
from .cloze import Patterns

ClassifierTask = Task[BertClassifierSettings]


# Rows that are evaluated at once.
_AT_ONCE = 64
# Rows of an epoch where a run learns from few: fewer are gone over several times.
EPOCH = 1000
# Texts shown in the projector.
PROJECTED = 1000


def columns_of(config: BertClassifierSettings) -> Columns:
    """Returns the columns that a run reads."""
    return Columns(config.text, config.label, config.text_b, config.redact)


def joined(rows: Rows) -> list[str]:
    """Returns the texts, pairs as one."""
    if rows.texts_b is None:
        return rows.texts
    return [f"{a} {b}" for a, b in zip(rows.texts, rows.texts_b, strict=True)]


def batch_texts(task: ClassifierTask, rows: Rows, training: bool, numbered: bool = False) -> Texts:
    """Cuts texts into pieces and puts texts of like length into a batch; `numbered`: by row, not label.

    Raises:
        UserError: a label that the model does not have.
    """
    config, names, given = task.config, task.names, len(rows)
    if training and config.shots and config.method != "fewshot":
        rows = rows.take([*range(len(rows))] * -(-EPOCH // len(rows)))
    if config.method == "cloze":
        size = config.batch_size if training else _AT_ONCE
        labels = label_ids(rows.labels, names, config.data)
        seed = config.seed if training else None
        batches = Patterns(task).batches(rows.texts, labels, size, seed)
        order = np.pad(np.arange(len(rows)), (0, -len(rows) % size), constant_values=-1)
        return Texts(batches=batches, order=order, labels=labels)
    sequences = encode_texts(task.wordpiece, rows.texts, rows.texts_b, config.sequence_length)
    note = note_of_cut(sequences, config.sequence_length)
    labels = label_ids(rows.labels, names, config.data)
    weights = np.ones(len(rows), np.float32)
    if training and config.class_weights == "balanced":
        counts = np.bincount(labels, minlength=len(names))
        weights = (len(rows) / (len(names) * np.maximum(counts, 1)))[labels].astype(np.float32)
    batches = sequence_batches(
        sequences,
        np.arange(len(rows)) % given if numbered else labels,
        weights,
        task.wordpiece,
        batch_size=config.batch_size if training else _AT_ONCE,
        seed=config.seed if training else None,
        buckets=config.buckets,
        token_dropout=config.token_dropout,
        balanced=EPOCH if config.method == "fewshot" else 0,
    )
    order = np.zeros(0, int) if training else rows_of(sequences, _AT_ONCE)
    return Texts(batches=batches, order=order, note=note, labels=labels)
