"""`multi-task` from tables and CoNLL columns to one served model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.recipes.multi_task import MultiTaskSettings
from karpa_tf.recipes.multi_task.data import heads_of, open_tasks
from karpa_tf.recipes.multi_task.recipe import MultiTaskRecipe
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.watching.watch import read_reference_of
from tests.conftest import (
    BERT_TINY,
    kill_in_the_middle,
    make_intents,
    make_tagged,
    write_conll,
    write_csv,
)

SENTENCE = "Yesterday Ada Moss went to Oslo."


def dated(sentences: list[list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The texts of tagged sentences with a label, as people write them."""
    texts = [" ".join(word for word, _ in sentence).replace(" .", ".") for sentence in sentences]
    return [(text, text.split()[0].lower()) for text in texts]


def write_tasks(folder: Path) -> str:
    """Days and names: 200 sentences have both, 100 names alone, 60 days alone."""
    sentences = make_tagged(300)
    alone = [[*s[:-1], ("again", "O"), (".", "O")] for s in make_tagged(60, seed=5)]
    write_csv(folder / "days.csv", dated(sentences[:200] + alone))
    write_conll(folder / "names.conll", sentences)
    return f"days={folder / 'days.csv'} names={folder / 'names.conll'}"


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """A finished tiny run; tests only read it."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("several")
    words = ["--data", write_tasks(folder), *BERT_TINY, "--epochs", "4", "--weights", "uncertainty"]
    assert main(["train", "multi-task", *words, "--logs", str(folder / "logs")]) == 0
    return folder / "logs" / "multi-task" / "1"


def test_each_task_is_learned_and_compared(several) -> None:
    metrics = json.loads((several / "metrics.json").read_text())
    assert metrics["days_accuracy"] > 0.9 and metrics["names_f1_strict"] > 0.9 and metrics["exact_rows"] > 0.8
    assert metrics["score"] == pytest.approx((metrics["days_accuracy"] + metrics["names_f1_strict"]) / 2)
    assert metrics["loss"] == pytest.approx(metrics["days_loss"] + metrics["names_loss"])
    assert {"days_macro_f1", "days_ece", "names_precision", "names_f1"} <= set(metrics)
    compared = metrics["baselines"]
    assert "days_accuracy" in compared["most frequent"] and "names_f1" in compared["gazetteer"]
    facts = metrics["facts"]
    assert 0 < facts["rows of all tasks"] < facts["days rows"] < facts["texts"]
    weights = RunFolder(several).best_weights
    assert weights.exists()


def test_evaluate_says_what_training_said_and_puts_single_runs_beside(several, tagged, karpa) -> None:
    result = karpa("evaluate", several, "--beside", f"names={tagged}", "--json")
    assert result.status == 0, result.err
    metrics = json.loads((several / "metrics.json").read_text())
    assert result.json["metrics"] == {name: metrics[name] for name in result.json["metrics"]}
    single = result.json["baselines"]["single-task runs"]
    assert single["names_f1_strict"] > 0.8 and "days_accuracy" not in single and "exact_rows" not in single
    assert result.json["facts"]["names texts that the single-task run learned from"] > 0


def test_evaluate_reads_other_data_of_a_task(several, karpa, tmp_path) -> None:
    path = write_csv(tmp_path / "test.csv", dated(make_tagged(20, seed=9)))
    result = karpa("evaluate", several, "--data", f"days={path}", "--json")
    assert result.json["metrics"]["days_accuracy"] > 0.8 and "names_f1" not in result.json["metrics"]
    for data, said in (
        (f"topics={path}", "--data: the run has no task topics. It has: days, names."),
        (str(path), "--data is NAME=PATH NAME=PATH"),
    ):
        result = karpa("evaluate", several, "--data", data)
        assert result.status == 2 and said in result.err, result.err


def test_predict_and_explain_answer_all_tasks(several, karpa, tmp_path) -> None:
    result = karpa("predict", several, SENTENCE, "--json")
    (row,) = result.json["predictions"]
    assert row["days_label"] == "yesterday"
    assert row["names_tags"] == ["O", "B-PERSON", "I-PERSON", "O", "O", "B-CITY", "O"]
    lines = karpa("predict", several, SENTENCE).out.splitlines()
    assert lines[0] == SENTENCE and lines[1].startswith("  days: yesterday  0.") and "  names:" in lines
    assert any(line.startswith("  Oslo\tB-CITY") for line in lines)
    karpa("predict", several, SENTENCE, "--output", tmp_path / "said.csv")
    (cells,) = csv.DictReader((tmp_path / "said.csv").open(encoding="utf-8"))
    assert cells["days_label"] == "yesterday" and cells["days_confidence"] == cells["days_yesterday"]
    result = karpa("predict", several, " ")
    assert result.status == 2 and "Row 1 has an empty text" in result.err
    found = karpa("explain", several, SENTENCE, "--json").json["explanations"]
    assert [one["claim"] for one in found] == [
        "days: yesterday",
        "Ada: B-PERSON",
        "Moss: I-PERSON",
        "Oslo: B-CITY",
    ]
    parts = {word["word"]: word["attribution"] for word in found[0]["words"]}
    assert max(parts, key=lambda word: parts[word]) == "Yesterday"


def test_a_signature_a_task_and_one_of_all(several, karpa, tmp_path) -> None:
    result = karpa("export", several, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    assert set(result.json["signatures"]) == {"serving_default", "days", "names"}
    path = Path(result.json["savedmodel"])
    recipe = MultiTaskRecipe()
    task, model = recipe.open_model(RunFolder(several))
    rows = recipe.open_data(task.config).splits["test"]
    rows = rows.take(rows.places("days", "names"))
    served = tf.saved_model.load(str(path)).signatures
    text = tf.constant([*rows.texts, "", "   "])
    every, days, names = (served[name](text=text) for name in ("serving_default", "days", "names"))
    assert set(every) == {f"days_{k}" for k in days} | {f"names_{k}" for k in names}
    for name, outputs in (("days", days), ("names", names)):
        for key, value in outputs.items():
            if value.dtype == tf.float32:
                np.testing.assert_allclose(every[f"{name}_{key}"], value, atol=1e-6)
            else:
                np.testing.assert_array_equal(every[f"{name}_{key}"], value)
    # What evaluation says, and a text without words keeps its row.
    examples, heads = recipe.batch(task, rows), heads_of(task.names)
    given = list(Outputs(model, examples.batches))
    expected = examples.heads["days"].probabilities(examples.of(given, "days"))
    np.testing.assert_allclose(days["probabilities"][:-2], expected, atol=1e-5)
    tags, _ = examples.heads["names"].predict(examples.of(given, "names"), heads["names"].names)
    assert [[t.decode() for t in row if t] for row in names["tags"].numpy()] == [*tags, [], []]
    assert days["label"].shape == (len(rows) + 2,) and not names["words"][-2:].numpy().any()
    report = json.loads((path / "assets.extra" / "rowwise.json").read_text())["signatures"]
    assert all(report[name]["rowwise"] for name in ("serving_default", "days", "names"))
    labels = (path / "assets" / "labels.txt").read_text().splitlines()
    assert labels[0] == "days: then" and "names/B-CITY" in labels
    assert "`days`: `label`" in (path / "assets.extra" / "model_card.md").read_text()
    # What `karpa-tf watch --signature days` corrects shares with: held-out rows of that task alone.
    reference = read_reference_of("", path, "days")
    assert reference is not None and list(reference.labels) == heads["days"].names
    held_out = recipe.open_data(task.config).splits["validation"]
    assert reference.counts.sum() == len(held_out.places("days"))
    assert read_reference_of("", path, "names") is read_reference_of("", path, "serving_default") is None


def test_long_texts_are_labelled_by_their_beginning_and_tagged_whole(several) -> None:
    recipe = MultiTaskRecipe()
    task, model = recipe.open_model(RunFolder(several))
    begin = " ".join([SENTENCE] * 4)
    texts = [f"{begin} {rest}" for rest in ("Then Eva left Lima. " * 20, "Today Max left Rome.")]
    answers = recipe.served(task, model).function(text=tf.constant([*texts, SENTENCE]))
    probabilities = answers["days_probabilities"].numpy()
    np.testing.assert_allclose(probabilities[0], probabilities[1], atol=1e-5)
    assert answers["names_words"].numpy().tolist() == [4 * 7 + 20 * 5, 4 * 7 + 5, 7]
    tags = answers["names_tags"].numpy()[0]
    assert (tags[4 * 7 + 3 :: 5] == b"B-CITY").mean() > 0.9


def test_two_tables_resume_to_the_same_weights(karpa, tmp_path) -> None:
    """One has all texts, and the other a part of them and some of its own, at another temperature."""
    rows = make_intents(150)
    write_csv(tmp_path / "topic.csv", rows)
    others = [text for text, _ in rows[:60] + make_intents(40, seed=3)]
    write_csv(tmp_path / "polarity.csv", [(text, "ask" if "?" in text else "tell") for text in others])
    data = f"topic={tmp_path / 'topic.csv'} polarity={tmp_path / 'polarity.csv'}"
    keep = ["--deterministic", "--checkpoint_seconds", 0, "--keep_checkpoints", 1000]
    words = ["--data", data, *BERT_TINY, "--epochs", 2, "--temperature", 3, *keep]
    whole = karpa("train", "multi-task", *words, "--logs", tmp_path / "logs", "--json")
    assert whole.status == 0, whole.err
    run = tmp_path / "logs" / "multi-task" / "1"
    for kind in ("of polarity, ", "of topic, ", "of topic and polarity"):
        assert kind in whole.err
    kill_in_the_middle(run)
    resumed = karpa("train", "multi-task", "--resume", run, "--json")
    assert resumed.status == 0, resumed.err
    assert resumed.json["metrics"] == whole.json["metrics"]
    signature = MultiTaskRecipe().signature(RunFolder(run), None)
    assert list(signature({"text": np.array([b"stop"])})) == [
        f"{task}_{output}" for task in ("topic", "polarity") for output in ("label", "probabilities")
    ]


# --- Data


def test_a_text_is_in_one_split_whatever_its_task(tmp_path) -> None:
    splits = open_tasks(MultiTaskSettings(data=write_tasks(tmp_path), test_share=0.2)).splits
    homes: dict[str, set[str]] = {}
    for split, rows in splits.items():
        for text in rows.texts:
            homes.setdefault("".join(text.split()), set()).add(split)
    assert all(len(home) == 1 for home in homes.values())
    both = splits["train"].places("days", "names")
    assert len(both) > 100
    place = both[0]
    assert splits["train"].texts[place].replace(".", " .").split() == list(splits["train"].words[place])
    assert sum(truth is not None for rows in splits.values() for truth in rows.truths["names"]) == 300


def test_what_a_test_split_holds_is_left_out_of_the_others_training(tmp_path) -> None:
    sentences = make_tagged(40)
    texts = list(dict.fromkeys(dated(sentences)))
    write_conll(tmp_path / "names.conll", sentences)
    write_csv(tmp_path / "days" / "train.csv", texts[:20])
    write_csv(tmp_path / "days" / "test.csv", texts[20:])
    data = f"names={tmp_path / 'names.conll'} days={tmp_path / 'days'}"
    rows = open_tasks(MultiTaskSettings(data=data)).splits
    held_out = {"".join(text.split()) for text, _ in texts[20:]}
    assert not held_out & {"".join(text.split()) for text in rows["train"].texts}
    assert len(rows["test"].places("days")) == len(texts) - 20
    # Two test splits of their own: both stay as they are.
    write_csv(tmp_path / "other" / "train.csv", [(text, text[-2]) for text, _ in texts[10:]])
    write_csv(tmp_path / "other" / "test.csv", [(text, text[-2]) for text, _ in texts[:10]])
    tasks = open_tasks(MultiTaskSettings(data=f"days={tmp_path / 'days'} other={tmp_path / 'other'}"))
    assert len(tasks.splits["test"].places("days")) == len(texts) - 20
    assert len(tasks.splits["test"].places("other")) == 10
    assert tasks.brings_test and any("left out of training" in note for note in tasks.notes)


def test_the_embedded_sentences_have_both_labels() -> None:
    rows = open_tasks(MultiTaskSettings()).splits["test"]
    assert len(rows.places("intents", "slots")) == len(rows) > 300


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": "train.csv"}, "data is NAME=PATH NAME=PATH, one a task"),
        ({"data": "a=1.csv b"}, "Received: b."),
        ({"data": "a=1.csv a=2.csv"}, "data has two tasks of the name a: 1.csv and 2.csv."),
        ({"data": "a=1.csv"}, "multi-task takes two tasks at least"),
        ({"data": "a=1.csv serving_default=2.csv"}, "Received: serving_default=2.csv."),
        ({"data": "a=1.csv b=embedded"}, "embedded stands alone"),
        ({"data": "a='1.csv b=2.csv"}, "data has a quote that does not end"),
        ({"task_weights": "intent=2"}, 'there is no task intent; did you mean "intents"?'),
        ({"task_weights": "intents=0"}, "task_weights are numbers above 0. Received: intents=0."),
        ({"task_weights": "intents=2", "weights": "uncertainty"}, "task_weights goes with weights fixed"),
        ({"folds": 3}, "folds does not go with this recipe"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_wrong_settings_are_one_sentence(values, said) -> None:
    with pytest.raises(UserError) as error:
        MultiTaskSettings(**values)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("b.json", "{}", "data: b must be a table of texts and labels (.csv"),
        ("b/readme.txt", "hello", "holds no training data"),
        ("b.csv", "text,label\n", "b.csv is empty"),
        ("b.conll", "", "b.conll is empty"),
        ("", "", "There is no file or folder"),
        ("b.csv", "text,label\nx,only\ny,only\n", "b.csv has one label only"),
    ],
)
def test_wrong_data_is_one_sentence(karpa, tmp_path, file, content, said) -> None:
    write_csv(tmp_path / "a.csv", make_intents(30))
    path = tmp_path / (file or "gone.csv")
    if file:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    path = path.parent if path.parent != tmp_path else path
    data = f"a={tmp_path / 'a.csv'} b={path}"
    result = karpa("train", "multi-task", "--data", data, *BERT_TINY, "--logs", tmp_path / "logs")
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "logs").exists()


def test_a_task_whose_texts_are_all_held_out_is_one_sentence(tmp_path) -> None:
    texts = make_intents(30)
    for split, rows in (("train", make_intents(30, seed=1)), ("test", texts)):
        write_csv(tmp_path / "a" / f"{split}.csv", rows)
    write_csv(tmp_path / "b.csv", texts)
    with pytest.raises(
        UserError, match="b has no rows to learn from: the other tasks hold all of its texts out"
    ):
        open_tasks(MultiTaskSettings(data=f"a={tmp_path / 'a'} b={tmp_path / 'b.csv'}"))


def test_a_tsv_is_seen_by_its_heading(tmp_path) -> None:
    (tmp_path / "days.tsv").write_text(
        "label\ttext\n" + "".join(f"{y}\t{x}\n" for x, y in dated(make_tagged(60)))
    )
    names = "\n\n".join("\n".join(f"{w}\t{t}" for w, t in s) for s in make_tagged(60, seed=4))
    (tmp_path / "names.tsv").write_text(names + "\n")
    data = f"days={tmp_path / 'days.tsv'} names={tmp_path / 'names.tsv'}"
    heads = heads_of(open_tasks(MultiTaskSettings(data=data)).record.labels)
    assert {name: head.kind for name, head in heads.items()} == {"days": "texts", "names": "words"}


def test_beside_refuses_runs_of_other_tasks(several, classified, digits, karpa) -> None:
    for words, said in (
        (f"names={digits}", "--beside takes runs of bert-classifier and bert-tagger"),
        (f"days={classified}", "their labels differ"),
        (f"topics={classified}", "--beside: there are no rows of a task topics"),
    ):
        result = karpa("evaluate", several, "--beside", words)
        assert result.status == 2 and said in result.err, result.err
