"""`bert-classifier` from a table to a served model."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import yaml

from karpa_tf.recipes.bert_classifier.classify import Classify
from karpa_tf.recipes.bert_classifier.recipe import BertClassifier
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import BERT_TINY, kill_in_the_middle, make_intents, write_csv
from tests.events import read_events, read_text
from tests.presets import write_reader


def assert_same_weights(run: Path, other: Path) -> None:
    one, two = (BertClassifier().open_model(RunFolder(path))[1].get_weights() for path in (run, other))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_learns_and_is_evaluated_beside_baselines(classified) -> None:
    metrics = json.loads((classified / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9 > 2 * metrics["baselines"]["most frequent"]["accuracy"]
    assert {"accuracy", "macro_f1", "ece", "loss", "validation_accuracy"} <= set(metrics)
    assert metrics["baselines"]["tf-idf + svm"]["accuracy"] > 0.5
    assert metrics["facts"]["rows"] > 0 and metrics["facts"]["rows whose text is in training"] == 0


def test_the_run_folder_is_complete(classified) -> None:
    for name in ("config.yaml", "command.txt", "environment.json", "metrics.json", "best.weights.h5"):
        assert (classified / name).is_file()
    assert {p.name for p in (classified / "assets").iterdir()} >= {"vocab.txt", "labels.json", "encoder.json"}
    assert yaml.safe_load((classified / "config.yaml").read_text())["learning_rate"] > 0


def test_the_step_is_traced_once_a_bucket(classified) -> None:
    metrics = json.loads((classified / "metrics.json").read_text())
    buckets = yaml.safe_load((classified / "config.yaml").read_text())["buckets"]
    assert metrics["graph_traces"] == buckets == 2


def test_the_same_config_trains_to_the_same_weights(classified, karpa, tmp_path) -> None:
    result = karpa(
        "train", "bert-classifier", "--config", classified / "config.yaml", "--logs", tmp_path, "--json"
    )
    assert result.status == 0, result.err
    assert_same_weights(tmp_path / "bert-classifier" / "1", classified)
    assert set(result.json) == {"run", "metrics"}


def test_resume_goes_on_to_the_same_weights(intents_file, karpa, tmp_path) -> None:
    run = tmp_path / "logs" / "bert-classifier" / "1"
    whole = karpa(
        "train", "bert-classifier", "--data", intents_file, *BERT_TINY, "--epochs", 2, "--deterministic",
        "--checkpoint_seconds", 0, "--keep_checkpoints", 1000, "--logs", tmp_path / "logs", "--json",
    )  # fmt: skip
    assert whole.status == 0, whole.err
    kill_in_the_middle(run)
    resumed = karpa("train", "bert-classifier", "--resume", run, "--json")
    assert resumed.status == 0, resumed.err
    assert resumed.json["metrics"] == whole.json["metrics"]


# --- Evaluate


def test_evaluate_says_what_training_said(classified, karpa) -> None:
    result = karpa("evaluate", classified, "--json")
    report = result.json
    assert set(report) == {"recipe", "run", "data", "metrics", "baselines", "facts"}
    metrics = json.loads((classified / "metrics.json").read_text())
    assert report["metrics"] == {name: metrics[name] for name in report["metrics"]}
    assert "precision" in result.err  # the table of the classes


def test_evaluate_reads_every_row_of_a_file_and_reports_duplicates(classified, karpa, tmp_path) -> None:
    path = write_csv(tmp_path / "test.csv", [*make_intents(30, seed=7), make_intents(300)[0]])
    result = karpa("evaluate", classified, "--data", path, "--json")
    assert result.json["data"] == str(path) and "rows: 31" in result.err
    assert "rows whose text is in training: " in result.err


def test_a_folder_with_a_test_split_is_evaluated_on_it(karpa, tmp_path) -> None:
    folder = tmp_path / "data"
    write_csv(folder / "train.csv", make_intents(120))
    write_csv(folder / "test.csv", make_intents(33, seed=5))
    result = karpa(
        "train", "bert-classifier", "--data", folder, *BERT_TINY, "--epochs", 1, "--logs", tmp_path / "logs"
    )
    assert result.status == 0, result.err
    assert "33 to test" in result.err
    metrics = json.loads((tmp_path / "logs/bert-classifier/1/metrics.json").read_text())
    assert metrics["facts"]["rows"] == 33


def test_an_unknown_label_is_one_sentence(classified, karpa, tmp_path) -> None:
    path = write_csv(tmp_path / "test.csv", [("play a song", "musik")])
    result = karpa("evaluate", classified, "--data", path)
    assert result.status == 2 and 'the label "musik"' in result.err and 'did you mean "music"' in result.err


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_noticed_before_training(karpa, tmp_path, split) -> None:
    write_csv(tmp_path / "data" / "train.csv", make_intents(60))
    write_csv(tmp_path / "data" / f"{split}.csv", [*make_intents(6), ("play a song", "musik")])
    result = karpa("train", "bert-classifier", "--data", tmp_path / "data", "--logs", tmp_path / "logs")
    assert result.status == 2 and f'({split} split) has the label "musik"' in result.err
    assert not (tmp_path / "logs").exists()


def test_changed_data_is_noticed(classified, karpa, tmp_path) -> None:
    run = shutil.copytree(classified, tmp_path / "logs" / "bert-classifier" / "1")
    other = write_csv(tmp_path / "other.csv", make_intents(100, seed=3))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": str(other)}))
    result = karpa("evaluate", run)
    assert result.status == 2 and "is not the data that" in result.err


# --- Predict and export


def test_predict_gives_labels_and_probabilities(classified, karpa) -> None:
    rows = karpa("predict", classified, "please play a song by Ada", "Is it raining today?", "--json").json
    assert [row["label"] for row in rows["predictions"]] == ["music", "weather"]
    for row in rows["predictions"]:
        assert set(row) == {"label", "probabilities"} and sum(row["probabilities"]) == pytest.approx(1)


def test_predict_refuses_an_empty_text(classified, karpa, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\nplay a song\n"  "\n', encoding="utf-8")
    result = karpa("predict", classified, "--input", path)
    assert result.status == 2 and "Row 2 has an empty text" in result.err


def test_a_very_long_text_is_cut(classified, karpa) -> None:
    (row,) = karpa("predict", classified, "play a song " * 10_000, "--json").json["predictions"]
    assert row["label"] == "music"


def test_the_savedmodel_takes_text_and_says_the_same(classified, karpa, tmp_path) -> None:
    result = karpa("export", classified, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    path = Path(result.json["savedmodel"])
    assert path == tmp_path / "bert-classifier" / "1"
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    texts = ["please play a song by Ada", "", "日本 naïve café", "play " * 500]
    served = signature(text=tf.constant(texts))
    task, model = BertClassifier().open_model(RunFolder(classified))
    classify = Classify(model, task.wordpiece, task.names, task.config.sequence_length)
    ours = classify(tf.constant(texts))
    np.testing.assert_allclose(served["probabilities"], ours["probabilities"], atol=1e-5)
    assert served["label"].numpy().tolist() == ours["label"].numpy().tolist()
    assert (path / "assets" / "labels.txt").read_text().split("\n")[:-1] == task.names
    assert "accuracy" in (path / "assets.extra" / "model_card.md").read_text()
    # What is on disk are the inference weights.
    size = sum(p.stat().st_size for p in (path / "variables").iterdir())
    assert size < 1.1 * sum(w.nbytes for w in model.get_weights()) + 20_000


@pytest.mark.slow
def test_int8_is_smaller_and_its_loss_is_in_the_card(classified, karpa, tmp_path) -> None:
    for quantize in ("none", "int8"):
        assert karpa("export", classified, "--to", tmp_path, "--quantize", quantize).status == 0
    plain, small = (tmp_path / "bert-classifier" / v for v in ("1", "2"))
    sizes = [sum(p.stat().st_size for p in (path / "variables").iterdir()) for path in (plain, small)]
    assert sizes[1] < 0.5 * sizes[0]
    assert "int8" in (small / "assets.extra" / "model_card.md").read_text()
    rows = [karpa("predict", path, "how is the weather in Oslo", "--json").json for path in (plain, small)]
    assert rows[0]["predictions"][0]["label"] == rows[1]["predictions"][0]["label"] == "weather"


def test_top_k_does_not_go_with_it(classified, karpa, tmp_path) -> None:
    result = karpa("export", classified, "--to", tmp_path, "--top_k", 3)
    assert result.status == 2 and "--top_k does not go with bert-classifier" in result.err


def test_an_untaught_model_is_not_exported(classified, karpa, tmp_path) -> None:
    run = shutil.copytree(classified, tmp_path / "logs" / "bert-classifier" / "1")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "accuracy": 0.1}))
    result = karpa("export", run, "--to", tmp_path / "models")
    assert result.status == 2 and "has not learned its task" in result.err
    assert not (tmp_path / "models").exists()


# --- Pairs, class weights, adversary, pretraining


def test_pairs_are_read_together(karpa, tmp_path) -> None:
    # Neither text alone tells the label: it is whether they are the same word.
    words = ["cat", "dog", "cow", "fox"]
    rows = [(a, b, "same" if a == b else "other") for a in words for b in words for _ in range(1)]
    table = [(f"{a} {i}", b, label) for i in range(12) for a, b, label in rows]
    path = tmp_path / "pairs.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("one", "two", "kind"), *table])
    columns = ["--text", "one", "--text_b", "two", "--label", "kind"]
    result = karpa(
        "train", "bert-classifier", "--data", path, *columns, *BERT_TINY, "--epochs", 2,
        "--class_weights", "balanced", "--logs", tmp_path / "logs",
    )  # fmt: skip
    assert result.status == 0, result.err
    run = tmp_path / "logs" / "bert-classifier" / "1"
    exported = karpa("export", run, "--to", tmp_path / "models", "--force", "--json")
    assert exported.status == 0, exported.err
    assert set(exported.json["signatures"]["serving_default"]["inputs"]) == {"text", "text_b"}
    row = json.dumps({"text": "cat 1", "text_b": "cat"})
    predictions = karpa("predict", exported.json["savedmodel"], row, "--json").json["predictions"]
    assert predictions[0]["label"] in ("same", "other")


@pytest.mark.slow
def test_adversary_token_dropout_layer_decay_and_pretraining_go_together(
    intents_file, karpa, tmp_path
) -> None:
    result = karpa(
        "train", "bert-classifier", "--data", intents_file, *BERT_TINY, "--epochs", 1,
        "--adversarial", 0.5, "--token_dropout", 0.1, "--layer_decay", 0.9, "--accumulate", 2,
        "--pretrain_data", "same", "--pretrain_epochs", 1, "--logs", tmp_path,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "by masked words" in result.err


# --- A stage before


@pytest.fixture(scope="module")
def pretrained(intents_file, tmp_path_factory) -> Path:
    """A finished run with masked words first, and all its checkpoints; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("pretrained") / "logs"
    words = ["--pretrain_data", "same", "--pretrain_epochs", 3, "--epochs", 2, "--dropout", 0.1]
    kept = ["--deterministic", "--checkpoint_seconds", 0, "--keep_checkpoints", 1000]
    every = [*BERT_TINY, *words, *kept, "--data", intents_file, "--logs", logs]
    assert main(["train", "bert-classifier", *map(str, every)]) == 0
    return logs / "bert-classifier" / "1"


