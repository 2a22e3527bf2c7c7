from __future__ import annotations

import csv
import warnings

import numpy as np
import pytest

from karpa_tf.judging import classification
from karpa_tf.judging.classification import class_table, classification_metrics, confusion, svm_baseline
from tests.judging.samples import SHARED, certain

# --- Figures --------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9]], np.float32)
    figures = classification_metrics(np.array([0, 1, 1, 1]), probabilities)
    assert figures["accuracy"] == 0.75
    # Class 0: precision 1/2, recall 1. Class 1: precision 1, recall 2/3.
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # Four bins of one row each: right with 0.8, 0.6, 0.9; wrong with 0.7.
    assert figures["ece"] == pytest.approx((0.2 + 0.4 + 0.1 + 0.7) / 4)
    assert figures["loss"] == pytest.approx(-np.log([0.8, 0.3, 0.6, 0.9]).mean())
    assert all(type(value) is float for value in figures.values())


def test_rows_of_one_bin_make_up_for_each_other() -> None:
    # 3 of 4 right at a confidence of 0.75, 0 of 2 at 0.55.
    probabilities = np.concatenate([certain([0] * 4, 2, 0.75), certain([0] * 2, 2, 0.55)])
    figures = classification_metrics(np.array([0, 0, 0, 1, 1, 1]), probabilities)
    assert figures["ece"] == pytest.approx(2 / 6 * 0.55)


@pytest.mark.parametrize("edge", range(8, 15))
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(edge: int) -> None:
    on, below, above = edge / 15, edge / 15 - 0.03, edge / 15 + 0.03
    for other, together in ((below, True), (above, False)):
        probabilities = np.concatenate([certain([0], 2, on), certain([0], 2, other)])
        figures = classification_metrics(np.array([0, 1]), probabilities)
        right, wrong = 1 - on, -other
        expected = abs(right + wrong) if together else abs(right) + abs(wrong)
        assert figures["ece"] == pytest.approx(expected / 2, abs=1e-6)


def test_bins_reach_from_zero_to_one() -> None:
    assert classification_metrics(np.array([0, 1]), certain([0, 1], 2))["ece"] == 0
    assert classification_metrics(np.array([1, 0]), certain([0, 1], 2))["ece"] == 1
    # 100 equal probabilities: the first class is the prediction, at a confidence of 0.01.
    even = np.full([4, 100], 0.01, np.float32)
    assert classification_metrics(np.array([0, 1, 2, 3]), even)["ece"] == pytest.approx(0.24)


def test_a_probability_of_zero_leaves_the_loss_finite() -> None:
    assert 16 < classification_metrics(np.array([1]), certain([0], 2))["loss"] < 100


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    # Class 2 occurs nowhere, class 1 among the predictions alone.
    figures = classification_metrics(np.array([0, 0, 0]), certain([0, 0, 1], 3, 0.9))
    assert figures["macro_f1"] == pytest.approx((0.8 + 0) / 2)
    assert classification_metrics(np.array([0, 0]), certain([0, 0], 3))["macro_f1"] == 1


@pytest.mark.parametrize(
    ("labels", "shape"), [([0, 2], [2, 2]), ([0, -1], [2, 2]), ([0], [2, 2]), ([], [0, 2]), ([0], [1])]
)
def test_what_does_not_fit_is_refused(labels: list[int], shape: list[int]) -> None:
    with pytest.raises(ValueError, match="Received: "):
        classification_metrics(np.array(labels, int), np.full(shape, 0.5, np.float32))


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 names are needed. Received: 3"):
        class_table(np.array([0]), certain([0], 2), ["a", "b", "c"])


def test_class_table_by_hand() -> None:
    rows = class_table(np.array([0, 0, 1, 1]), certain([0, 1, 1, 1], 3), ["a", "b", "absent"])
    assert rows == [
        {"label": "a", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {
            "label": "b",
            "precision": pytest.approx(2 / 3),
            "recall": 1.0,
            "f1": pytest.approx(0.8),
            "support": 2,
        },
        {"label": "absent", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    ]


def test_confusion_has_a_row_for_the_true_class() -> None:
    matrix = confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


# --- The baseline ---------------------------------------------------------------------------------


def test_words_of_scripts_without_spaces_are_characters() -> None:
    def words(text: str) -> list[str]:
        return classification._word_finder()(classification._normalize(text))

    assert words("Don't TOP-UP 2 cards!") == ["don", "t", "top", "up", "2", "cards"]
    assert words("我的卡, 在ATM里。") == ["我", "的", "卡", "在", "atm", "里"]
    assert words("カードを・なくした") == list("カードをなくした")
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("cafe\u0301") == words("CAFÉ") == ["café"]
    assert words("สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert words("카드 ＡＢＣ") == ["카드", "abc"]
    assert words("?! … 🙂") == []


def test_svm_learns_words() -> None:
    texts = [f"{verb} the {thing}" for verb in ("lost", "found") for thing in ("card", "phone", "key")]
    labels = ["bad"] * 3 + ["good"] * 3
    figures = svm_baseline(
        texts, labels, ["LOST a wallet", "found it", "what?", ""], ["bad", "good", "bad", "bad"]
    )
    assert figures["accuracy"] >= 0.5
    assert svm_baseline(texts, labels, ["LOST it", "found it"], ["bad", "good"]) == {
        "accuracy": 1.0,
        "macro_f1": 1.0,
    }


def test_svm_learns_quietly_from_few_rows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = svm_baseline(["one", "two", "three"], list("abc"), ["two", "four"], ["b", "unseen"])
    assert figures["accuracy"] == 0.5


@pytest.mark.parametrize(
    "texts",
    [
        ["我的卡丢了", "手机丢了吗", "我要退款", "请退款"],
        ["カードを紛失", "電話を紛失", "返金して", "返金を"],
    ],
)
def test_svm_learns_chinese_and_japanese(texts: list[str]) -> None:
    figures = svm_baseline(texts, [0, 0, 1, 1], [texts[0][::-1], texts[3][::-1]], [0, 1])
    assert figures == {"accuracy": 1.0, "macro_f1": 1.0}


def test_without_words_or_choice_the_most_frequent_label_is_the_baseline() -> None:
    figures = svm_baseline(["", "?!", "🙂"], ["a", "b", "b"], ["anything", ""], ["b", "a"])
    assert figures == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert svm_baseline(["one", "two"], [1, 1], ["three", "four"], [1, 0])["accuracy"] == 0.5


def test_svm_on_banking77() -> None:
    if not (SHARED / "banking77").is_dir():
        pytest.skip("banking77 is not in shared/data")
    splits: list[list[str]] = []
    for split in ("train", "test"):
        with (SHARED / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        splits += [[row["text"] for row in rows], [row["label"] for row in rows]]
    figures = svm_baseline(*splits)
    assert figures["accuracy"] > 0.89
    assert figures["macro_f1"] > 0.89
