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
from karpa_tf.wordpiece import WordPiece

# Texts that are read at once.
_AT_ONCE = 64


def build_vectors(bert: keras.Model) -> keras.Model:
    """Returns the model that gives the mean of a BERT's vectors of pieces, of length 1, float32 (n, width).

    Args:
        bert: of `build_bert`.
    """
    pooled = Pool("mean", name="pool")(bert.output, bert.input["padding_mask"])
    return keras.Model(bert.input, keras.layers.UnitNormalization(dtype="float32", name="unit")(pooled))


class Encoder(InALine):
    """Texts to vectors of length 1.

    Args:
        model: of `build_vectors`.
        wordpiece: the vocabulary.
        length: most pieces that are read of a text.
    """

    def __init__(self, model: keras.Model, wordpiece: WordPiece, length: int) -> None:
        self.model, self.wordpiece, self.length = model, wordpiece, length

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Reads texts, string (n,), in graph ops alone; returns float32 (n, width)."""
        return self.vectors(*self.pack(texts))

    def pack(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Returns what is read of texts, as `pack_texts` does."""
        return pack_texts(self.wordpiece, texts, length=self.length)

    def vectors(self, token_ids: tf.RaggedTensor, segment_ids: tf.RaggedTensor) -> tf.Tensor:
        """Returns float32 (n, width) for what `pack` returns."""
        return self.model(dense_features(token_ids, segment_ids, self.wordpiece.pad_id), training=False)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of texts, float32 (n, width)."""
        order = np.argsort([len(text) for text in texts], kind="stable")  # of one length: less padding
        # Calls of the function itself are counted, and TensorFlow warns where several encoders are used.
        call = tf.function(self, autograph=False).get_concrete_function(tf.TensorSpec([None], tf.string))
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
    encoder = _encoder(start, config)
    preset.assign(encoder.model)
    if run.chief:
        starts.save_start(start, run.folder)
        encoder.model.save_weights(_weights(run.folder))
    return encoder


def read_encoder(folder: RunFolder, config: Any) -> Encoder:
    """Returns the encoder that `first_encoder` has kept."""
    encoder = _encoder(starts.read_start(folder), config)
    with common.reading_weights(folder):
        encoder.model.load_weights(_weights(folder))
    return encoder


def _encoder(start: starts.Start, config: Any) -> Encoder:
    model = build_vectors(build_bert(**start.architecture))
    return Encoder(model, start.wordpiece, config.sequence_length)


def _weights(folder: RunFolder) -> Path:
    return folder.assets / "encoder.weights.h5"