def checkpoints_of(run: Path, stage: str) -> list[Path]:
    found = []
    for path in sorted((run / "checkpoints").glob("step-*.npz")):
        with np.load(path) as file:
            if json.loads(file["state"].tobytes())["stage"] == stage:
                found.append(path)
    return found


def points(run: Path, folder: str) -> list[tuple[str, int]]:
    """Tags and steps of what TensorBoard shows, but for speeds."""
    every = [(value.tag, event.step) for event in read_events(run / folder) for value in event.summary.value]
    return sorted(point for point in every if "/speed/" not in f"/{point[0]}")


def test_pretraining_is_a_stage_that_tensorboard_shows(pretrained) -> None:
    train, validation = points(pretrained, "train"), points(pretrained, "validation")
    end = max(step for tag, step in train if tag.startswith("pretraining/"))
    last = checkpoints_of(pretrained, "pretraining")[-1]
    assert last.name == f"step-{end:010d}.npz"
    assert {"pretraining/batch/loss", "pretraining/epoch/top1_accuracy"} <= {tag for tag, _ in train}
    assert {"pretraining/epoch/loss", "pretraining/epoch/top1_accuracy"} <= {tag for tag, _ in validation}
    # One clock: the fine-tuning begins where the pretraining has ended.
    assert min(step for tag, step in train if tag == "epoch/loss") > end
    metrics = json.loads((pretrained / "metrics.json").read_text())
    assert checkpoints_of(pretrained, "training")[-1].name == f"step-{metrics['steps']:010d}.npz"


