"""`retriever` from tables of entries and questions to a served model."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.judging.retrieval import first_right_ranks, retrieval_metrics
from karpa_tf.recipes.retriever import RetrieverEvaluateOptions
from karpa_tf.recipes.retriever.bm25 import Bm25, pieces_of
from karpa_tf.recipes.retriever.recipe import Retriever
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.wordpiece import SPECIAL, WordPiece
from tests.conftest import BERT_TINY, make_intents, write_csv
from tests.presets import write_reader

ANSWERS = {"music": "Say what to play.", "weather": "Look out, or ask.", "timer": "Name a time."}
HEADER = ("entry", "text", "answer")


def entries_of(count: int, seed: int) -> list[tuple[str, ...]]:
    """Ids, texts of intents and the answers to these."""
    rows = make_intents(count, seed)
    return [(f"e{number}", text, ANSWERS[label]) for number, (text, label) in enumerate(rows)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Entries (entries.csv) and questions with their answers (questions.csv)."""
    folder = tmp_path_factory.mktemp("tables")
    write_csv(folder / "entries.csv", entries_of(30, seed=1), HEADER)
    questions = [(text, ANSWERS[label]) for text, label in make_intents(120)]
    write_csv(folder / "questions.csv", questions, ("text", "answer"))
    return folder


@pytest.fixture(scope="module")
def run(tables) -> Path:
    """A finished tiny run; tests only read it."""
    from karpa_tf.cli import main

    words = ["--data", tables / "questions.csv", "--entries", tables / "entries.csv", *BERT_TINY]
    words += ["--epochs", 2, "--top", 3, "--logs", tables / "logs"]
    assert main(["train", "retriever", *map(str, words)]) == 0
    return tables / "logs" / "retriever" / "1"


# --- Figures


def test_ranks_are_those_of_a_sorted_list() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, (40, 12)).astype(float)  # with equal ones
    right = random.random((40, 12)) < 0.2
    right[np.arange(40), random.integers(0, 12, 40)] = True
    expected = [
        1 + next(place for place, entry in enumerate(np.argsort(-row, kind="stable")) if good[entry])
        for row, good in zip(scores, right, strict=True)
    ]
    assert first_right_ranks(scores, right).tolist() == expected
    found = retrieval_metrics(np.array([1, 2, 5, 10]))
    assert found == {"recall_at_1": 0.25, "recall_at_5": 0.75, "mrr": pytest.approx(1.8 / 4)}


def test_bm25_is_its_formula_in_any_script() -> None:
    texts = ["cat eats cat", "dog", "狗 eats 猫", "dogs eat dogs and dogs", "猫"]
    wordpiece = WordPiece([*SPECIAL, "cat", "dog", "##s", "eats", "eat", "and", "狗", "猫"])
    documents = pieces_of(wordpiece, texts)
    queries = ["cat cat dog", "猫", "nothing of it", "", "dogs"]
    scores = Bm25(documents, len(wordpiece))(wordpiece.tokenize(tf.constant(queries))).numpy()
    mean = sum(map(len, documents)) / len(documents)
    for query, row in zip(pieces_of(wordpiece, queries), scores, strict=True):
        for document, score in zip(documents, row, strict=True):
            expected = 0.0
            for piece in query:
                often = Counter(document)[piece]
                having = sum(piece in other for other in documents)
                idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
                expected += idf * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * len(document) / mean))
            assert score == pytest.approx(expected, rel=1e-5)
    assert scores[1].argmax() == 4 and scores[2].max() == 0 and scores.shape == (5, 5)


# --- A run


def test_a_run_finds_answers_and_compares_three_rankings(run, karpa) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["recall_at_1"] > 0.9 and metrics["recall_at_5"] >= metrics["recall_at_1"]
    assert {"validation_recall_at_1", "mrr"} <= set(metrics)
    result = karpa("evaluate", run, "--json")
    assert result.status == 0, result.err
    assert result.json["metrics"] == {name: metrics[name] for name in ("recall_at_1", "recall_at_5", "mrr")}
    assert set(result.json["baselines"]) == {"dense", "bm25", "most frequent"}
    facts = result.json["facts"]
    assert (
        facts["entries"] == 30 and facts["ranking"] == "both" and 0 <= facts["weight of dense in both"] <= 1
    )
    assert result.json["baselines"]["most frequent"]["recall_at_1"] == pytest.approx(1 / 3, abs=0.1)


