"""`meta` from tasks to a served model that learns in the request."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.recipes.meta import MetaSettings
from karpa_tf.recipes.meta.recipe import Meta
from karpa_tf.recipes.meta.served import number_labels
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import kill_in_the_middle, make_images, write_class_folders
from tests.events import read_events, tags_of
from tests.presets import write_folder

TINY = ["--iterations", 8, "--evaluate_every", 4, "--validation_tasks", 4, "--meta_batch", 2]
TINY += ["--deterministic", "true", "--keep_checkpoints", 100, "--checkpoint_seconds", 0]
IMAGES = [*TINY, "--ways", 3, "--shots", 2, "--queries", 2, "--image_size", 8, "--filters", 4]


def train(logs: Path, *words: object) -> Path:
    from karpa_tf.cli import main

    assert main([str(word) for word in ("train", "meta", *words, "--logs", logs)]) == 0
    return logs / "meta" / "1"


@pytest.fixture(scope="module")
def sinusoids(tmp_path_factory) -> Path:
    words = ["--units", "16", "--baseline_steps", 20, "--learning_rate", 0.01, "--iterations", 200]
    return train(tmp_path_factory.mktemp("sinusoids"), *TINY, *words, "--evaluate_every", 100)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Nine classes of 8 x 8 images, in three alphabets; dark on light, as Omniglot's."""
    folder = tmp_path_factory.mktemp("alphabets")
    pixels, labels = make_images(90, 8, 1, classes=9)
    names = [f"{alphabet}/character{n}" for alphabet in ("Alpha", "Beta", "Gamma") for n in (1, 2, 3)]
    return write_class_folders(folder, 255 - pixels, labels, names)


@pytest.fixture(scope="module", params=["maml", "protonet"])
def images(request, folders, tmp_path_factory) -> Path:
    logs = tmp_path_factory.mktemp(request.param)
    words = ["--algorithm", request.param, "--baseline_steps", 5 if request.param == "protonet" else 0]
    return train(logs, "--data", folders, *IMAGES, *words)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rng, words = np.random.default_rng(0), ["cat", "dog", "cats", "dogs", "eats"]
    rows = [(" ".join(rng.choice(words, 5)) + f" {'eats ' * (n % 3)}", f"label {n % 9}") for n in range(180)]
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    preset = write_folder(folder / "preset")
    words = [
        "--data",
        folder / "texts.csv",
        "--preset",
        preset,
        "--sequence_length",
        12,
        "--baseline_steps",
        5,
    ]
    return train(folder / "logs", *TINY, *words, "--ways", 3, "--shots", 2, "--queries", 2)


# --- Training -------------------------------------------------------------------------------------


def test_steps_on_a_task_make_sinusoids_better(sinusoids) -> None:
    metrics = json.loads((sinusoids / "metrics.json").read_text())
    assert metrics["mse_after_1"] < metrics["mse_after_0"]
    assert metrics["mse"] == metrics["mse_after_10"] and metrics["mse_ci95"] > 0
    assert {"mean of the support set", "pretrained, fine-tuned (10 steps)"} == set(metrics["baselines"])
    assert metrics["facts"]["tasks"] == 600


def test_a_classification_stands_beside_what_a_sceptic_asks_for(images) -> None:
    metrics = json.loads((images / "metrics.json").read_text())
    assert metrics["baselines"]["guessing"] == {"accuracy": pytest.approx(1 / 3)}
    names = ["nearest centroid", "logistic regression"]
    if images.parent.parent.name.startswith("protonet"):
        names += ["pretrained, fine-tuned (10 steps)", "pretrained, logistic regression"]
    assert set(metrics["baselines"]) == {"guessing", *names}
    for name in names:
        assert 0 <= metrics["baselines"][name]["accuracy"] <= 1
    assert metrics["facts"]["classes"] == 3


