"""`load_table`: labelled texts to batches."""

from __future__ import annotations

import numpy as np
import pytest

from karpa_tf.data import WordPiece, load_table, open_table
from karpa_tf.errors import UserError
from tests.conftest import make_intents

COLUMNS = dict(zip(("text", "label"), map(list, zip(*make_intents(90), strict=True)), strict=True))


def rows_in(batches) -> int:
    return int(sum(weights.numpy().sum() for _, _, weights in batches.dataset()))


def test_every_row_is_in_one_batch_with_its_label() -> None:
    data = load_table(COLUMNS, vocabulary_size=200, batch_size=16, sequence_length=16, test_share=0.1)
    assert data.labels == ["music", "timer", "weather"]
    sizes = {split: len(rows) for split, rows in data.table.splits.items()}
    assert sum(sizes.values()) == 90
    assert sizes == {name: rows_in(getattr(data, name)) for name in sizes}
    of_text = dict(make_intents(90))
    for text, label in zip(
        *(getattr(data.table.splits["test"], x) for x in ("texts", "labels")), strict=True
    ):
        assert of_text[text] == label
    for features, labels, weights in data.train.dataset():
        assert features["token_ids"].shape[1] <= 16 and labels.dtype == "int32"
        first = [data.wordpiece.pieces[i] for i in features["token_ids"][0].numpy()]
        said = " ".join(piece for piece in first if piece.isalpha())
        if weights[0]:
            words = {"music": ("play", "hear"), "weather": ("rain", "raining", "weather", "snow")}
            words["timer"] = ("timer", "wake")
            assert any(word in said for word in words[data.labels[labels[0]]]), said


def test_the_order_follows_from_the_seed_and_the_vocabulary_may_be_given() -> None:
    options = {"batch_size": 16, "sequence_length": 16}
    first = load_table(COLUMNS, vocabulary_size=200, **options)
    table = open_table(COLUMNS)
    again = load_table(table, vocabulary=first.wordpiece, **options)
    other = load_table(table, vocabulary=WordPiece(first.wordpiece.pieces), seed=1, **options)
    ids = [next(iter(x.train.dataset()))[0]["token_ids"].numpy() for x in (first, again, other)]
    np.testing.assert_array_equal(ids[0], ids[1])
    assert ids[0].shape != ids[2].shape or (ids[0] != ids[2]).any()


def test_splits_without_rows_are_none_and_a_label_that_training_lacks_is_refused() -> None:
    data = load_table(COLUMNS, vocabulary_size=200, validation_share=0, test_share=0)
    assert data.validation is None and data.test is None and rows_in(data.train) == 90
    table = open_table(COLUMNS)
    table.splits["test"].labels[0] = "news"
    with pytest.raises(UserError, match=r'The table \(test split\) has the label "news"'):
        load_table(table, vocabulary_size=200)


@pytest.mark.parametrize("options", [{"batch_size": -1}, {"batch_size": 1.5}, {"test_share": -0.1}])
def test_sizes_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(UserError, match="must be"):
        load_table(COLUMNS, vocabulary_size=200, **options)
