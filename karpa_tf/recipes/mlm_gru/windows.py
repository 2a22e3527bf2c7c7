"""The loss of a masked language model, window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.judging.by_row import ByRow
from karpa_tf.training.evaluation import Outputs
from karpa_tf.wordpiece import WordPiece


def loss_by_window(model: Any, batches: Batches, wordpiece: WordPiece) -> ByRow:
    """Returns the mean negative log likelihood of the masked pieces, window by window, in nats.

    Args:
        model: that gives logits (batch, predictions, pieces).
        batches: of windows with fixed masks.
        wordpiece: the vocabulary.
    """
    pieces = np.array(wordpiece.pieces)
    rows: list[str] = []
    sums: list[np.ndarray] = []
    for (features, *_), (logits, labels, weights) in zip(
        batches.dataset(), Outputs(model, batches), strict=True
    ):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32)).numpy()
        sums.append(np.stack([(losses * weights).sum(axis=1), weights.sum(axis=1)], axis=1))
        for ids in features["token_ids"].numpy():
            kept = ids[ids != wordpiece.pad_id]
            rows.append(" ".join(pieces[kept]).replace(" ##", ""))
    numerators, denominators = np.concatenate(sums).astype(np.float64).T
    found = ByRow(rows=rows, numerators=numerators, denominators=denominators, lower=True)
    return found.take(np.flatnonzero(denominators))  # the last batch is filled up
