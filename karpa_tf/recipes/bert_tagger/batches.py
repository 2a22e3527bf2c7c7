"""Tagged sentences in batches, and what a model gives for their words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from karpa_tf.data.sequences import encode_words, rows_of, sequence_batches
from karpa_tf.data.tags import Sentence
from karpa_tf.recipes.families.encoders import Task
from karpa_tf.recipes.families.examples import Words

from . import BertTaggerSettings

TaggerTask = Task[BertTaggerSettings]

# Rows that are evaluated at once.
_AT_ONCE = 32


def batch_words(task: TaggerTask, sentences: Sequence[Sentence], training: bool) -> Words:
    """Cuts words into pieces and puts sentences of like length into a batch."""
    config = task.config
    sequences, places = encode_words(task.wordpiece, [s.words for s in sentences], config.sequence_length)
    ids = {name: index for index, name in enumerate(task.names)}
    # A type that training never saw cannot be predicted; it still counts as missed.
    tags = [list(sentence.tags) for sentence in sentences]
    labels = np.zeros(len(sequences.token_ids), np.int32)
    weights = np.zeros(len(labels), np.float32)
    labels[places] = [ids.get(tag, 0) for tag in chain.from_iterable(tags)]
    weights[places] = 1.0
    size = config.batch_size if training else _AT_ONCE
    batches = sequence_batches(
        sequences,
        labels,
        weights,
        task.wordpiece,
        batch_size=size,
        seed=config.seed if training else None,
        buckets=config.buckets,
        token_dropout=config.token_dropout,
    )
    row = np.searchsorted(sequences.offsets, places, side="right") - 1
    order = np.zeros(0, int) if training else rows_of(sequences, size)
    place = places - sequences.offsets[row]
    return Words(batches=batches, order=order, tags=tags, row=row, place=place)
