"""`bert-tagger` from CoNLL columns to a served model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.recipes.bert_tagger.recipe import BertTagger
from karpa_tf.recipes.families.examples import traced_decoder
from karpa_tf.recipes.families.tag_words import TagWords, decode_tags
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import BERT_TINY, make_tagged, write_conll


def test_it_learns_and_is_evaluated_beside_a_gazetteer(tagged) -> None:
    metrics = json.loads((tagged / "metrics.json").read_text())
    assert {"precision", "recall", "f1", "f1_strict", "accuracy", "loss"} <= set(metrics)
    assert metrics["f1_strict"] > 0.9
    assert set(metrics["baselines"]) == {"gazetteer"}
    assert metrics["graph_traces"] == 2


def test_evaluate_says_what_training_said(tagged, karpa) -> None:
    result = karpa("evaluate", tagged, "--json")
    metrics = json.loads((tagged / "metrics.json").read_text())
    assert result.json["metrics"] == {name: metrics[name] for name in result.json["metrics"]}
    assert "CITY" in result.err and "PERSON" in result.err


def test_evaluate_reads_other_data(tagged, karpa, tmp_path) -> None:
    path = write_conll(tmp_path / "test.conll", make_tagged(20, seed=9))
    result = karpa("evaluate", tagged, "--data", path, "--json")
    assert result.json["metrics"]["f1_strict"] > 0.8 and "sentences: 20" in result.err
    path = write_conll(tmp_path / "other.conll", [[("Mars", "B-PLANET")]])
    result = karpa("evaluate", tagged, "--data", path)
    assert result.status == 2 and "PLANET, which training never saw" in result.err


def test_predict_gives_words_and_tags(tagged, karpa) -> None:
    result = karpa("predict", tagged, "Yesterday Ada Moss went to Oslo.", "--json")
    (row,) = result.json["predictions"]
    assert row["tokens"] == ["Yesterday", "Ada", "Moss", "went", "to", "Oslo", "."]
    assert row["tags"] == ["O", "B-PERSON", "I-PERSON", "O", "O", "B-CITY", "O"]
    assert len(row["scores"]) == 7 and all(0 < s <= 1 for s in row["scores"])
    assert "Oslo\tB-CITY" in karpa("predict", tagged, "Yesterday Ada Moss went to Oslo.").out


def test_the_savedmodel_says_what_evaluation_says(tagged, karpa, tmp_path) -> None:
    result = karpa("export", tagged, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    path = Path(result.json["savedmodel"])
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    recipe = BertTagger()
    task, model = recipe.open_model(RunFolder(tagged))
    sentences = recipe.open_data(task.config).splits["test"]
    coded = recipe.batch(task, sentences)
    predicted, _ = coded.predict(Outputs(model, coded.batches), task.names)
    outputs = served(text=tf.constant([" ".join(s.words) for s in sentences]))
    for row, (sentence, tags) in enumerate(zip(sentences, predicted, strict=True)):
        words = [w.decode() for w in outputs["tokens"][row].numpy() if w]
        assert words == list(sentence.words)
        assert [t.decode() for t in outputs["tags"][row].numpy() if t] == tags
    assert (path / "assets" / "labels.txt").read_text().split("\n")[:-1] == task.names


def test_odd_texts_keep_their_row(tagged, karpa) -> None:
    task, model = BertTagger().open_model(RunFolder(tagged))
    tag = TagWords(model, task.wordpiece, task.names, task.config.sequence_length)
    long = " ".join(["Ada", "Moss", "went", "to", "Oslo", "."] * 100)
    outputs = tag(tf.constant(["", long, "我去 Oslo", "   "]))
    tokens = outputs["tokens"].numpy()
    assert tokens.shape == (4, 600) == outputs["scores"].shape
    assert [w.decode() for w in tokens[1]] == long.split()
    assert [w.decode() for w in tokens[2] if w] == ["我", "去", "Oslo"]
    assert not tokens[0].any() and not tokens[3].any()
    # Windows of a long text say what a short text says, but for what is beside their borders.
    tags = outputs["tags"].numpy()[1]
    assert (tags[4::6] == b"B-CITY").mean() > 0.9
    assert tag(tf.constant(["", ""]))["tokens"].shape == (2, 0)


def test_the_most_probable_valid_tags_are_found() -> None:
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    rng = np.random.default_rng(0)
    lengths = [3, 0, 1, 4]
    scores = np.log(rng.dirichlet(np.ones(5), sum(lengths))).astype(np.float32)
    found = decode_tags(tf.constant(scores), tf.constant(lengths, tf.int64), names).numpy()
    begin = 0
    for length in lengths:
        part = scores[begin : begin + length]

        def valid(path: tuple[int, ...]) -> bool:
            before = "O"
            for tag in path:
                if names[tag].startswith("I-") and before[2:] != names[tag][2:]:
                    return False
                before = names[tag]
            return True

        paths = filter(valid, itertools.product(range(5), repeat=length))
        best = max(paths, key=lambda path: sum(part[i, tag] for i, tag in enumerate(path)))
        assert tuple(found[begin : begin + length]) == best
        begin += length
    none = decode_tags(tf.zeros([0, 5]), tf.constant([0, 0], tf.int64), names)
    assert none.shape == (0,)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Ada B-PERSON\nMoss\n", "line 2"),
        ("Ada PERSON\n", 'line 1: "PERSON" is no tag'),
        ("Ada O\nMoss O\n", "no tag but O"),
        ("", "is empty"),
    ],
)
def test_wrong_data_is_one_sentence(karpa, tmp_path, content, says) -> None:
    path = tmp_path / "bad.conll"
    path.write_text(content, encoding="utf-8")
    result = karpa("train", "bert-tagger", "--data", path, *BERT_TINY, "--logs", tmp_path / "logs")
    assert result.status == 2 and says in result.err and "Traceback" not in result.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_int8_export(tagged, karpa, tmp_path) -> None:
    result = karpa("export", tagged, "--to", tmp_path, "--quantize", "int8", "--json")
    assert result.status == 0, result.err
    card = (Path(result.json["savedmodel"]) / "assets.extra" / "model_card.md").read_text()
    plain, small = (result.json["costs"]["table"][name] for name in ("float32", "int8"))
    assert abs(small["f1_strict"] - plain["f1_strict"]) < 0.05
    said = f"int8 has {small['bytes'] / plain['bytes']:.2f} of float32's bytes"
    assert said in result.err and said in card and "## int8 beside float32" in card
    assert card.count("| float32 |") == card.count("| int8 |") == 1 and "cpu_s_1000_rows: processor" in card


def test_evaluating_again_and_again_is_traced_once() -> None:
    names = ("O", "B-X", "I-X")
    for words in (3, 5, 8):
        scores = tf.math.log(tf.fill([words, 3], 1 / 3))
        assert traced_decoder(names)(scores, tf.constant([words], tf.int64)).shape == (words,)
    assert traced_decoder(names).experimental_get_tracing_count() == 1
