from __future__ import annotations

import warnings

import numpy as np
import pytest

from karpa_tf.judging.tagging import gazetteer_baseline, tag_metrics, type_table
from tests.judging.samples import SHARED

# --- Figures --------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "B-ORG"]]
    figures = tag_metrics(true, predicted)
    # Two of the four predicted and of the three true ones agree.
    for suffix in ("", "_strict"):
        assert figures[f"precision{suffix}"] == pytest.approx(2 / 4)
        assert figures[f"recall{suffix}"] == pytest.approx(2 / 3)
        assert figures[f"f1{suffix}"] == pytest.approx(4 / 7)
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert all(type(value) is float for value in figures.values())
    assert set(figures) == {
        *("precision", "recall", "f1", "precision_strict", "recall_strict", "f1_strict", "accuracy")
    }


def test_an_entity_without_its_beginning_counts_by_default_alone() -> None:
    figures = tag_metrics([["B-PER", "I-PER", "O"], ["B-LOC"]], [["I-PER", "I-PER", "O"], ["B-LOC"]])
    assert figures["f1"] == 1
    assert (figures["precision_strict"], figures["recall_strict"]) == (1, 0.5)
    assert figures["f1_strict"] == pytest.approx(2 / 3)


def test_entities_end_with_their_sentence() -> None:
    split, joined = [["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]]
    assert tag_metrics(split, joined)["f1"] == 1
    assert tag_metrics(joined, split)["recall_strict"] == 0.5


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([["O", "O"]], [["O", "O"]]),
        ([["B-PER"]], [["O"]]),
        ([["O"]], [["B-PER"]]),
        ([[]], [[]]),
        ([], []),
    ],
)
def test_without_entities_the_figures_are_zero_and_nothing_warns(
    true: list[list[str]], predicted: list[list[str]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = tag_metrics(true, predicted)
        rows = type_table(true, predicted)
    assert not any(value for name, value in figures.items() if name != "accuracy")
    assert figures["accuracy"] == float(bool(true and true[0]) and true == predicted)
    assert [row["type"] for row in rows] == (["PER"] if "PER" in str((true, predicted)) else [])


def test_tags_come_as_any_sequence() -> None:
    tags = (np.array(["B-PER", "O"]), ("O",))
    assert tag_metrics(tags, tags)["f1_strict"] == 1


def test_sentences_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Sentence 1 has 2 true tags. Received: 1 predicted"):
        tag_metrics([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match=r"Received: 1 and 2"):
        tag_metrics([["O"]], [["O"], ["O"]])


def test_type_table_by_hand() -> None:
    true = [["B-PER", "I-PER", "O", "B-城市"], ["B-PER", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-城市"], ["I-PER", "B-ORG"]]
    rows = type_table(true, predicted)
    assert rows == [
        {"type": "ORG", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        {"type": "PER", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {"type": "城市", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
    ]


# --- The baseline ---------------------------------------------------------------------------------


def test_gazetteer_takes_the_longest_entity_with_its_most_frequent_type() -> None:
    train_words = [["New", "York", "Times"], ["New", "York"], ["Washington"], ["Washington"], ["Washington"]]
    train_tags = [["B-ORG", "I-ORG", "I-ORG"], ["B-LOC", "I-LOC"], ["B-LOC"], ["B-PER"], ["B-PER"]]
    words = ["The", "New", "York", "Times", "in", "New", "York", "Washington", "New"]
    tags = ["O", "B-ORG", "I-ORG", "I-ORG", "O", "B-LOC", "I-LOC", "B-PER", "O"]
    figures = gazetteer_baseline(train_words, train_tags, [words, ["york", "Times"]], [tags, ["O", "O"]])
    assert (figures["f1_strict"], figures["accuracy"]) == (1, 1)


def test_gazetteer_that_learned_nothing_finds_nothing() -> None:
    assert gazetteer_baseline([["a"]], [["O"]], [["a", "b"]], [["B-X", "O"]])["f1"] == 0
    assert gazetteer_baseline([], [], [["a"]], [["O"]])["accuracy"] == 1


def test_gazetteer_on_wikigold() -> None:
    if not (SHARED / "wikigold").is_dir():
        pytest.skip("wikigold is not in shared/data")
    splits: list[list[list[str]]] = []
    for split in ("train", "test"):
        text = (SHARED / "wikigold" / f"{split}.conll").read_text(encoding="utf-8")
        sentences = [[line.split() for line in block.split("\n")] for block in text.strip().split("\n\n")]
        splits += [[[line[place] for line in sentence] for sentence in sentences] for place in (0, -1)]
    assert 0.26 < gazetteer_baseline(*splits)["f1_strict"] < 0.29
