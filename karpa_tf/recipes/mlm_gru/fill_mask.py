"""The function that `mlm-gru` serves: text with masks to the same text filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.recipes.families.words import Claim
from karpa_tf.wordpiece import MASK, WordPiece

# Sentences whose fillings TensorBoard shows as training goes.
SENTENCES = [
    "The [MASK] statement is used to define a function.",
    "If the argument is not given, it [MASK] to None.",
    "Return a new [MASK] object with the given name.",
    "It was the best of times, it was the [MASK] of times.",
]


class FillMask:
    """Text with `[MASK]` in it to the best fillings, in graph ops alone.

    Args:
        model: reads windows of pieces.
        wordpiece: its vocabulary.
        sequence_length: pieces in a window; a longer text is read in a window around each mask.
        top_k: how many fillings to return.
    """

    def __init__(self, model: keras.Model, wordpiece: WordPiece, sequence_length: int, top_k: int) -> None:
        candidates = np.flatnonzero(wordpiece.fills_mask)
        if not 0 < top_k <= len(candidates):
            raise UserError(
                f"--top_k must lie between 1 and {len(candidates)}, the whole words of the vocabulary. "
                f"Received: {top_k}."
            )
        self.model = model
        self.wordpiece = wordpiece
        self.length = sequence_length
        self.top_k = top_k
        self._candidates = candidates.astype(np.int32)
        self._words = np.array(wordpiece.pieces, object)[candidates].tolist()

    def __call__(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Fills the masks.

        Args:
            text: string (n,).

        Returns:
            `filled_text` string (n,): each `[MASK]` replaced by its best filling; `top_tokens` string
            and `top_scores` float32, both (n, masks, top_k): whole words and signs, best first, with
            their probabilities; `masks` int32 (n,), how many a text has: "" and 0 lie beyond.
        """
        between = tf.strings.split(text, MASK)  # (n, masks + 1)
        last = tf.cast(tf.range(tf.size(between.flat_values)), tf.int64)
        last = tf.reduce_any(last[:, None] == between.row_splits[1:] - 1, axis=1)
        one = tf.cast(~last, tf.int64)  # masks behind each part: none behind a text's last
        masks = tf.reduce_sum(one)

        # All pieces of all texts in one row, the masks in their places.
        mask_ids = tf.fill([masks], self.wordpiece.mask_id)
        parts = tf.concat(
            [
                self.wordpiece.tokenize(between.flat_values),
                tf.RaggedTensor.from_row_lengths(mask_ids, one),
            ],
            axis=1,
        )
        pieces = parts.flat_values
        place = tf.boolean_mask(parts.row_splits[1:] - 1, ~last)
        texts = tf.gather(parts.row_splits, between.row_splits)
        row = tf.boolean_mask(between.value_rowids(), ~last)
        begin, end = tf.gather(texts, row), tf.gather(texts, row + 1)

        # A window around each mask.
        width = tf.minimum(tf.cast(self.length, tf.int64), tf.reduce_max(tf.concat([end - begin, [1]], 0)))
        start = tf.maximum(tf.minimum(place - width // 2, end - width), begin)
        index = start[:, None] + tf.range(width)
        inside = index < end[:, None]
        ids = tf.gather(pieces, tf.minimum(index, tf.size(pieces, tf.int64) - 1))
        logits = self.model(
            {
                "token_ids": tf.where(inside, ids, self.wordpiece.pad_id),
                "padding_mask": inside,
                "masked_positions": tf.cast(place - start, tf.int32)[:, None],
            },
            training=False,
        )
        scores = tf.gather(tf.nn.softmax(logits[:, 0]), self._candidates, axis=1)
        scores, best = tf.math.top_k(scores, self.top_k)
        tokens = tf.gather(tf.constant(self._words), best)

        # Back to a row a text.
        counts = between.row_lengths() - 1
        shape = [None, None, self.top_k]
        filling = tf.RaggedTensor.from_row_lengths(tokens[:, 0], one)
        filled = between.flat_values + tf.strings.reduce_join(filling, axis=-1)
        return {
            "filled_text": tf.strings.reduce_join(between.with_flat_values(filled), axis=-1),
            "top_tokens": tf.RaggedTensor.from_row_lengths(tokens, counts).to_tensor("", shape=shape),
            "top_scores": tf.RaggedTensor.from_row_lengths(scores, counts).to_tensor(0.0, shape=shape),
            "masks": tf.cast(counts, tf.int32),
        }

    def markdown(self, sentences: Sequence[str]) -> str:
        """Returns a table of sentences and their best fillings."""
        outputs = self(tf.constant(list(sentences)))
        lines = ["| text | fillings |", "|---|---|"]
        for sentence, tokens, scores in zip(
            sentences, outputs["top_tokens"].numpy(), outputs["top_scores"].numpy(), strict=True
        ):
            fillings = ", ".join(
                f"{token.decode()} {score:.2f}" for token, score in zip(tokens[0], scores[0], strict=True)
            )
            lines.append(f"| {sentence} | {fillings} |")
        return "\n".join(lines)


def claims(outputs: Mapping[str, Any]) -> list[Claim]:
    """Returns what is to be explained of a text's outputs: the best filling of each mask."""

    def claim(mask: int, token: str) -> Claim:
        def score(other: Mapping[str, Any], _: int) -> float:
            scores = dict(zip(other["top_tokens"][mask], other["top_scores"][mask], strict=True))
            return scores.get(token, 0.0)

        return Claim(f"{MASK} {mask + 1} is {token}", score)

    return [claim(i, tokens[0]) for i, tokens in enumerate(outputs["top_tokens"]) if tokens[0]]
