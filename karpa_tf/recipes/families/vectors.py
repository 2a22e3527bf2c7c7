"""Texts as vectors: a BERT that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.sequences import dense_features, pack_texts
from karpa_tf.lines import InALine
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_classifier import Pool
from karpa_tf.models.presets import load_preset
from karpa_tf.recipes.families import common, starts
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder

# Texts that are read at once.
_AT_ONCE = 64


class Encoder(InALine):
    """Texts to vectors of length 1: the mean of a BERT's vectors of the pieces.

    Args:
        start: architecture and vocabulary.
        length: most pieces that are read of a text.

    Attributes:
        model: the BERT with its pooling.
        wordpiece: the vocabulary.
    """

    def __init__(self, start: starts.Start, length: int) -> None:
        bert = build_bert(**start.architecture)
        pooled = Pool("mean", name="pool")(bert.output, bert.input["padding_mask"])
        self.model = keras.Model(bert.input, keras.layers.UnitNormalization(name="unit")(pooled))
        self.wordpiece, self.length = start.wordpiece, length

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Reads texts, string (n,), in graph ops alone; returns float32 (n, width)."""
        token_ids, segment_ids = pack_texts(self.wordpiece, texts, length=self.length)
        return self.model(dense_features(token_ids, segment_ids, self.wordpiece.pad_id), training=False)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of texts, float32 (n, width)."""
        order = np.argsort([len(text) for text in texts], kind="stable")  # of one length: less padding
        call = tf.function(self, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        vectors = np.zeros((len(texts), self.model.output.shape[-1]), np.float32)
        for begin in range(0, len(texts), _AT_ONCE):
            rows = order[begin : begin + _AT_ONCE]
            vectors[rows] = call(tf.constant([texts[row] for row in rows])).numpy()
        return vectors


def first_encoder(run: Run[Any]) -> Encoder:
    """Reads the preset that a run names, and keeps it in the run folder: predicting needs no preset.

    Args:
        run: whose settings have `preset` and `sequence_length`.
    """
    config = run.settings
    preset = load_preset(config.preset)
    starts.check_preset(preset, config, run.folder)
    start = starts.Start(preset.architecture, preset.wordpiece, preset)
    encoder = Encoder(start, config.sequence_length)
    preset.assign(encoder.model)
    if run.chief:
        starts.save_start(start, run.folder)
        encoder.model.save_weights(_weights(run.folder))
    return encoder


def read_encoder(folder: RunFolder, config: Any) -> Encoder:
    """Returns the encoder that `first_encoder` has kept."""
    encoder = Encoder(starts.read_start(folder), config.sequence_length)
    with common.reading_weights(folder):
        encoder.model.load_weights(_weights(folder))
    return encoder


def _weights(folder: RunFolder) -> Path:
    return folder.assets / "encoder.weights.h5"