def test_runs_are_resumed_to_the_bit(images, karpa) -> None:
    before = json.loads((images / "metrics.json").read_text())
    kill_in_the_middle(images)
    result = karpa("train", "meta", "--resume", images, "--logs", images.parent.parent, "--json")
    assert result.status == 0, result.err
    assert json.loads((images / "metrics.json").read_text()) == before


@pytest.mark.parametrize("algorithm", ["fomaml", "reptile", "imaml", "anil"])
def test_every_algorithm_trains(algorithm, karpa, tmp_path) -> None:
    words = ["--algorithm", algorithm, "--units", "4", "--baseline_steps", 0, "--inner_steps", 2]
    result = karpa("train", "meta", *TINY, *words, "--logs", tmp_path, "--json")
    assert result.status == 0, result.err
    assert np.isfinite(list(result.json["metrics"].values())).all()


def test_tensorboard_shows_tasks_and_the_figures_after_each_step(images, sinusoids) -> None:
    events = [event for event in read_events(sinusoids / "steps_on_a_task") if event.summary.value]
    values = [float(tf.make_ndarray(event.summary.value[0].tensor)) for event in events]
    assert [event.step for event in events] == [0, 1, 5, 10] and values[0] > values[1]
    for run in (images, sinusoids):
        assert {"task_1", "task_2", "task_3"} <= tags_of(read_events(run / "validation"))


# --- Evaluating, predicting -----------------------------------------------------------------------


def test_evaluate_says_again_what_training_said(images, karpa) -> None:
    logs = images.parent.parent
    result = karpa("evaluate", "meta/latest", "--logs", logs, "--json")
    assert result.status == 0, result.err
    before = json.loads((images / "metrics.json").read_text())
    assert result.json["metrics"]["accuracy"] == before["accuracy"]
    assert result.json["baselines"] == before["baselines"]
    fewer = karpa("evaluate", "meta/latest", "--logs", logs, "--shots", 1, "--tasks", 12)
    assert fewer.status == 0 and "shots: 1" in fewer.out and "tasks: 12" in fewer.out


def test_other_data_is_evaluated_whole(images, folders, karpa, tmp_path) -> None:
    pixels, labels = make_images(40, 8, 1, classes=4, seed=3)
    other = write_class_folders(tmp_path / "other", 255 - pixels, labels, [f"new {n}" for n in range(4)])
    result = karpa("evaluate", "meta/latest", "--logs", images.parent.parent, "--data", other, "--tasks", 12)
    assert result.status == 0, result.err
    assert "classes: 4" in result.out


def task(folders: Path, names: dict[str, str], queries: int = 2) -> dict[str, Any]:
    """A task as a request has it, of the images of some classes."""
    from PIL import Image

    def pixels(path: Path) -> list[list[float]]:
        return np.asarray(Image.open(path).convert("L"), np.float32).tolist()

    files = {label: sorted((folders / folder).iterdir()) for label, folder in names.items()}
    return {
        "support": [pixels(path) for paths in files.values() for path in paths[:3]],
        "labels": [label for label in files for _ in range(3)],
        "query": [pixels(path) for paths in files.values() for path in paths[3 : 3 + queries]],
    }


def test_predict_learns_classes_of_any_name(images, folders, karpa, tmp_path) -> None:
    row = task(folders, {"左": "Alpha/character1", "right": "Gamma/character2"})
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    words = ["predict", "meta/latest", "--logs", images.parent.parent, "--input", tmp_path / "tasks.jsonl"]
    result = karpa(*words, "--json")
    assert result.status == 0, result.err
    (answer,) = result.json["predictions"]
    assert answer["classes"][:2] == ["左", "right"] and set(answer["classes"][2:]) <= {""}
    assert len(answer["label"]) == 4 and set(answer["label"]) <= {"左", "right"}
    for probabilities in answer["probabilities"]:
        assert sum(probabilities[:2]) == pytest.approx(1, abs=1e-5)