@pytest.mark.parametrize(
    ("stage", "share"),
    [("pretraining", 0.5), ("pretraining", 1.0), ("training", 0.5)],
    ids=["within pretraining", "between the stages", "within fine-tuning"],
)
def test_a_run_with_pretraining_goes_on_exactly(pretrained, karpa, tmp_path, stage, share) -> None:
    run = shutil.copytree(pretrained, tmp_path / "logs" / "bert-classifier" / "1")
    own = checkpoints_of(run, stage)
    last = own[round(share * len(own)) - 1]
    for path in (run / "checkpoints").glob("step-*.npz"):
        if path.name > last.name:
            path.unlink()
    (run / "metrics.json").unlink()
    (run / "best.weights.h5").unlink()
    result = karpa("train", "bert-classifier", "--resume", run, "--json")
    assert result.status == 0, result.err
    assert ("by masked words" in result.err) == (stage == "pretraining")
    before, after = (json.loads((path / "metrics.json").read_text()) for path in (pretrained, run))
    assert {**after, "graph_traces": 0} == {**before, "graph_traces": 0}
    assert_same_weights(run, pretrained)
    assert points(run, "train") == points(pretrained, "train")


def test_a_run_that_another_version_left_in_its_pretraining(pretrained, karpa, tmp_path) -> None:
    """Before pretraining was a stage it had checkpoints of its own, in a folder of that name."""
    run = shutil.copytree(pretrained, tmp_path / "logs" / "bert-classifier" / "1")
    (run / "metrics.json").unlink()
    (run / "checkpoints").rename(run / "pretraining")
    (run / "checkpoints").mkdir()
    (run / "pretraining").rename(run / "checkpoints" / "pretraining")
    before = sorted(run.rglob("*"))
    result = karpa("train", "bert-classifier", "--resume", run)
    assert result.status == 2 and "was begun by another version of karpa_tf" in result.err
    assert "train a new run" in result.err and len(result.err.strip().splitlines()) == 1
    assert sorted(run.rglob("*")) == before
    # Behind its pretraining such a run goes on.
    for path in checkpoints_of(pretrained, "training")[:20]:
        shutil.copy(path, run / "checkpoints")
    assert karpa("train", "bert-classifier", "--resume", run).status == 0
    assert_same_weights(run, pretrained)


