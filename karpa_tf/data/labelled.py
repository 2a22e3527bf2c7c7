"""Labelled texts to batches for a classifier: a table, a vocabulary, pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.data.batches import Batches
from karpa_tf.data.sequences import encode_texts, sequence_batches
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import Columns, Table, label_ids, open_table
from karpa_tf.lines import InALine
from karpa_tf.wordpiece import WordPiece, learn_wordpiece


@dataclass(frozen=True, repr=False)
class TableData(InALine):
    """Everything a classifier of texts is trained and evaluated with.

    Attributes:
        table: the rows by split.
        labels: the labels, in the order of the logits.
        wordpiece: the vocabulary.
        train: batches in another order each epoch.
        validation: batches in a fixed order; None where the split has no rows.
        test: the same.
    """

    table: Table
    labels: list[str]
    wordpiece: WordPiece
    train: Batches
    validation: Batches | None
    test: Batches | None


def load_table(
    source: str | Mapping[str, Sequence[Any]] | Table = "embedded",
    columns: Columns | None = None,
    *,
    vocabulary: str | Path | WordPiece = "",
    vocabulary_size: int = 8000,
    lowercase: bool = True,
    sequence_length: int = 64,
    batch_size: int = 32,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    seed: int = 0,
) -> TableData:
    """Turns labelled texts into batches for `build_bert_classifier`.

    A batch is `(features, labels, sample_weights)`: features `token_ids` int32, `segment_ids` int32 and
    `padding_mask` bool, all (rows, pieces), as wide as its longest text needs; labels int32 and weights
    float32, both (rows,), where a weight of 0 marks a row that fills up.

    Args:
        source: what `open_table` takes: a file, a dict of columns, a DataFrame ...; or an open table.
        columns: names of the columns.
        vocabulary: a vocab.txt, or an open one, e.g. that of a preset; empty: learn one from training.
        vocabulary_size: largest number of pieces to learn.
        lowercase: read text in lower case and without accents; an open vocabulary has its own way.
        sequence_length: most pieces that are read of a text, or of a pair.
        batch_size: rows in a batch.
        validation_share: share of the rows that become the validation split where the data brings none.
        test_share: the same for the test split.
        seed: of the order in training.

    Returns:
        The batches, and what a served model needs beside its weights.

    Raises:
        UserError: the source or the vocabulary cannot be used.
    """
    table = source
    if not isinstance(table, Table):
        table = open_table(table, columns, validation_share=validation_share, test_share=test_share)
    if isinstance(vocabulary, WordPiece):
        wordpiece = vocabulary
    elif vocabulary:
        wordpiece = WordPiece.load(vocabulary, lowercase)
    else:
        known = table.splits["train"]
        wordpiece = learn_wordpiece(known.texts + (known.texts_b or []), vocabulary_size, lowercase=lowercase)

    def batches(split: Split) -> Batches:
        rows = table.splits[split]
        return sequence_batches(
            encode_texts(wordpiece, rows.texts, rows.texts_b, sequence_length),
            label_ids(rows.labels, table.labels, f"{table.name} ({split} split)"),
            np.ones(len(rows), np.float32),
            wordpiece,
            batch_size=batch_size,
            seed=seed if split == "train" else None,
        )

    return TableData(
        table,
        table.labels,
        wordpiece,
        train=batches("train"),
        validation=batches("validation") if table.splits["validation"] else None,
        test=batches("test") if table.splits["test"] else None,
    )