def test_predict_takes_the_paths_of_images(images, folders, karpa, tmp_path) -> None:
    names = {"a": "Alpha/character1", "b": "Gamma/character2"}
    row = task(folders, names)
    files = {label: sorted((folders / folder).iterdir()) for label, folder in names.items()}
    paths = {
        "support": [str(path) for several in files.values() for path in several[:3]],
        "labels": row["labels"],
        "query": [str(path) for several in files.values() for path in several[3:5]],
    }
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, paths)))
    words = ["predict", "meta/latest", "--logs", images.parent.parent, "--input", tmp_path / "tasks.jsonl"]
    result = karpa(*words, "--json")
    assert result.status == 0, result.err
    first, second = result.json["predictions"]
    np.testing.assert_allclose(first["probabilities"], second["probabilities"], atol=1e-5)
    assert first["label"] == second["label"]
    paths["query"] = [str(folders / "nowhere.png")]
    (tmp_path / "tasks.jsonl").write_text(json.dumps(paths) + "\n")
    result = karpa(*words)
    assert result.status == 2 and "nowhere.png" in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"labels": [1, 2, 3, 4, 5, 6]}, "labels must be texts"),
        ({"labels": ["a"]}, "support and labels must be as long as each other"),
        ({"support": [], "labels": []}, "support must be a list of one item at least"),
        ({"query": "x"}, "query must be a list of one item at least"),
    ],
)
def test_rows_that_are_no_task(change, sentence, images, folders, karpa, tmp_path) -> None:
    row = task(folders, {"a": "Alpha/character1", "b": "Gamma/character2"}) | change
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--logs", images.parent.parent, "--input", tmp_path / "tasks.jsonl"]
    result = karpa("predict", "meta/latest", *words)
    assert result.status == 2 and sentence in result.err and "Traceback" not in result.err


# --- Serving --------------------------------------------------------------------------------------


def signature(run: Path) -> Any:
    recipe = Meta()
    return recipe.signature(RunFolder(run), recipe.about.predict()).function


def served(run: Path, row: dict[str, Any]) -> dict[str, np.ndarray]:
    inputs = {name: tf.constant([value]) for name, value in row.items()}
    return {name: value.numpy()[0] for name, value in signature(run)(**inputs).items()}


def test_padding_and_the_order_of_examples_change_nothing(images, folders) -> None:
    row = task(folders, {"a": "Alpha/character1", "b": "Gamma/character2"})
    plain = served(images, row)
    padded = {**row, "support": [*row["support"], row["query"][0]], "labels": [*row["labels"], ""]}
    np.testing.assert_allclose(
        served(images, padded)["probabilities"][:, :2], plain["probabilities"][:, :2], atol=1e-5
    )
    turned = {**row, "support": row["support"][::-1], "labels": row["labels"][::-1]}
    # A network with a head has a place for each class: which class takes which place matters a little there.
    if images.parent.parent.name.startswith("protonet"):
        np.testing.assert_allclose(
            served(images, turned)["probabilities"][:, ::-1], plain["probabilities"], atol=1e-5
        )


def test_tasks_side_by_side_are_answered_as_if_alone(images, folders) -> None:
    rows = [
        task(folders, {"a": "Alpha/character1", "b": "Gamma/character2"}),
        task(folders, {"b": "Beta/character3", "a": "Beta/character1"}),
    ]
    together = signature(images)(**{name: tf.constant([row[name] for row in rows]) for name in rows[0]})
    for number, row in enumerate(rows):
        alone = served(images, row)
        np.testing.assert_allclose(together["probabilities"][number], alone["probabilities"], atol=1e-5)
        assert together["label"][number].numpy().tolist() == alone["label"].tolist()


