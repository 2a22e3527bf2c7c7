"""`mlm-gru` from text to a served fill-mask."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from karpa_tf.errors import UserError
from karpa_tf.models import build_mlm_gru
from karpa_tf.recipes.mlm_gru import MlmGruExportOptions, MlmGruSettings
from karpa_tf.recipes.mlm_gru.fill_mask import FillMask
from karpa_tf.recipes.mlm_gru.recipe import MlmGru, open_model
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.wordpiece import SPECIAL, WordPiece
from tests.conftest import TINY, make_text


def test_it_learns_more_than_counting_does(trained) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["top1_accuracy"] > 1.1 * metrics["baselines"]["unigram"]["top1_accuracy"]
    assert metrics["top5_accuracy"] >= metrics["top1_accuracy"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["best_epoch"] >= 1


def test_the_run_folder_is_complete(trained) -> None:
    for name in ("config.yaml", "command.txt", "environment.json", "metrics.json", "best.weights.h5"):
        assert (trained / name).is_file()
    assert (trained / "assets" / "vocab.txt").is_file()
    assert list((trained / "checkpoints").glob("step-*.npz"))
    assert list((trained / "train").glob("events*")) and list((trained / "validation").glob("events*"))
    assert RunFolder(trained).open_config(MlmGruSettings).units == 24
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["versions"]["tensorflow"].startswith("2.21") and environment["seed"] == 0


def test_a_runs_config_trains_again_to_the_same_weights(trained, karpa, tmp_path) -> None:
    result = karpa("train", "mlm-gru", "--config", trained / "config.yaml", "--logs", tmp_path, "--json")
    assert result.status == 0
    again = RunFolder(tmp_path / "mlm-gru" / "1")
    _, _, model = open_model(again)
    _, _, before = open_model(RunFolder(trained))
    for a, b in zip(model.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(result.json) == {"run", "metrics"}
    assert result.json["metrics"]["loss"] == json.loads((trained / "metrics.json").read_text())["loss"]


def test_resume_of_a_finished_run_may_add_epochs(trained, karpa, tmp_path) -> None:
    logs = tmp_path / "logs"
    shutil.copytree(trained, logs / "mlm-gru" / "1")
    result = karpa("train", "mlm-gru", "--resume", "mlm-gru/latest", "--epochs", 5, "--logs", logs)
    assert result.status == 0, result.err
    run = logs / "mlm-gru" / "1"
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 5
    steps = [json.loads(p.read_text())["steps"] for p in (trained / "metrics.json", run / "metrics.json")]
    assert steps[1] == steps[0] / 4 * 5


# --- Evaluate


def test_evaluate_says_what_training_said(trained, karpa) -> None:
    result = karpa("evaluate", trained, "--json")
    report = result.json
    assert set(report) == {"recipe", "run", "data", "metrics", "baselines", "facts"}
    metrics = json.loads((trained / "metrics.json").read_text())
    for name in ("loss", "perplexity", "top1_accuracy", "top5_accuracy"):
        assert report["metrics"][name] == metrics[name]
    assert set(report["baselines"]) == {"unigram", "bigram"}
    assert "vocabulary_size: 200" in result.err


def test_evaluate_reads_every_row_of_other_data(trained, karpa, tmp_path) -> None:
    path = tmp_path / "other.txt"
    path.write_text(make_text(40, seed=9), encoding="utf-8")
    report = karpa("evaluate", trained, "--data", path, "--json").json
    assert report["data"] == str(path)
    assert report["metrics"]["top1_accuracy"] > report["baselines"]["unigram"]["top1_accuracy"]
    path.write_text("日本語のテキスト" * 30, encoding="utf-8")
    result = karpa("evaluate", trained, "--data", path)
    assert result.status == 2 and "has no piece of" in result.err


def test_evaluate_notices_that_the_text_has_changed(trained, karpa, tmp_path) -> None:
    logs = tmp_path / "logs"
    run = shutil.copytree(trained, logs / "mlm-gru" / "1")
    changed = tmp_path / "changed.txt"
    changed.write_text(make_text(500, seed=5), encoding="utf-8")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": str(changed)}))
    result = karpa("evaluate", run)
    assert result.status == 2 and "is not the data that" in result.err


# --- Predict


def test_predict_fills_every_mask(trained, karpa) -> None:
    text = "On day bab the cow ate [MASK] in the [MASK]."
    (row,) = karpa("predict", trained, text, "--json").json["predictions"]
    assert set(row) == {"filled_text", "top_tokens", "top_scores", "masks"} and row["masks"] == 2
    tokens, scores = np.array(row["top_tokens"]), np.array(row["top_scores"])
    assert tokens.shape == scores.shape == (2, 5)
    assert (np.diff(scores, axis=1) <= 0).all() and (scores > 0).all() and (scores.sum(1) <= 1).all()
    assert row["filled_text"] == text.replace("[MASK]", tokens[0, 0], 1).replace("[MASK]", tokens[1, 0])
    pieces = (trained / "assets" / "vocab.txt").read_text().split("\n")
    assert set(tokens.flat) <= {p for p in pieces if not p.startswith("##")} - set(SPECIAL)


def test_predict_reads_and_writes_files(trained, karpa, tmp_path, monkeypatch) -> None:
    texts = ["The [MASK] ate fish.", 'A "quoted", [MASK] text', "日本 [MASK]"]
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for name in ("in.txt", "in.csv", "in.jsonl"):
        result = karpa("predict", trained, "--input", tmp_path / name, "--output", tmp_path / "out.jsonl")
        assert result.status == 0, result.err
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["text"] for row in rows] == texts
        assert all("[MASK]" not in row["filled_text"] for row in rows)
    karpa("predict", trained, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["filled_text"] for row in table] == [row["filled_text"] for row in rows]
    assert json.loads(table[0]["top_tokens"]) == rows[0]["top_tokens"]
    monkeypatch.setattr("sys.stdin", iter([f"{text}\n" for text in texts]))
    piped = karpa("predict", trained, "--json").json["predictions"]
    assert [row["filled_text"] for row in piped] == [row["filled_text"] for row in rows]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no mask here"], "Text 1 has no [MASK] to fill"),
        (["--input", "missing.txt"], "missing.txt cannot be read: No such file"),
        (["--input", "setup.cfg"], "--input takes a .txt, .csv or .jsonl file"),
        (["a [MASK]", "--output", "out.xls"], "--output takes a .csv or .jsonl file"),
    ],
)
def test_predict_mistakes(trained, karpa, words, sentence) -> None:
    result = karpa("predict", trained, *words)
    assert result.status == 2 and sentence in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_csv_without_the_column(trained, karpa, tmp_path) -> None:
    (tmp_path / "in.csv").write_text("texts\na [MASK]\n")
    result = karpa("predict", trained, "--input", tmp_path / "in.csv")
    assert result.status == 2 and 'has no column "text"; did you mean "texts"?' in result.err


# --- The fill-mask graph


WORDS = WordPiece([*SPECIAL, *(f"w{i}" for i in range(40)), "##x", "."])


def make_fill(length: int = 8, objective: str = "every", top_k: int = 3) -> FillMask:
    keras.utils.set_random_seed(3)
    model = build_mlm_gru(len(WORDS), embedding_size=8, units=8, objective=objective)
    return FillMask(model, WORDS, length, top_k)


@pytest.mark.parametrize("objective", ["every", "masked"])
def test_a_long_text_is_read_in_a_window_around_each_mask(objective) -> None:
    fill = make_fill(length=8, objective=objective)
    words = [f"w{i % 40}" for i in range(100)]
    for place in (0, 3, 50, 97, 99):
        text = [*words]
        text[place] = "[MASK]"
        begin = min(max(place - 4, 0), 92)
        window = text[begin : begin + 8]
        whole, cut = fill(tf.constant([" ".join(text)])), fill(tf.constant([" ".join(window)]))
        np.testing.assert_array_equal(whole["top_tokens"], cut["top_tokens"])
        np.testing.assert_allclose(whole["top_scores"], cut["top_scores"], atol=1e-6)


def test_rows_do_not_depend_on_each_other() -> None:
    fill = make_fill()
    texts = ["w1 [MASK] w2", "no mask", "", "[MASK]", "w1 [MASK][MASK] w3 w4 [MASK] .", "w9 " * 30 + "[MASK]"]
    together = fill(tf.constant(texts))
    assert together["top_tokens"].shape == (6, 3, 3)
    for i, text in enumerate(texts):
        alone = fill(tf.constant([text]))
        count = text.count("[MASK]")
        assert alone["top_tokens"].shape == (1, count, 3)
        np.testing.assert_array_equal(together["top_tokens"][i, :count], alone["top_tokens"][0])
        np.testing.assert_allclose(together["top_scores"][i, :count], alone["top_scores"][0], atol=1e-6)
        assert (together["top_tokens"][i, count:].numpy() == b"").all()
        assert (together["top_scores"][i, count:].numpy() == 0).all()
        assert together["filled_text"][i] == alone["filled_text"][0]
    assert together["filled_text"][1] == b"no mask" and together["filled_text"][2] == b""
    empty = fill(tf.zeros([0], tf.string))
    assert empty["filled_text"].shape == (0,)


def test_top_k_must_fit_the_vocabulary() -> None:
    with pytest.raises(UserError, match="--top_k must lie between 1 and 41"):
        make_fill(top_k=42)


# --- Export


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    to = tmp_path_factory.mktemp("savedmodels")
    result = MlmGru().export(RunFolder(trained), MlmGruExportOptions(to=str(to), top_k=4))
    assert (result.format, result.path) == ("savedmodel", str(to / "mlm-gru" / "1"))
    assert result.signatures["serving_default"]["inputs"] == {"text": "string [n]"}
    return to / "mlm-gru" / "1"


def test_the_savedmodel_is_complete_and_small(exported, trained) -> None:
    assert (exported / "saved_model.pb").is_file()
    assert (exported / "assets" / "vocab.txt").read_text() == (trained / "assets/vocab.txt").read_text()
    card = (exported / "assets.extra" / "model_card.md").read_text()
    figures = json.loads((trained / "metrics.json").read_text())
    assert f"{figures['top1_accuracy']:.4g}" in card and "bigram" in card
    _, _, model = open_model(RunFolder(trained))
    weights = sum(w.nbytes for w in model.get_weights())
    assert os.path.getsize(exported / "variables" / "variables.data-00000-of-00001") < weights + 4096


def test_the_savedmodel_answers_as_the_run_does(exported, trained, karpa) -> None:
    text = "On day bab the cow ate [MASK] in the [MASK]."
    (served,) = karpa("predict", exported, text, "--json").json["predictions"]
    (python,) = karpa("predict", trained, text, "--json").json["predictions"]
    assert served["filled_text"] == python["filled_text"]
    assert served["top_tokens"] == [row[:4] for row in python["top_tokens"]]
    np.testing.assert_allclose(served["top_scores"], [r[:4] for r in python["top_scores"]], atol=1e-5)
    said, filled, *masks = karpa("predict", exported, text).out.splitlines()
    assert [said, filled] == [text, f"  {served['filled_text']}"]
    pairs = [
        "  ".join(f"{token} {score:.3f}" for token, score in zip(*row, strict=True))
        for row in zip(served["top_tokens"], served["top_scores"], strict=True)
    ]
    assert masks == [f"    {row}" for row in pairs]


def test_the_warm_up_file_holds_requests(exported) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]
    assert logs
    request = logs[-1].predict_log.request
    assert request.model_spec.name == "mlm-gru"
    assert b"[MASK]" in tf.make_ndarray(request.inputs["text"])[0]


def test_an_unfinished_or_untaught_run_is_not_exported(trained, karpa, tmp_path) -> None:
    run = shutil.copytree(trained, tmp_path / "logs" / "mlm-gru" / "1")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "top1_accuracy": 0.0}))
    result = karpa("export", run, "--to", tmp_path / "models")
    assert result.status == 2 and "has not learned its task" in result.err
    (run / "metrics.json").unlink()
    result = karpa("export", run, "--to", tmp_path / "models")
    assert result.status == 2 and "has not ended" in result.err and "--resume" in result.err
    assert not (tmp_path / "models").exists()


def test_damaged_weights_are_one_sentence(trained, karpa, tmp_path) -> None:
    run = shutil.copytree(trained, tmp_path / "logs" / "mlm-gru" / "1")
    data = (run / "best.weights.h5").read_bytes()
    (run / "best.weights.h5").write_bytes(data[: len(data) // 2])
    result = karpa("predict", run, "a [MASK]")
    assert result.status == 2 and "best.weights.h5 cannot be read" in result.err


# --- Training


def test_init_starts_from_another_runs_weights(trained, karpa, tmp_path, text_file) -> None:
    command = ["train", "mlm-gru", "--data", text_file, *TINY, "--epochs", 1, "--logs", tmp_path]
    result = karpa(*command, "--init", trained, "--learning_rate", "1e-6", "--ema", 0, "--json")
    before = json.loads((trained / "metrics.json").read_text())
    assert result.json["metrics"]["loss"] == pytest.approx(before["loss"], rel=1e-3)


def test_a_diverged_run_exports_nothing(karpa, tmp_path, text_file) -> None:
    command = ["train", "mlm-gru", "--data", text_file, *TINY, "--epochs", 3, "--logs", tmp_path]
    result = karpa(*command, "--learning_rate", "1000", "--clip_norm", 0, "--warmup", 0)
    assert result.status == 2
    assert "diverged" in result.err or "loss is" in result.err
    result = karpa("export", tmp_path / "mlm-gru" / "1", "--to", tmp_path / "models")
    assert result.status == 2 and "has not ended" in result.err


@pytest.mark.parametrize("name", ["missing.txt", "empty.txt"])
def test_bad_data_leaves_no_run_behind(karpa, tmp_path, name) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = karpa("train", "mlm-gru", "--data", tmp_path / name, "--logs", tmp_path / "logs")
    assert result.status == 2 and name in result.err
    assert not (tmp_path / "logs").exists()