def test_the_rankings_are_what_they_are_called(run) -> None:
    """By hand: cosines of the vectors, and of both the sum with the share of BM25."""
    task, _ = Retriever().open_model(RunFolder(run))
    search, texts = task.search, ["play a song", "will it snow"]
    scores = {name: search.score(tf.constant(texts), name).numpy() for name in ("both", "dense", "bm25")}
    vectors = search.encoder.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    dense = vectors @ search.encoder.embed(search.entries.texts).T
    np.testing.assert_allclose(scores["dense"][:, search.document_of], dense, atol=1e-5)
    share = scores["bm25"] / scores["bm25"].max(axis=1, keepdims=True)
    both = search.weight * scores["dense"] + (1 - search.weight) * share
    np.testing.assert_allclose(scores["both"], both, atol=1e-6)
    with pytest.raises(UserError, match="Row 1 has an empty text: there is nothing to look up"):
        search.signature("dense", 2).predict([{"text": " "}])


def test_entries_are_replaced_without_training(run, karpa, tmp_path) -> None:
    more = [("late", "WILL it snow  in Oslo?", "No."), ("same", "will it snow in oslo?", "Perhaps.")]
    new = write_csv(tmp_path / "new.csv", [*more, *entries_of(4, seed=2)], HEADER)
    result = karpa("export", run, "--to", tmp_path, "--entries", new, "--json")
    assert result.status == 0, result.err
    folder, texts = tmp_path / "retriever" / "1", ["will it snow in Oslo?", "set a timer for Ada"]
    assert result.json["savedmodel"] == str(folder)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](text=tf.constant(texts))
    assert {name: value.shape for name, value in served.items()} == dict.fromkeys(served, (2, 3))
    answers = karpa("predict", run, *texts, "--entries", new, "--json").json["predictions"]
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(answer["score"], served["score"][row], atol=1e-5)
        for name in ("entry", "answer"):
            assert answer[name] == [value.decode() for value in served[name][row].numpy()]
    # Of the same pieces: equal to the bit, and in the order of the table.
    assert answers[0]["entry"][:2] == ["late", "same"] and answers[0]["answer"][0] == "No."
    assert answers[0]["score"][0] == answers[0]["score"][1]
    with (folder / "assets" / "entries.csv").open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)][:3] == [HEADER, *more]
    seen = json.loads((folder / "assets.extra" / "rowwise.json").read_text())["signatures"]
    assert seen["serving_default"]["rowwise"], seen
    assert "among 6 entries" in (folder / "assets.extra" / "model_card.md").read_text()


@pytest.mark.slow
def test_other_entries_and_other_questions_are_evaluated(run, tables, karpa, tmp_path) -> None:
    write_csv(tmp_path / "new.csv", entries_of(9, seed=4), HEADER)
    options = RetrieverEvaluateOptions(entries=str(tmp_path / "new.csv"))
    found = Retriever().evaluate(RunFolder(run), options)
    assert found.facts["entries"] == 9
    assert found.by_row()["recall_at_1"].figure == found.metrics["recall_at_1"]
    write_csv(tmp_path / "asked.csv", [("play music", "Say what to play.")], ("text", "answer"))
    result = karpa("evaluate", run, "--data", tmp_path / "asked.csv", "--json")
    assert result.status == 0 and result.json["facts"]["rows"] == 1, result.err
    write_csv(tmp_path / "few.csv", [("1", "play a song", "Say what to play.")], HEADER)
    result = karpa("evaluate", run, "--entries", tmp_path / "few.csv")
    assert result.status == 2 and "which none of the 1 entries has" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(("ranking", "method"), [("dense", "none"), ("bm25", "none"), ("both", "lora")])
