"""Looking entries up, in graph ops, and what is kept of a run for it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError, write_whole
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.judging.retrieval import first_right_ranks, retrieval_metrics
from karpa_tf.lines import InALine
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.vectors import Encoder
from karpa_tf.training.run_folder import RunFolder, write_json

from . import Ranking, RetrieverSettings
from .bm25 import Bm25, pieces_of
from .data import Entries, Questions, read_entries

# Of a run's entries, in its assets.
_ENTRIES, _VECTORS, _WEIGHT = "entries.csv", "vectors.npy", "weight.json"
# Shares of the cosine that are tried, and texts that are looked up at once.
_WEIGHTS = [number / 10 for number in range(11)]
_AT_ONCE = 64


class Search(InALine):
    """Texts to the nearest entries, by vectors, by BM25 and by both.

    Entries of the same pieces are one document, so that their scores are equal to the bit and the first one
    stays before the second. The ranking `both` is by w cosine + (1 - w) BM25 / its largest of the text: such
    a sum did better than sums of ranks for Bruch et al. 2023, https://arxiv.org/abs/2210.11934.

    Args:
        encoder: makes vectors of texts.
        entries: among which is looked for.
        vectors: float32 (documents, width) of their different texts; None: the encoder makes them.
        weight: w.
    """

    def __init__(
        self, encoder: Encoder, entries: Entries, vectors: np.ndarray | None = None, weight: float = 0.5
    ) -> None:
        pieces = pieces_of(encoder.wordpiece, entries.texts)
        documents = {document: number for number, document in enumerate(dict.fromkeys(pieces))}
        self.encoder, self.entries, self.weight = encoder, entries, weight
        self.document_of = np.array([documents[document] for document in pieces], np.int32)
        self.bm25 = Bm25(list(documents), len(encoder.wordpiece))
        if vectors is None:
            first = np.unique(self.document_of, return_index=True)[1]
            vectors = encoder.embed([entries.texts[place] for place in first])
        self.vectors = keras.Variable(vectors, trainable=False, dtype="float32", name="entries")

    def score(self, texts: tf.Tensor, ranking: Ranking) -> tf.Tensor:
        """Returns the scores float32 (n, documents) of texts, string (n,), by a ranking, in graph ops."""
        token_ids, segment_ids = self.encoder.pack(texts)
        if ranking == "bm25":
            return self.bm25(token_ids)
        dense = tf.matmul(self.encoder.vectors(token_ids, segment_ids), self.vectors.value, transpose_b=True)
        return dense if ranking == "dense" else mixed(dense, self.bm25(token_ids), self.weight)

    def signature(self, ranking: Ranking, top: int) -> Signature:
        """Returns what is served: `entry` and `answer` string (n, top), `score` float32 (n, top).

        Args:
            ranking: by which.
            top: entries a text; fewer where there are not so many.
        """
        top = min(top, len(self.entries))

        def answer(text: tf.Tensor) -> dict[str, tf.Tensor]:
            found = tf.gather(self.score(text, ranking), self.document_of, axis=1)
            best = tf.math.top_k(found, top)
            return {
                "entry": tf.gather(tf.constant(self.entries.ids), best.indices),
                "answer": tf.gather(tf.constant(self.entries.answers), best.indices),
                "score": best.values,
            }

        dense = [] if ranking == "bm25" else [*self.encoder.model.weights, self.vectors]
        lexical = [] if ranking == "dense" else self.bm25.weights
        return Signature(
            answer,
            text_input(),
            variables=[*dense, *lexical],
            check=check_row,
            shown=["entry score answer"],
        )

    def ranks(self, questions: Questions, weights: Sequence[float] = ()) -> dict[Any, np.ndarray]:
        """Returns at which rank the first right entry stands, int (n,), for each ranking.

        Args:
            questions: whose answers entries have.
            weights: the rankings are `both` with each of these; none: they are the three.
        """
        numbers = {answer: number for number, answer in enumerate(dict.fromkeys(self.entries.answers))}
        answers = np.array([numbers[answer] for answer in self.entries.answers])
        wanted = np.array([numbers[answer] for answer in questions.rows.labels])
        texts, found = questions.rows.texts, dict[Any, list[np.ndarray]]()

        def single(part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self.score(part, "dense"), self.score(part, "bm25")

        call = tf.function(single, autograph=False).get_concrete_function(tf.TensorSpec([None], tf.string))
        for begin in range(0, len(texts), _AT_ONCE):
            dense, bm25 = call(tf.constant(texts[begin : begin + _AT_ONCE]))
            scores: dict[Any, tf.Tensor] = {
                "both": mixed(dense, bm25, self.weight),
                "dense": dense,
                "bm25": bm25,
            }
            if weights:
                scores = {weight: mixed(dense, bm25, weight) for weight in weights}
            right = wanted[begin : begin + _AT_ONCE, None] == answers
            for name, values in scores.items():
                each = values.numpy()[:, self.document_of]
                found.setdefault(name, []).append(first_right_ranks(each, right))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def fit(self, questions: Questions) -> None:
        """Sets the weight with which the ranking `both` has the largest mean reciprocal rank on questions."""
        ranks = self.ranks(questions, _WEIGHTS)
        mrr = {weight: retrieval_metrics(found)["mrr"] for weight, found in ranks.items()}
        self.weight = max(mrr, key=lambda weight: (mrr[weight], -abs(weight - 0.5)))

    def keep(self, folder: RunFolder, config: RetrieverSettings) -> None:
        """Writes entries, vectors and weight into a run's assets: whoever looks up computes none of them."""
        write_whole(folder.assets / _ENTRIES, self.entries.as_csv(config).encode())
        file = io.BytesIO()
        np.save(file, np.asarray(self.vectors))
        write_whole(folder.assets / _VECTORS, file.getvalue())
        write_json(folder.assets / _WEIGHT, self.weight)


def mixed(dense: tf.Tensor, bm25: tf.Tensor, weight: float) -> tf.Tensor:
    """Returns the scores of the ranking `both`, of those of the others, all float32 (n, documents)."""
    largest = tf.maximum(tf.reduce_max(bm25, axis=1, keepdims=True), 1e-9)
    return weight * dense + (1 - weight) * bm25 / largest


def open_search(folder: RunFolder, config: RetrieverSettings, encoder: Encoder, other: str = "") -> Search:
    """Returns what looks up among a run's entries, or among others.

    Args:
        folder: of the run.
        config: its settings.
        encoder: its own.
        other: the path of a table of other entries.

    Raises:
        UserError: that table, or what the run has kept, cannot be read.
    """
    with common.reading_weights(folder):
        weight = folder.read_json(f"assets/{_WEIGHT}")
        if other:
            advice = "the run names its columns so: its --{} says which"
            return Search(encoder, read_entries(other, config, advice), None, weight)
        vectors = np.load(folder.assets / _VECTORS)
        return Search(encoder, read_entries(str(folder.assets / _ENTRIES), config), vectors, weight)


def check_row(number: int, row: Mapping[str, Any]) -> None:
    """Raises a UserError for a row without text."""
    if not str(row["text"]).strip():
        raise UserError(f"Row {number} has an empty text: there is nothing to look up.")
