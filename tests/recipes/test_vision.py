"""`mnist-mlp` and `cifar10-cnn` from images to served models."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image

from karpa_tf.data.images import Images
from karpa_tf.recipe import find_recipe
from karpa_tf.recipes.families import images as vision
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import TINY_DIGITS, kill_in_the_middle, make_images


@pytest.fixture
def digits_npz(digits) -> Path:
    return digits.parents[2] / "digits.npz"


def open_model(run: Path) -> keras.Model:
    return find_recipe(run.parent.name).load().open_model(RunFolder(run)).model


def test_they_learn_and_are_evaluated_beside_baselines(digits, photos) -> None:
    for run in (digits, photos):
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["accuracy"] > 0.9 > 2 * metrics["baselines"]["most frequent"]["accuracy"]
        assert {"accuracy", "macro_f1", "ece", "loss", "validation_accuracy", "training_accuracy"} <= set(
            metrics
        )
        assert set(metrics["baselines"]) == {"linear", "nearest mean", "most frequent"}
        assert "fitted on 30 rows of validation" in metrics["facts"].pop("temperature")
        assert metrics["facts"] == {"images": 30, "images that are in training": 0}
        assert metrics["graph_traces"] == 1


def test_the_run_folder_is_complete(digits) -> None:
    for name in ("config.yaml", "command.txt", "environment.json", "best.weights.h5", "errors.png"):
        assert (digits / name).is_file()
    assets = {"labels.json", "images.json", "data.json", "start.json", "certainty.json"}
    assert {p.name for p in (digits / "assets").iterdir()} == assets


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_the_same_config_trains_to_the_same_weights(name: str, request, karpa, tmp_path) -> None:
    run = request.getfixturevalue(name)
    recipe = run.parent.name
    result = karpa("train", recipe, "--config", run / "config.yaml", "--logs", tmp_path, "--json")
    assert result.status == 0, result.err
    models = [open_model(path) for path in (run, tmp_path / recipe / "1")]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--ema", 0.9, "--adversarial", 4],
        ["--optimizer", "sgd", "--lookahead", "true", "--last_rate", 0.1, "--dropout", 0.1],
    ],
)
def test_resume_goes_on_to_the_same_figures(more: list, digits_npz, karpa, tmp_path) -> None:
    run = tmp_path / "logs" / "mnist-mlp" / "1"
    whole = karpa(
        "train", "mnist-mlp", "--data", digits_npz, *TINY_DIGITS, "--epochs", 2, "--deterministic", *more,
        "--batch_normalization", "--flip", "alternating", "--checkpoint_seconds", 0,
        "--keep_checkpoints", 1000, "--logs", tmp_path / "logs", "--json",
    )  # fmt: skip
    assert whole.status == 0, whole.err
    kill_in_the_middle(run)
    resumed = karpa("train", "mnist-mlp", "--resume", run, "--json")
    assert resumed.status == 0, resumed.err
    assert resumed.json["metrics"] == whole.json["metrics"]


def test_the_essays_networks_train(digits_npz, photos, karpa, tmp_path) -> None:
    few = ["--epochs", 1, "--precision", "float32", "--logs", tmp_path, "--json"]
    result = karpa("train", "mnist-mlp", "--config", "essay", "--data", digits_npz, *few)
    assert result.status == 0, result.err
    data = yaml.safe_load((photos / "config.yaml").read_text())["data"]
    result = karpa("train", "cifar10-cnn", "--config", "essay", "--data", data, "--batch_size", 64, *few)
    assert result.status == 0, result.err
    assert "images of 16 x 16 were made 32 x 32" in result.err


# --- Evaluate


def test_evaluate_says_what_training_said(digits, karpa) -> None:
    result = karpa("evaluate", digits, "--json")
    metrics = json.loads((digits / "metrics.json").read_text())
    assert set(result.json) == {"recipe", "run", "data", "metrics", "baselines", "facts"}
    assert result.json["metrics"] == {name: metrics[name] for name in result.json["metrics"]}
    assert "precision" in result.err


def test_evaluate_reads_other_files(digits, photos, karpa, tmp_path) -> None:
    x, y = make_images(30, 10, 1, seed=5)
    np.savez(tmp_path / "test.npz", x_test=x, y_test=y)
    result = karpa("evaluate", digits, "--data", tmp_path / "test.npz", "--json")
    assert result.json["metrics"]["accuracy"] > 0.8 and "images: 30" in result.err
    # A file that numbers the classes which have names in the run.
    x, y = make_images(30, 16, 3, seed=5)
    np.savez(tmp_path / "colours.npz", x_train=x, y_train=y)
    result = karpa("evaluate", photos, "--data", tmp_path / "colours.npz", "--json")
    assert result.json["metrics"]["accuracy"] > 0.8 and "0 was taken for cat" in result.err


def test_a_label_that_training_never_saw(digits, karpa, tmp_path) -> None:
    x, y = make_images(30, 10, 1, seed=5)
    np.savez(tmp_path / "test.npz", x_test=x, y_test=y + 7)
    result = karpa("evaluate", digits, "--data", tmp_path / "test.npz")
    assert result.status == 2 and "which training never saw" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_an_attack_costs_accuracy(kind: str, digits, karpa) -> None:
    result = karpa("evaluate", digits, "--attack", kind, "--epsilon", "120/255", "--json")
    metrics = result.json["metrics"]
    assert metrics["robust_accuracy"] < metrics["accuracy"]
    assert f"attack: {kind}, epsilon 120/255" in result.err


def test_a_wrong_epsilon_and_a_recipe_without_attacks(digits, classified, karpa) -> None:
    result = karpa("evaluate", digits, "--attack", "fgsm", "--epsilon", "8")
    assert result.status == 2 and "--epsilon takes a share" in result.err
    result = karpa("evaluate", classified, "--attack", "fgsm")
    assert result.status == 2 and "--attack does not go with bert-classifier" in result.err


# --- Explain


def test_explain_writes_pictures_that_add_up(digits, karpa, tmp_path) -> None:
    x, _ = make_images(2, 10, 1, seed=5)
    for number, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    run = shutil.copytree(digits, tmp_path / "logs" / "mnist-mlp" / "1")
    result = karpa("explain", run, tmp_path / "0.png", tmp_path / "1.png", "--json")
    assert result.status == 0, result.err
    rows = result.json["explanations"]
    assert [row["input"] for row in rows] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    for row in rows:
        assert row["completeness_gap"] < 0.02
        assert Image.open(row["file"]).size[0] > 200
    assert Path(result.json["errors"]).is_file()
    assert karpa("explain", run, "--json").status == 0  # some of its own images


# --- Predict and export


def write_png(path: Path, channels: int, size: int) -> np.ndarray:
    x, _ = make_images(1, size, channels, seed=9)
    Image.fromarray(x[0]).save(path)
    return x[0]


def test_predict_takes_files_and_numbers(digits, karpa, tmp_path) -> None:
    image = write_png(tmp_path / "a.png", 1, 10)
    result = karpa("predict", digits, tmp_path / "a.png", json.dumps(image.tolist()), "--json")
    assert result.status == 0, result.err
    by_path, by_number = result.json["predictions"]
    assert by_path == by_number and set(by_path) == {"label", "probabilities"}
    assert sum(by_path["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert "a.png" in karpa("predict", digits, tmp_path / "a.png").out


def test_predict_refuses_what_is_no_image(digits, karpa, tmp_path) -> None:
    (tmp_path / "a.png").write_text("no image")
    for words, sentence in (
        ([tmp_path / "a.png"], "cannot be read as an image"),
        ([tmp_path / "b.png"], "There is no image"),
        (["[[1, 2], [3, 4]]"], "image must be float32 [n, 10, 10]. Received: shape [1, 2, 2]"),
        (["[[1, 2], [3]]"], "image must be float32 [n, 10, 10]"),
    ):
        result = karpa("predict", digits, *words)
        assert result.status == 2 and sentence in result.err
        assert len(result.err.strip().splitlines()) == 1


def test_one_broken_image_is_a_row_with_its_reason(digits, karpa, tmp_path) -> None:
    for name in ("a.png", "c.png"):
        write_png(tmp_path / name, 1, 10)
    (tmp_path / "b.png").write_text("no image")
    images = [tmp_path / f"{name}.png" for name in "abdc"]
    result = karpa("predict", digits, *images, "--json")
    assert result.status == 1 and "2 of 4 rows could not be read" in result.err
    first, broken, missing, last = result.json["predictions"]
    assert first == last and set(first) == {"label", "probabilities"}
    assert set(broken) == {"error"} and "b.png cannot be read as an image" in broken["error"]
    assert 'There is no image "' in missing["error"]
    assert [row["image"] for row in result.json["inputs"]] == [str(path) for path in images]
    out = tmp_path / "out.csv"
    assert karpa("predict", digits, *images, "--output", out).status == 1
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "confidence", "0", "1", "2", "error"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    result = karpa("predict", digits, images[1], images[2])
    assert result.status == 2 and "None of 2 rows can be read: " in result.err


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[[1, null], [3, 4]]", "Row 2: image must be float32 [n, 10, 10]. Received: [[1, None], [3, 4]]"),
        ('[["1", "2"]]', "Row 2: image must be float32"),
    ],
)
def test_numbers_that_are_no_image_are_named_by_their_row(digits, karpa, tmp_path, value, sentence) -> None:
    image = np.zeros([10, 10]).tolist()
    (tmp_path / "in.jsonl").write_text(f'{{"image": {image}}}\n{{"image": {value}}}\n')
    result = karpa("predict", digits, "--input", tmp_path / "in.jsonl")
    assert result.status == 2 and sentence in result.err


def test_exports_serve_the_contract(digits, photos, karpa, tmp_path) -> None:
    for run, channels, size in ((digits, 1, 10), (photos, 3, 16)):
        result = karpa("export", run, "--to", tmp_path, "--json")
        assert result.status == 0, result.err
        path = Path(result.json["savedmodel"])
        assert path == tmp_path / run.parent.name / "1"
        model = tf.saved_model.load(str(path)).signatures["serving_default"]
        shape = [2, size, size] if channels == 1 else [2, size, size, 3]
        out = model(image=tf.zeros(shape))
        assert out["label"].dtype == tf.string and out["label"].shape == [2]
        assert out["probabilities"].dtype == tf.float32 and out["probabilities"].shape == [2, 3]
        assert (path / "assets" / "labels.txt").read_text().splitlines() == (
            ["0", "1", "2"] if channels == 1 else ["cat", "dog", "owl"]
        )
        assert "held-out images" in (path / "assets.extra" / "model_card.md").read_text()
        image = tmp_path / "a.png"
        write_png(image, channels, size)
        mine, served = (
            karpa("predict", model, image, "--json").json["predictions"][0] for model in (run, path)
        )
        assert mine["label"] == served["label"]
        np.testing.assert_allclose(mine["probabilities"], served["probabilities"], atol=1e-5)


def test_the_variables_are_the_inference_weights_alone(photos, karpa, tmp_path) -> None:
    path = Path(karpa("export", photos, "--to", tmp_path, "--json").json["savedmodel"])
    stored = sum(p.stat().st_size for p in (path / "variables").glob("*.data*"))
    assert stored < 1.2 * 4 * open_model(photos).count_params() + 2000


@pytest.mark.parametrize("network", ["digits", "photos"])
def test_onnx(network: str, request, karpa, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = request.getfixturevalue(network)
    result = karpa("export", run, "--to", tmp_path, "--format", "onnx", "--json")
    assert result.status == 0, result.err
    path = Path(result.json["onnx"])
    assert path == tmp_path / f"{run.parent.name}-onnx" / "1" / "model.onnx"
    assert "This file: ONNX, float32" in (path.parent / "model_card.md").read_text()
    session = onnxruntime.InferenceSession(path)
    image = tmp_path / "a.png"
    pixels = write_png(image, 1 if network == "digits" else 3, 10 if network == "digits" else 16)
    (found,) = session.run(["probabilities"], {"image": pixels[None].astype(np.float32)})
    expected = karpa("predict", run, image, "--json").json["predictions"][0]["probabilities"]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    predicts_the_same(karpa, run, path, tmp_path)


def predicts_the_same(karpa, run: Path, file: Path, folder: Path, exact: bool = True) -> None:
    """An exported file, or its folder, answers `predict` as the run does, broken images included."""
    channels, size = (1, 10) if run.parent.name == "mnist-mlp" else (3, 16)
    for i, pixels in enumerate(make_images(70, size, channels, seed=3)[0]):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("no image")
    images = [folder / f"{name}.png" for name in [0, "broken", *range(1, 70)]]
    expected = karpa("predict", run, *images, "--json").json
    for model in (file, file.parent):
        found = karpa("predict", model, *images, "--json")
        assert found.status == 1 and found.json["inputs"] == expected["inputs"]
        for mine, its in zip(found.json["predictions"], expected["predictions"], strict=True):
            assert set(mine) == set(its)
            if "error" not in mine:
                if exact:
                    np.testing.assert_allclose(mine["probabilities"], its["probabilities"], atol=1e-5)
                names = (file.parent / "labels.txt").read_text().split()
                assert mine["label"] == names[int(np.argmax(mine["probabilities"]))]
    result = karpa("predict", file.parent.parent, images[0])
    assert result.status == 2 and f"name one of them, as {file.parent}." in result.err
    out = folder / "out.jsonl"
    karpa("predict", file, images[0], "--output", out)
    assert set(json.loads(out.read_text())) >= {"image", "label", "confidence", *names}


@pytest.mark.parametrize(
    ("network", "options"), [("digits", []), ("photos", []), ("photos", ["--quantize", "none"])]
)
def test_litert(network: str, options: list[str], request, karpa, tmp_path) -> None:
    pytest.importorskip("ai_edge_litert")
    run = request.getfixturevalue(network)
    result = karpa("export", run, "--to", tmp_path, "--format", "litert", *options, "--json")
    assert result.status == 0, result.err
    path = Path(result.json["litert"])
    card = (path.parent / "model_card.md").read_text()
    assert ("LiteRT, float32" if options else "LiteRT, int8") in card and "accuracy" in card
    assert (path.parent / "labels.txt").is_file()
    # An int8 file rounds; that it agrees in the labels is checked when it is made.
    predicts_the_same(karpa, run, path, tmp_path, exact=bool(options))


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_a_file_that_is_no_model_is_one_sentence(karpa, tmp_path, name) -> None:
    result = karpa("predict", tmp_path / name, "a.png")
    assert result.status == 2 and "There is no file" in result.err
    (tmp_path / name).write_text("no model")
    result = karpa("predict", tmp_path / name, "a.png")
    assert result.status == 2 and "cannot be loaded as a" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_exports_refuse_what_makes_no_sense(digits, classified, karpa, tmp_path) -> None:
    result = karpa("export", classified, "--format", "onnx", "--to", tmp_path)
    assert result.status == 2 and "--format does not go with bert-classifier" in result.err
    run = shutil.copytree(digits, tmp_path / "logs" / "mnist-mlp" / "1")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "accuracy": 0.1}))
    result = karpa("export", run, "--to", tmp_path / "out")
    assert result.status == 2 and "has not learned its task" in result.err
    assert not (tmp_path / "out").exists()


# --- Wrong input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mnist-mlp", "--units", "64,x"], "units takes whole numbers above 0"),
        (["mnist-mlp", "--units", ""], "units takes whole numbers above 0"),
        (["mnist-mlp", "--dropout", "1"], "dropout must be at least 0 and below 1"),
        (["mnist-mlp", "--last_rate", "1"], "last_rate must be at least 0 and below 1"),
        (["cifar10-cnn", "--patience", "2"], "--patience goes with --keep best. Received: 2 and last."),
        (["mnist-mlp", "--lookahead", "true"], "--lookahead goes with --optimizer sgd. Received: adamw."),
        (["cifar10-cnn", "--widths", "8,8,8,8", "--image_size", "16"], "need an image_size above 17"),
        (["cifar10-cnn", "--data", "nowhere.npz"], 'There is no file or folder "nowhere.npz"'),
        (["cifar10-cnn", "--flip", "sometimes"], "--flip"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, karpa, tmp_path) -> None:
    result = karpa("train", *words, "--logs", tmp_path / "logs")
    assert result.status == 2 and sentence in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_init_starts_from_another_run(digits, digits_npz, karpa, tmp_path) -> None:
    few = [
        "--data",
        digits_npz,
        *TINY_DIGITS,
        "--epochs",
        1,
        "--learning_rate",
        1e-6,
        "--logs",
        tmp_path,
        "--json",
    ]
    result = karpa("train", "mnist-mlp", *few, "--init", digits)
    assert result.json["metrics"]["accuracy"] > 0.9
    result = karpa("train", "mnist-mlp", *few, "--init", digits, "--units", "8")
    assert result.status == 2 and "the weights of" in result.err


def test_captions_part_the_label_from_its_probability(monkeypatch) -> None:
    monkeypatch.setattr(vision, "error_grid", lambda pixels, captions: captions)
    images = Images(np.zeros((2, 8, 8, 1), np.uint8), ["1", "2"], ["a", "b"])
    probabilities = np.array([[0.16, 0.84], [0.1, 0.9]])
    shown = vision.errors_picture(images, np.array([0, 1]), probabilities, ["1", "2"])
    assert shown == ["1 -> 2 (0.84)"]
