"""Cross-validation by `--folds`, and what is said of splits and batches that are too small or too large."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from karpa_tf.data.tables import fold_places
from karpa_tf.errors import UserError
from karpa_tf.recipes.bert_classifier import BertClassifierSettings
from karpa_tf.recipes.bert_classifier.recipe import BertClassifier
from karpa_tf.recipes.bert_tagger import BertTaggerSettings
from karpa_tf.recipes.bert_tagger.recipe import BertTagger
from karpa_tf.recipes.families import folds
from karpa_tf.recipes.mnist_mlp import MnistMlpSettings
from karpa_tf.recipes.mnist_mlp.recipe import MnistMlp
from tests.conftest import (
    BERT_TINY,
    TINY_DIGITS,
    kill_in_the_middle,
    make_images,
    make_intents,
    make_tagged,
    write_conll,
    write_csv,
)

# --- Which rows


def test_folds_have_all_rows_once_and_every_label_in_each() -> None:
    labels = ["a"] * 50 + ["b"] * 20 + ["c"] * 6 + ["d"]
    keys = [i // 2 for i in range(len(labels))]  # pairs of rows that are the same
    parts = [fold_places(keys, labels, fold, 5) for fold in range(1, 6)]
    assert sorted(place for part in parts for place in part) == [i for i in range(77) if labels[i] != "d"]
    for part in parts:
        counts = Counter(labels[i] for i in part)
        assert counts["a"] == 10 and counts["b"] in (2, 4, 6)
        assert {keys[i] for i in part}.isdisjoint(keys[i] for i in range(77) if i not in part)
    with pytest.raises(UserError, match=r"40 folds need as many different rows at least\. Received: 39"):
        fold_places(keys, labels, 1, 40)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "texts.csv", make_intents(90))
    write_conll(folder / "tagged.conll", make_tagged(60))
    x, y = make_images(120, 10, 1)
    np.savez(folder / "digits.npz", x_train=x, y_train=y)
    np.savez(folder / "with_test.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


def test_every_kind_of_data_is_tested_on_once(data) -> None:
    classifier = {"data": str(data / "texts.csv"), "folds": 3}
    tables = [
        BertClassifier().open_data(BertClassifierSettings(**classifier, fold=fold)).splits
        for fold in (1, 2, 3)
    ]
    tested = [text for splits in tables for text in splits["test"].texts]
    validation = tables[0]["validation"].texts
    assert len(tested) == len(set(tested)) and len(tested) + len(validation) == 90
    assert all(splits["validation"].texts == validation for splits in tables)
    assert all(not set(splits["test"].texts) & set(splits["train"].texts) for splits in tables)
    tagged = {"data": str(data / "tagged.conll"), "folds": 3}
    sentences = [BertTagger().open_data(BertTaggerSettings(**tagged, fold=fold)).splits for fold in (1, 2, 3)]
    words = [{s.words for s in splits["test"]} for splits in sentences]
    assert all(words) and not words[0] & words[1] and not words[1] & words[2]
    assert all(
        not {s.words for s in splits["train"]} & mine for splits, mine in zip(sentences, words, strict=True)
    )
    images = {"data": str(data / "digits.npz"), "folds": 3, "image_size": 10}
    pictures = [MnistMlp().open_data(MnistMlpSettings(**images, fold=fold)) for fold in (1, 2, 3)]
    assert sum(len(d.splits["test"]) for d in pictures) + len(pictures[0].splits["validation"]) == 120
    assert len({d.fingerprint for d in pictures}) == 3
    with pytest.raises(UserError, match=r"--folds tests on all rows in turn, and .* brings a test split"):
        MnistMlp().open_data(MnistMlpSettings(**images | {"data": str(data / "with_test.npz")}, fold=1))


@pytest.mark.parametrize(("count", "fold"), [(1, 0), (3, 4), (0, 1)])
def test_folds_that_make_no_sense(count, fold) -> None:
    with pytest.raises(UserError, match=rf"folds must be 0, or 2 at least.*Received: {count} and {fold}"):
        MnistMlpSettings(folds=count, fold=fold)


# --- Runs


def test_folds_are_runs_and_their_mean_is_one(data, karpa, tmp_path) -> None:
    words = [*TINY_DIGITS, "--data", data / "digits.npz", "--epochs", 2, "--logs", tmp_path, "--json"]
    kept = ["--deterministic", "--checkpoint_seconds", 0, "--keep_checkpoints", 1000]
    result = karpa("train", "mnist-mlp", *words, *kept, "--folds", 2)
    assert result.status == 0, result.err
    summary, *runs = (tmp_path / "mnist-mlp" / str(number) for number in (1, 2, 3))
    assert result.json["run"] == str(summary)
    metrics = json.loads((summary / "metrics.json").read_text())
    figures = [json.loads((run / "metrics.json").read_text()) for run in runs]
    accuracies = [row["accuracy"] for row in figures]
    assert metrics["accuracy"] == result.json["metrics"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["deviations"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    assert [row["run"] for row in metrics["folds"]] == list(map(str, runs))
    assert f"accuracy {metrics['accuracy']:.4f} +- " in result.err and "fold 2 of 2: " in result.err
    assert [yaml.safe_load((run / "config.yaml").read_text())["fold"] for run in runs] == [1, 2]
    # Each is a run by itself; all of them together are no model.
    assert karpa("evaluate", runs[0], "--json").json["metrics"]["accuracy"] == accuracies[0]
    result = karpa("evaluate", summary)
    assert result.status == 2 and "is the mean of 2 folds, and holds no model" in result.err
    # What was killed goes on, and what had not begun begins.
    kill_in_the_middle(runs[1])
    (summary / "metrics.json").unlink()
    resumed = karpa("train", "mnist-mlp", "--resume", summary, "--json")
    assert resumed.status == 0, resumed.err
    assert json.loads((summary / "metrics.json").read_text()) == metrics
    shutil.rmtree(runs[1])
    (summary / "assets" / "folds.json").write_text('{"1": "2"}')
    assert (
        karpa("train", "mnist-mlp", "--resume", summary, "--json").json["metrics"] == resumed.json["metrics"]
    )


def test_a_fold_that_cannot_begin_leaves_nothing(data, karpa, tmp_path) -> None:
    words = ["--data", data / "with_test.npz", "--logs", tmp_path / "logs", "--folds", 2, *TINY_DIGITS]
    result = karpa("train", "mnist-mlp", *words)
    assert result.status == 2 and "brings a test split" in result.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "file"), [("bert-classifier", "texts.csv"), ("bert-tagger", "tagged.conll")]
)
def test_folds_of_the_bert_recipes(data, karpa, tmp_path, recipe, file) -> None:
    words = [*BERT_TINY, "--data", data / file, "--epochs", 1, "--logs", tmp_path, "--folds", 2, "--json"]
    result = karpa("train", recipe, *words)
    assert result.status == 0, result.err
    assert len(json.loads((tmp_path / recipe / "1" / "metrics.json").read_text())["folds"]) == 2
    assert "retracing" not in result.err


# --- Too few, too many

ADVICE = "--test_share holds out more, and --folds 5 tests on all of them in turn."


@pytest.mark.parametrize(
    ("rows", "labels", "brings", "line"),
    [
        (60, ["a"] * 30 + ["b"] * 30, False, ""),
        (
            20,
            ["a"] * 10 + ["b"] * 10,
            False,
            f"There are 20 rows to test on: such figures say little. {ADVICE}",
        ),
        (
            60,
            ["a"] * 57 + ["b"] * 3,
            True,
            'There are 60 rows to test on, and "b" has fewer than 5 of them (3): such figures say little. '
            "More rows in it say more.",
        ),
        (
            1,
            ["a"],
            False,
            'There is 1 row to test on, and 2 of 2 labels have fewer than 5 of them ("b": 0): such figures '
            f"say little. {ADVICE}",
        ),
    ],
)
def test_a_thin_test_split_is_said(rows, labels, brings, line) -> None:
    config = MnistMlpSettings()
    assert folds.thin_test(config, rows, labels, ["a", "b"], brings) == line
    assert folds.thin_test(MnistMlpSettings(folds=3, fold=1), rows, labels, ["a", "b"], brings) == ""


def test_a_batch_is_no_larger_than_the_rows() -> None:
    config = MnistMlpSettings(batch_size=512, accumulate=2)
    line = folds.shrink_batch(config, 101, 4)
    assert config.batch_size == 96 and line.startswith("--batch_size 512 is more than the 101 rows")
    assert folds.shrink_batch(config, 101, 4) == "" and config.batch_size == 96
    config = MnistMlpSettings(batch_size=32)
    assert folds.shrink_batch(config, 32, 1) == "" and config.batch_size == 32


def test_both_are_said_when_training(data, karpa, tmp_path) -> None:
    words = [*TINY_DIGITS, "--data", data / "digits.npz", "--epochs", 1, "--logs", tmp_path]
    result = karpa("train", "mnist-mlp", *words, "--batch_size", 5000)
    assert result.status == 0, result.err
    assert "There are 12 rows to test on" in result.err
    assert "--batch_size 5000 is more than the 96 rows to learn from; it is 96 here." in result.err
    assert yaml.safe_load((tmp_path / "mnist-mlp" / "1" / "config.yaml").read_text())["batch_size"] == 96