def test_requests_that_are_no_task_are_invalid_arguments(images, folders) -> None:
    row = task(folders, {"a": "Alpha/character1", "b": "Gamma/character2"})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"labels": [""] * 6}, "support set is empty"),
        ({"labels": ["a"] * 5}, "a label for each example"),
    ]
    if images.parent.parent.name.startswith("maml"):
        wrong.append(({"labels": list("abcdef")}, "3 classes at most"))
    for change, sentence in wrong:
        with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
            served(images, row | change)


def test_prototypes_take_more_classes_than_they_were_trained_with(folders, images) -> None:
    names = {f"class {n}": f"{alphabet}/character{n}" for alphabet in ("Alpha", "Beta") for n in (1, 2, 3)}
    names |= {"four": "Gamma/character1", "five": "Gamma/character2"}
    if images.parent.parent.name.startswith("protonet"):
        answer = served(images, task(folders, names))
        assert answer["probabilities"].shape[1] == len(names) == len(answer["classes"])


def test_numbers_of_labels_are_those_of_first_occurrence() -> None:
    labels = tf.constant([["b", "a", "", "b"], ["x", "x", "x", "y"]])
    for ways in (None, 3):
        places, classes, used = number_labels(labels, ways)
        assert places.numpy().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
        assert used.numpy().tolist() == [[1, 1, 0, 1], [1, 1, 1, 1]]
        assert classes.numpy().tolist() == [[b"b", b"a", b""][: ways or 2], [b"x", b"y", b""][: ways or 2]]


def same_after_export(run: Path, row: dict[str, Any], karpa: Any, tmp_path: Path) -> None:
    """Asserts that an exported model answers as its run does."""
    logs = ["--logs", run.parent.parent]
    result = karpa("export", "meta/latest", *logs, "--to", tmp_path / "models", "--force")
    assert result.status == 0, result.err
    (tmp_path / "row.jsonl").write_text(json.dumps(row) + "\n")
    first, second = (
        karpa("predict", model, *logs, "--input", tmp_path / "row.jsonl", "--json").json["predictions"][0]
        for model in ("meta/latest", tmp_path / "models" / "meta" / "1")
    )
    assert set(first) == set(second)
    name = "probabilities" if "labels" in row else "prediction"
    np.testing.assert_allclose(first[name], second[name], atol=1e-4)


def test_an_export_of_images_answers_as_the_run_does(images, folders, karpa, tmp_path) -> None:
    row = task(folders, {"a": "Alpha/character1", "b": "Gamma/character2"})
    same_after_export(images, row, karpa, tmp_path)


@pytest.mark.slow
def test_an_export_of_texts_answers_as_the_run_does(texts, karpa, tmp_path) -> None:
    row = {"support": ["cat eats", "dogs eats"], "labels": ["a", "b"], "query": ["cats eats"]}
    same_after_export(texts, row, karpa, tmp_path)


@pytest.mark.slow
def test_an_export_of_sinusoids_answers_as_the_run_does(sinusoids, karpa, tmp_path) -> None:
    row = {"support": [[0.0], [1.0]], "targets": [[0.0], [1.0]], "query": [[0.5]]}
    same_after_export(sinusoids, row, karpa, tmp_path)


# --- Wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"data": "train.csv"}, "need --preset"),
        ({"algorithm": "protonet"}, "sinusoids have none"),
        ({"transductive": True}, "transductive is for images"),
        ({"data": "glyphs", "algorithm": "reptile", "learn_rates": True}, "learn_rates goes with"),
        ({"data": "glyphs", "ways": 1}, "ways must be"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        MetaSettings(**settings)


def test_tasks_that_the_data_has_not(folders, karpa, tmp_path) -> None:
    for words, sentence in (
        (["--ways", 5], "need 5 classes in each split"),
        (["--shots", 9], "of 9 + 2 images each"),
    ):
        result = karpa("train", "meta", "--data", folders, *IMAGES, *words, "--logs", tmp_path)
        assert result.status == 2 and sentence in result.err and "Traceback" not in result.err