# --- Wrong input


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "nowhere.csv"], 'There is no file or folder "nowhere.csv"'),
        (["--preset", "bert_base_en_uncase"], 'did you mean "bert_base_en_uncased"'),
        (["--preset", "./nowhere"], 'There is no folder "./nowhere"'),
        (["--text", "txt"], 'has no column "txt"; did you mean "text"?'),
        (["--method", "lora"], "method lora needs a preset"),
        (["--lora_targets", "querry"], 'did you mean "query"'),
        (["--sequence_length", "4"], "sequence_length must be at least 8"),
    ],
)
def test_wrong_input_is_one_sentence(intents_file, karpa, tmp_path, flags, says) -> None:
    result = karpa("train", "bert-classifier", "--data", intents_file, *flags, "--logs", tmp_path / "logs")
    assert result.status == 2
    assert says in result.err and "Traceback" not in result.err
    assert not (tmp_path / "logs").exists()


# --- A pretrained BERT


@pytest.fixture(scope="module", params=["tiny", pytest.param("minilm", marks=pytest.mark.slow)])
def adapted(request, classified, intents_file, tmp_path_factory) -> Path:
    """A run of LoRA on a BERT of random weights, and on MiniLM."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("lora") / "logs"
    words: list[Any] = ["--epochs", "2", "--buckets", "1", "--preset"]
    if request.param == "tiny":
        preset = write_reader(logs.parent / "preset", classified / "assets" / "vocab.txt")
        words = [*BERT_TINY, "--epochs", "6", "--preset", preset]
    else:
        words.append(request.getfixturevalue("minilm"))
    words += ["--method", "lora", "--logs", logs]
    assert main(["train", "bert-classifier", "--data", str(intents_file), *map(str, words)]) == 0
    return logs / "bert-classifier" / "1"


def test_lora_keeps_all_that_was_trained_in_a_small_file_and_exports_merged(adapted, karpa, tmp_path) -> None:
    assert json.loads((adapted / "metrics.json").read_text())["accuracy"] > 0.9
    result = karpa("export", adapted, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    path = Path(result.json["savedmodel"])
    size = sum(p.stat().st_size for p in (path / "variables").iterdir())
    with h5py.File(adapted / "best.weights.h5") as file:
        assert "embeddings" not in str(list(file)), "the preset's own weights are not kept"
        assert any("lora_kernel_a" in name for name in _names(file))
    if size > 1e6:  # MiniLM
        assert 90e6 < size < 92e6 and (adapted / "best.weights.h5").stat().st_size < 3e6
    (ours,) = karpa("predict", adapted, "how is the weather in Oslo", "--json").json["predictions"]
    (served,) = karpa("predict", path, "how is the weather in Oslo", "--json").json["predictions"]
    assert ours["label"] == served["label"] == "weather"
    np.testing.assert_allclose(ours["probabilities"], served["probabilities"], atol=1e-5)


def _names(file: Any) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return found


def test_adapters_of_another_preset_are_refused(adapted, karpa, tmp_path) -> None:
    run = shutil.copytree(adapted, tmp_path / "logs" / "bert-classifier" / "1")
    saved = json.loads((run / "assets" / "encoder.json").read_text())
    (run / "assets" / "encoder.json").write_text(json.dumps({**saved, "preset": "0" * 32}))
    result = karpa("evaluate", run)
    assert result.status == 2 and "is not the preset that" in result.err


def test_figures_by_group_have_intervals_and_the_smallest_is_named(classified, karpa, tmp_path) -> None:
    run = Path(shutil.copytree(classified, tmp_path / "bert-classifier" / "1"))  # events are written into it
    rows = make_intents(60, seed=9)
    table = tmp_path / "grouped.csv"
    cities = ["Kyiv", "Rome", "Rome"]
    write_csv(
        table,
        [(text, label, cities[i % 3]) for i, (text, label) in enumerate(rows)],
        ("text", "label", "city"),
    )
    done = karpa("evaluate", run, "--data", table, "--groups", "city")
    assert done.status == 0 and "smallest group: Kyiv, 20 rows" in done.out
    assert "equalized-odds gap: " in done.out
    found = karpa("evaluate", run, "--data", table, "--groups", "city", "--json").json
    groups = found["groups"]["rows"]
    assert [(row["group"], row["rows"]) for row in groups] == [("Rome", 40), ("Kyiv", 20)]
    mean = sum(row["figure"] * row["rows"] for row in groups) / 60
    assert mean == pytest.approx(found["metrics"]["accuracy"])
    assert all(row["low"] <= row["figure"] <= row["high"] for row in groups)
    assert read_text(run / "validation", "groups/city").startswith("| city | rows |")
    done = karpa("evaluate", run, "--data", table, "--groups", "town")
    assert done.status == 2 and 'no column "town"' in done.err and "--groups" in done.err
