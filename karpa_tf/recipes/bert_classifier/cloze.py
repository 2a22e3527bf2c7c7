"""Texts in patterns with gaps, as a masked language model reads them to classify them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches, array_batches
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.recipes.families.encoders import Task
from karpa_tf.wordpiece import END, MASK, START, UNKNOWN, WordPiece

from . import TEXT, BertClassifierSettings

# Texts that are cut into pieces at once.
_AT_ONCE = 1024


class Patterns(InALine):
    """Texts to rows of a masked language model: one for each pattern and each length of a word.

    Args:
        task: its patterns, words, vocabulary and length; a BERT's rows are between [CLS] and [SEP].

    Attributes:
        words: the ids of the pieces of the words of each label, in the order of the labels.

    Raises:
        UserError: the vocabulary has no pieces for a word, or patterns leave no room for a text.
    """

    def __init__(self, task: Task[BertClassifierSettings]) -> None:
        config = task.config
        by_label = config.words_by_label()
        self.wordpiece = task.wordpiece
        self.words = [[_spell(self.wordpiece, word) for word in by_label[name]] for name in task.names]
        self.length = config.sequence_length
        lengths = sorted({len(word) for several in self.words for word in several})
        self.masks = lengths[-1]
        wrapped = "units" not in task.architecture
        self.variants: list[tuple[list[Any], int]] = []
        for pattern in config.patterns():
            segments: list[Any] = [
                part if part in (TEXT, MASK) else _pieces(self.wordpiece, part)
                for part in re.split(f"({re.escape(TEXT)}|{re.escape(MASK)})", pattern)
            ]
            if wrapped:
                segments = [[self.wordpiece.ids[START]], *segments, [self.wordpiece.ids[END]]]
            self.variants += [(segments, masks) for masks in lengths]
            fixed = self.masks + sum(len(part) for part in segments if isinstance(part, list))
            if fixed >= self.length:
                raise UserError(
                    f"The pattern '{pattern}' leaves no room for a text: it has {fixed} pieces, and "
                    f"sequence_length is {self.length}."
                )

    def __call__(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Reads texts, string (n,), with graph ops; those that are too long are cut at their ends.

        Returns:
            The features of the model, for n times as many rows as there are variants, a text's together:
            `token_ids` int32 and `padding_mask` bool (rows, pieces), `masked_positions` int32 (rows, masks).
        """
        pieces = self.wordpiece.tokenize(text)
        rows, places = [], []
        for segments, masks in self.variants:
            fixed = masks + sum(len(part) for part in segments if isinstance(part, list))
            cut = pieces[:, : self.length - fixed]
            here, place, parts = tf.zeros_like(cut.row_lengths()), None, []
            for segment in segments:
                if segment == MASK:
                    place, segment = here, [self.wordpiece.mask_id] * masks
                if segment == TEXT:
                    parts.append(cut)
                    here += cut.row_lengths()
                elif segment:
                    parts.append(tf.tile(tf.constant([segment], tf.int32), [tf.shape(text)[0], 1]))
                    here += len(segment)
            rows.append(tf.concat(parts, axis=1))
            # Masks beyond those of this row are read at its last one, and not looked at.
            offsets = tf.minimum(tf.range(self.masks), masks - 1)
            places.append(tf.cast(place, tf.int32)[:, None] + offsets)
        # From all texts of a variant to all variants of a text.
        count = tf.shape(text)[0]
        order = tf.reshape(tf.transpose(tf.reshape(tf.range(count * len(rows)), [len(rows), count])), [-1])
        ids = tf.gather(tf.concat(rows, axis=0), order)
        dense = ids.to_tensor(self.wordpiece.pad_id)
        return {
            "token_ids": dense,
            "padding_mask": tf.sequence_mask(ids.row_lengths(), tf.shape(dense)[1]),
            "masked_positions": tf.gather(tf.concat(places, axis=0), order),
        }

    def batches(
        self, texts: Sequence[str], labels: np.ndarray, batch_size: int, seed: int | None = None
    ) -> Batches:
        """Returns texts in batches, all as wide as the longest; see `array_batches`."""
        parts = [self(tf.constant(texts[i : i + _AT_ONCE])) for i in range(0, len(texts), _AT_ONCE)]
        widest = max(part["token_ids"].shape[1] for part in parts)

        def whole(name: str, fill: Any) -> np.ndarray:
            arrays = [part[name].numpy() for part in parts]
            width = self.masks if name == "masked_positions" else widest
            padded = [np.pad(a, [(0, 0), (0, width - a.shape[1])], constant_values=fill) for a in arrays]
            return np.concatenate(padded).reshape(len(texts), len(self.variants), width)

        fills = {"token_ids": self.wordpiece.pad_id, "padding_mask": False, "masked_positions": 0}
        features = {name: whole(name, fill) for name, fill in fills.items()}
        batches = array_batches(features, labels, batch_size=batch_size, seed=seed)

        def load(step: tf.Tensor, part: int, parts: int) -> Any:
            several, *rest = batches.load(step, part, parts)
            return {name: tf.reshape(x, [-1, x.shape[-1]]) for name, x in several.items()}, *rest

        return dataclasses.replace(batches, load=load)


def _pieces(wordpiece: WordPiece, text: str) -> list[int]:
    return wordpiece.tokenize(tf.constant([text])).flat_values.numpy().tolist()


def calibrate(task: Task[BertClassifierSettings], model: keras.Model) -> None:
    """Moves the bias of each label so that an empty text is of none more than of another.

    Zhao et al. 2021, https://arxiv.org/abs/2102.09690.
    """
    logits = model(Patterns(task)(tf.constant([""])), training=False)[0]
    bias = model.get_layer("verbalizer").bias
    bias.assign(bias - logits + tf.reduce_mean(logits))


def _spell(wordpiece: WordPiece, word: str) -> list[int]:
    """Returns the ids of a word's pieces; raises a UserError where the vocabulary has none."""
    found = _pieces(wordpiece, word)
    if not found or wordpiece.ids[UNKNOWN] in found:
        raise UserError(f'words: the vocabulary has no pieces for "{word}": take another word for its label.')
    return found