def test_a_preset_as_it_is_or_with_adapters(ranking, method, run, tables, karpa, tmp_path) -> None:
    """Training rows are the entries then; a ranking serves what it needs alone."""
    preset = write_reader(tmp_path / "preset", run / "assets" / "vocab.txt")
    words = ["--preset", preset, "--method", method, "--sequence_length", 32, "--ranking", ranking]
    words += ["--epochs", 1, "--logs", tmp_path, "--precision", "float32"]
    result = karpa("train", "retriever", "--data", tables / "questions.csv", *words)
    assert result.status == 0, result.err
    if method == "none":
        shutil.rmtree(preset)  # the run has what it needs
    result = karpa("evaluate", tmp_path / "retriever" / "1", "--json")
    assert result.json["facts"]["entries"] == 108 and len(result.json["baselines"]) == 3
    assert karpa("export", tmp_path / "retriever" / "1", "--to", tmp_path / "models", "--force").status == 0
    entries = (tmp_path / "models" / "retriever" / "1" / "assets" / "entries.csv").read_text()
    assert len(entries.splitlines()) == 109  # those of the run
    served = tf.saved_model.load(str(tmp_path / "models" / "retriever" / "1"))
    found = served.signatures["serving_default"](text=tf.constant(["play a song"]))
    assert found["answer"].numpy()[0, 0].decode() in ANSWERS.values() and found["entry"].shape == (1, 5)
    names = {variable.name.split(":")[0].split("_")[0] for variable in served.weights}
    assert ("bm25" in names) == (ranking != "dense") and ("entries" in names) == (ranking != "bm25")


@pytest.mark.slow
def test_it_begins_with_another_run_and_goes_on(run, tables, karpa, tmp_path) -> None:
    """Of other answers: the network has none."""
    write_csv(tmp_path / "more.csv", [*entries_of(30, seed=1), ("x", "tell a joke", "No.")], HEADER)
    words = ["--data", tables / "questions.csv", "--entries", tmp_path / "more.csv", *BERT_TINY]
    words += ["--init", run, "--learning_rate", 1e-12, "--epochs", 1, "--logs", tmp_path]
    result = karpa("train", "retriever", *words, "--json")
    assert result.status == 0, result.err
    before = json.loads((run / "metrics.json").read_text())
    assert result.json["metrics"]["validation_recall_at_1"] >= before["validation_recall_at_1"] - 0.1
    write_csv(tmp_path / "more.csv", entries_of(31, seed=1), HEADER)
    result = karpa("train", "retriever", "--resume", tmp_path / "retriever" / "1", "--epochs", 2)
    assert result.status == 2 and "is not the data that" in result.err


# --- Wrong input


def table(path: Path, *rows: tuple[str, ...], header: tuple[str, ...] = HEADER) -> Path:
    return write_csv(path, list(rows), header)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([("1", "", "Yes."), ("2", "b", "No.")], HEADER, 'line 2 has nothing in the column "text"'),
        ([("1", "a", ""), ("2", "b", "No.")], HEADER, 'line 2 has nothing in the column "answer"'),
        ([("1", "a", "Yes."), ("1", "b", "No.")], HEADER, 'two entries of the id "1", in lines 2 and 3'),
        ([], HEADER, "is empty: it has no rows below its header"),
        ([("1", "a", "Yes.")], ("id", "text", "answer"), 'has no column "entry"'),
        ([("1", "a", "Yes.")], HEADER, "which none of the 1 entries has"),
    ],
)
def test_wrong_entries_are_one_sentence(rows, header, said, tables, run, karpa, tmp_path) -> None:
    entries = table(tmp_path / "wrong.csv", *rows, header=header)
    data = ["--data", tables / "questions.csv"]
    result = karpa("train", "retriever", *data, "--entries", entries, "--logs", tmp_path / "logs")
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "logs").exists()
    if "which none" not in said:
        result = karpa("export", run, "--entries", entries, "--to", tmp_path / "models")
        assert result.status == 2 and said in result.err and not (tmp_path / "models").exists(), result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--entries", "entrees.csv"], 'no table of entries "entrees.csv"; did you mean "entries.csv"?'),
        (["--answer", "reply"], "name yours with --answer"),
        (["--answer", "text"], "text, answer and entry name three columns"),
        (["--method", "none"], "method none needs a preset"),
        (["--folds", 3], "folds does not go with this recipe"),
        (["--ranking", "bm52"], 'did you mean "bm25"?'),
        (["--accumulate", 2], "The contrastive loss compares all rows of a batch"),
    ],
)
def test_wrong_settings_are_one_sentence(words, said, tables, karpa, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tables)
    line: list[Any] = ["--data", "questions.csv", *BERT_TINY, *words, "--logs", tmp_path / "logs"]
    result = karpa("train", "retriever", *line)
    assert result.status == 2 and said in result.err, result.err
