"""BM25 on WordPieces, in graph ops: posting lists as they are in an inverted index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine
from karpa_tf.wordpiece import WordPiece

# What most who use BM25 begin with: how soon a piece that comes again says no more, and how much longer texts
# are held back.
_K1, _B = 1.2, 0.75


class Bm25(InALine):
    """BM25 of texts and a few documents (Robertson & Zaragoza 2009, section 3, https://doi.org/10.1561/1500000019).

    A document d of a query q has the sum of idf(t) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|)) over the
    pieces t of q, each as often as it stands there. f is how often t is in d. idf(t) is log(1 + (N - n + 0.5)
    / (n + 0.5)) for the n of N documents that have t: always above 0. Pieces are those of a BERT, so that any
    script will do.

    Args:
        documents: the pieces of each, ids; without special ones.
        vocabulary: how many pieces there are.

    Attributes:
        weights: what is served: `splits` int32 (vocabulary + 1,), the posting list of piece t is from
            `splits[t]` to `splits[t + 1]`; `documents` int32 and `values` float32 (postings,).
    """

    def __init__(self, documents: Sequence[Sequence[int]], vocabulary: int) -> None:
        counts = [Counter(document) for document in documents]
        pieces = np.array([piece for count in counts for piece in count], np.int64)
        often = np.array([n for count in counts for n in count.values()], np.float64)
        places = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
        lengths = np.array([len(document) for document in documents], np.float64)
        having = np.bincount(pieces, minlength=vocabulary)
        idf = np.log1p((len(counts) - having + 0.5) / (having + 0.5))
        longer = 1 - _B + _B * lengths / max(lengths.mean(), 1e-9)
        values = idf[pieces] * often * (_K1 + 1) / (often + _K1 * longer[places])
        order = np.argsort(pieces, kind="stable")
        self.count = len(counts)
        arrays = {
            "splits": np.concatenate([[0], np.cumsum(having)]).astype(np.int32),
            "documents": places[order].astype(np.int32),
            "values": values[order].astype(np.float32),
        }
        self._arrays = {
            name: keras.Variable(array, trainable=False, dtype=array.dtype.name, name=f"bm25_{name}")
            for name, array in arrays.items()
        }

    @property
    def weights(self) -> list[keras.Variable]:
        return list(self._arrays.values())

    def __call__(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        """Returns the scores float32 (n, documents) of queries, in graph ops.

        Args:
            token_ids: int32 ragged (n, pieces); special pieces have no postings.
        """
        splits, documents, values = (self._arrays[n].value for n in ("splits", "documents", "values"))
        pieces, rows = token_ids.flat_values, token_ids.value_rowids()
        postings = tf.ragged.range(tf.gather(splits, pieces), tf.gather(splits, pieces + 1))
        found = postings.flat_values
        places = tf.gather(rows, postings.value_rowids()) * self.count
        places += tf.cast(tf.gather(documents, found), tf.int64)
        size = token_ids.nrows() * self.count
        # Of the same pieces in the same order the sum is the same to the bit, whatever rows are beside.
        total = tf.math.unsorted_segment_sum(tf.gather(values, found), places, size)
        return tf.reshape(total, [-1, self.count])


def pieces_of(wordpiece: WordPiece, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the pieces of each text, ids, without [UNK]: unknown words are not the same word."""
    special = set(wordpiece.special_ids)
    found: list[tuple[int, ...]] = []
    for begin in range(0, len(texts), 1000):
        for row in wordpiece.tokenize(tf.constant(texts[begin : begin + 1000])).to_list():
            found.append(tuple(piece for piece in row if piece not in special))
    return found
