"""`continual` from tasks that come one after the other to a served classifier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from karpa_tf.data import Images
from karpa_tf.errors import UserError
from karpa_tf.recipes.continual import ContinualSettings
from karpa_tf.recipes.continual.data import Examples
from karpa_tf.recipes.continual.methods import Learner, build_network
from karpa_tf.recipes.continual.recipe import Continual
from karpa_tf.recipes.continual.stream import CandidatesCrossEntropy, deal
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import make_images, write_class_folders, write_csv
from tests.events import read_events, tags_of
from tests.presets import tensors, write_folder

TINY = ["--image_size", 10, "--units", 24, "--epochs", 4, "--batch_size", 16, "--augment", "false"]
TINY += ["--learning_rate", 0.01, "--tasks", 3, "--buffer", 18, "--fisher_rows", 4]
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six classes of images in an .npz without splits."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    x, y = make_images(240, 10, 1, classes=6)
    np.savez(path, x_train=x, y_train=np.array(NAMES)[y])
    return path


def train(data: Path, logs: Path, *words: object) -> Path:
    from karpa_tf.cli import main

    line = ["train", "continual", "--data", data, *TINY, "--logs", logs, "--deterministic", "true", *words]
    assert main([str(word) for word in line]) == 0
    return logs / "continual" / "1"


@pytest.fixture(scope="module")
def replay(data, tmp_path_factory) -> Path:
    """A finished tiny run, all of whose checkpoints were kept: a class-incremental one with replay."""
    keep = ["--checkpoint_seconds", 0, "--keep_checkpoints", 1000]
    return train(data, tmp_path_factory.mktemp("replay"), *keep)


@pytest.fixture(scope="module")
def ewc(data, tmp_path_factory) -> Path:
    """The same, a task-incremental one with EWC."""
    keep = ["--checkpoint_seconds", 0, "--keep_checkpoints", 1000, "--method", "ewc", "--stream", "task"]
    return train(data, tmp_path_factory.mktemp("ewc"), *keep)


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


# --- Training and its figures


def test_the_figures_are_those_of_the_matrix(replay, karpa) -> None:
    metrics = metrics_of(replay)
    rows = metrics["facts"]["accuracies"]
    assert [len(row) for row in rows] == [1, 2, 3] and metrics["facts"]["rows"] == 48
    assert metrics["accuracy"] == pytest.approx(np.mean(rows[2]), abs=1e-4)
    forgotten = [max(rows[0][0], rows[1][0]) - rows[2][0], rows[1][1] - rows[2][1]]
    assert metrics["forgetting"] == pytest.approx(np.mean(forgotten), abs=1e-4)
    assert metrics["memory_bytes"] == 18 * (100 + 4)
    assert metrics["baselines"]["most frequent"]["accuracy"] == pytest.approx(1 / 6, abs=0.05)
    found = karpa("evaluate", replay, "--json").json
    assert found["metrics"] == {k: metrics[k] for k in found["metrics"]}
    assert found["facts"]["accuracies"] == rows
    table = karpa("evaluate", replay).out
    assert f"         3  {rows[2][0]:>7.4f}  {rows[2][1]:>7.4f}  {rows[2][2]:>7.4f}" in table


def test_tensorboard_has_curves_over_all_tasks_and_the_matrix_as_a_picture(replay) -> None:
    validation = read_events(replay / "validation")
    assert {"epoch/accuracy", "epoch/task_1", "epoch/task_3", "accuracies"} <= tags_of(validation)

    def steps(tag: str) -> list[int]:
        return [e.step for e in validation for value in e.summary.value if value.tag == tag]

    # On one clock: a task has 52 to 56 rows and 4 epochs.
    assert steps("epoch/task_1") == list(range(4, 49, 4)) and steps("epoch/task_3") == [36, 40, 44, 48]
    assert {"epoch/loss", "batch/accuracy"} <= tags_of(read_events(replay / "train"))
    assert Image.open(replay / "accuracies.png").size[0] > 300
    kept = {path.name for path in (replay / "assets").glob("*.h5")}
    assert kept == {f"task_{number}.weights.h5" for number in (1, 2, 3)}


def test_without_a_method_a_task_is_forgotten_and_with_all_rows_it_is_not(data, replay, tmp_path) -> None:
    naive = metrics_of(train(data, tmp_path / "a", "--method", "naive"))
    joint = metrics_of(train(data, tmp_path / "b", "--method", "joint"))
    assert naive["facts"]["accuracies"][2][:2] == [0.0, 0.0] and naive["accuracy"] <= 1 / 3
    assert naive["forgetting"] > 0.8 and naive["memory_bytes"] == 0
    assert naive["accuracy"] + 0.2 < metrics_of(replay)["accuracy"] <= joint["accuracy"] + 0.05
    # All rows of the first two tasks.
    assert joint["memory_bytes"] == 104 * 112 and joint["accuracy"] > 0.9


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("replay", 20),
        ("ewc", 34),
        *(
            pytest.param(*case, marks=_SLOW)
            for case in (("replay", 3), ("replay", 34), ("ewc", 3), ("ewc", 20))
        ),
    ],
)
def test_it_resumes_to_the_bit_at_any_task(name, left, request, karpa, tmp_path) -> None:
    run = request.getfixturevalue(name)
    stopped = shutil.copytree(run, tmp_path / "continual" / "1")
    (stopped / "metrics.json").unlink()
    for path in sorted((stopped / "checkpoints").glob("step-*.npz"))[left:]:
        path.unlink()
    for number in (1, 2, 3):
        if left < 16 * number:  # the checkpoint is of this task, or of an earlier one
            (stopped / "assets" / f"task_{number}.weights.h5").unlink()
    result = karpa("train", "continual", "--resume", stopped)
    assert result.status == 0, result.err
    assert metrics_of(stopped) == metrics_of(run)
    same = [np.load(sorted((x / "checkpoints").glob("*.npz"))[-1]) for x in (run, stopped)]
    for key in set(same[0].files) - {"state"}:
        np.testing.assert_array_equal(same[0][key], same[1][key])


def test_what_a_second_stop_leaves_knows_the_first_tasks(replay, karpa, tmp_path) -> None:
    """A run that was resumed behind its first task says so in its next checkpoints."""
    stopped = shutil.copytree(replay, tmp_path / "continual" / "1")
    for left in (20, 25):
        result = karpa("train", "continual", "--resume", stopped)
        assert result.status == 0 and "task 1 of 3" not in result.err, result.err
        state = np.load(sorted((stopped / "checkpoints").glob("*.npz"))[-1])["state"].tobytes()
        assert json.loads(state)["finished"] == ["task_1", "task_2"]
        for path in sorted((stopped / "checkpoints").glob("step-*.npz"))[left:]:
            path.unlink()
    result = karpa("train", "continual", "--resume", stopped, "--epochs", 9)
    assert result.status == 2 and "--epochs are those of every task" in result.err
    assert "began with 4: train a new run. Received: 9." in result.err


def test_a_stopped_run_says_which_task_it_has_not_learned(replay, karpa, tmp_path) -> None:
    stopped = shutil.copytree(replay, tmp_path / "continual" / "1")
    for number in (2, 3):
        (stopped / "assets" / f"task_{number}.weights.h5").unlink()
    result = karpa("evaluate", stopped)
    assert result.status == 2 and "has not learned task 2 yet; go on with `karpa-tf train" in result.err


@pytest.mark.slow
def test_it_begins_with_the_weights_of_another_run(data, replay, karpa, tmp_path) -> None:
    """At a rate of all but 0 it is as good on the first task as that one is."""
    words = ["--learning_rate", 1e-12, "--init", replay, "--epochs", 1, "--stream", "task"]
    found = metrics_of(train(data, tmp_path, *words))
    assert found["facts"]["accuracies"][2][0] >= metrics_of(replay)["facts"]["accuracies"][2][0]


# --- Streams and methods


def settings(**values: Any) -> ContinualSettings:
    return ContinualSettings(**{"tasks": 3, "image_size": 10, "units": "4", "augment": False, **values})


def test_what_is_right_and_what_may_be_answered() -> None:
    names = [*NAMES, "gnu"]
    of_class = deal(names, settings())
    assert [len(task) for task in of_class.tasks] == [3, 2, 2] and of_class.names == names
    assert of_class.task_of(["gnu", "ant"]).tolist() == [2, 0]
    assert of_class.targets(["gnu", "ant"]).tolist() == [6, 0]
    assert of_class.candidates(2).tolist() == [[True] * 5 + [False] * 2] * 7
    of_task = deal(NAMES, settings(stream="task"))
    assert of_task.candidates(1)[3].tolist() == [False, False, True, True, False, False]
    assert of_task.of_task(2, 3).tolist() == [False] * 4 + [True] * 2
    domain = deal(NAMES, settings(stream="domain"))
    assert domain.names == ["ant/cat/eel", "bee/dog/fox"] and domain.candidates(1).all()
    assert domain.targets(NAMES).tolist() == [0, 1, 0, 1, 0, 1]
    shuffled = deal(NAMES, settings(shuffle=True, seed=1)).tasks
    assert sorted(label for task in shuffled for label in task) == NAMES and shuffled != of_task.tasks
    assert shuffled == deal(NAMES, settings(shuffle=True, seed=1)).tasks


def test_outputs_that_may_not_be_answered_get_no_gradient() -> None:
    stream = deal(NAMES, settings(stream="task"))
    logits = tf.constant(np.random.default_rng(0).normal(size=(4, 6)).astype("float32"))
    targets = np.array([0, 3, 3, 5])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = CandidatesCrossEntropy(stream.candidates(3)).call(targets, logits)
    pairs = np.array([logits.numpy()[row, [t - t % 2, t - t % 2 + 1]] for row, t in enumerate(targets)])
    expected = -np.log(np.exp(pairs) / np.exp(pairs).sum(1, keepdims=True))[range(4), targets % 2]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    slopes = tape.gradient(losses, logits).numpy()
    assert (slopes != 0).tolist() == stream.candidates(3)[targets].tolist()


def learner(**values: Any) -> Learner:
    x, y = make_images(120, 10, 1, classes=6)
    rows = Images(x[..., None], [NAMES[label] for label in y], [""] * 120)
    config = settings(batch_size=16, **values)
    stream = deal(NAMES, config)
    return Learner(config, stream, Examples(rows, rows.pixels), build_network(config, (10, 10, 1), 6))


def tasks_of(made: Learner, task: int) -> tuple[set[int], np.ndarray]:
    """The tasks that a task's batches have rows of, and the shares of the loss of an epoch's first batch."""
    _, targets, weights = zip(*made.batches(task).dataset().as_numpy_iterator(), strict=True)
    first = np.bincount(targets[0] // 2, weights[0], minlength=3) / weights[0].sum()
    return set((np.concatenate(targets) // 2).tolist()), first


def test_which_rows_a_method_learns_from() -> None:
    for method, seen in (("naive", {2}), ("ewc", {2}), ("replay", {0, 1, 2}), ("joint", {0, 1, 2})):
        assert tasks_of(learner(method=method, buffer=30), 2)[0] == seen
        assert tasks_of(learner(method=method, buffer=30), 0)[0] == {0}
    _, shares = tasks_of(learner(method="replay", buffer=30), 2)
    assert shares[2] == pytest.approx(1 / 3) and shares[0] + shares[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize("reservoir", ["uniform", "balanced"])
def test_the_buffer_is_a_function_of_the_seed_and_the_task(reservoir) -> None:
    made, again = (learner(method="replay", buffer=12, reservoir=reservoir, seed=3) for _ in range(2))
    assert made.buffer(0) == [] and made.buffer(2) == again.buffer(2)
    assert made.buffer(2) != learner(method="replay", buffer=12, reservoir=reservoir, seed=4).buffer(2)
    of = np.bincount(made.targets[made.buffer(2)], minlength=6)
    assert of.sum() == 12 and of[4:].sum() == 0
    if reservoir == "balanced":
        assert of[:4].tolist() == [3] * 4


# --- Serving


def images_of(data: Path, count: int = 4) -> np.ndarray:
    with np.load(data) as file:
        return file["x_train"][:count].astype("float32")


def test_an_export_answers_as_the_run_does(data, replay, karpa, tmp_path) -> None:
    result = karpa("export", replay, "--to", tmp_path)
    assert result.status == 0, result.err
    folder = tmp_path / "continual" / "1"
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    found = served(image=tf.constant(images_of(data)))
    assert found["probabilities"].shape == (4, 6) and found["label"].shape == (4,)
    rows = [{"image": image.tolist()} for image in images_of(data)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for model in (replay, folder):
        answers = karpa("predict", model, "--input", tmp_path / "rows.jsonl", "--json").json["predictions"]
        np.testing.assert_allclose([a["probabilities"] for a in answers], found["probabilities"], atol=1e-5)
        assert [a["label"] for a in answers] == [x.decode() for x in found["label"].numpy()]
    assert json.loads((folder / "assets.extra" / "rowwise.json").read_text())["signatures"][
        "serving_default"
    ]["rowwise"]
    assert (folder / "assets" / "labels.txt").read_text().splitlines() == NAMES
    card = (folder / "assets.extra" / "model_card.md").read_text()
    assert "2. cat, dog" in card and "`image` float32 [n, 10, 10], 0 to 255" in card


def test_where_the_task_is_known_there_is_an_answer_for_each(data, ewc, karpa, tmp_path) -> None:
    assert karpa("export", ewc, "--to", tmp_path).status == 0
    served = tf.saved_model.load(str(tmp_path / "continual" / "1")).signatures["serving_default"]
    found = served(image=tf.constant(images_of(data)))
    shares, labels = found["probabilities"].numpy(), found["label"].numpy().astype(str)
    assert labels.shape == (4, 3)
    for task in range(3):
        own = shares[:, 2 * task : 2 * task + 2]
        np.testing.assert_allclose(own.sum(1), 1, rtol=1e-5)
        assert labels[:, task].tolist() == [NAMES[2 * task + place] for place in own.argmax(1)]


def test_domains_share_their_outputs(data, karpa, tmp_path) -> None:
    run = train(data, tmp_path, "--stream", "domain", "--method", "joint", "--epochs", 2, "--shuffle", "true")
    names = Continual().open_model(RunFolder(run)).stream.names
    first, second = (set(name.split("/")) for name in names)
    assert first | second == set(NAMES) and len(first) == len(second) == 3
    row = json.dumps({"image": images_of(data)[0].tolist()})
    (answer,) = karpa("predict", run, row, "--json").json["predictions"]
    assert answer["label"] in names and len(answer["probabilities"]) == 2


@pytest.mark.slow
def test_texts_are_learned_on_an_encoder_that_stays_as_it_is(karpa, tmp_path) -> None:
    words = {"cat": "cat cats", "dog": "dog dogs", "eats": "eats eats", "both": "cat dog"}
    rows = [(f"{text} {'eats ' * (n % 3)}{n}", label) for n in range(20) for label, text in words.items()]
    table = write_csv(tmp_path / "texts.csv", rows)
    weights = tensors()
    weights["bert.embeddings.word_embeddings.weight"] *= 10  # else all texts are alike
    preset = write_folder(tmp_path / "preset", weights=weights)
    line = ["--preset", preset, "--sequence_length", 12, "--tasks", 2, "--epochs", 20, "--method", "joint"]
    run = train(table, tmp_path, *line)
    metrics = metrics_of(run)
    assert metrics["accuracy"] > 0.6 and metrics["memory_bytes"] == 28 * (8 * 4 + 4)
    shutil.rmtree(preset)  # the run has what it needs
    found = karpa("evaluate", run, "--json").json
    assert found["metrics"]["accuracy"] == pytest.approx(metrics["accuracy"])
    assert karpa("export", run, "--to", tmp_path / "models", "--force").status == 0
    texts = ["cat cats eats 7", "dog dogs"]
    served = tf.saved_model.load(str(tmp_path / "models" / "continual" / "1")).signatures["serving_default"]
    shares = served(text=tf.constant(texts))["probabilities"].numpy()
    answers = karpa("predict", run, *texts, "--json").json["predictions"]
    np.testing.assert_allclose([a["probabilities"] for a in answers], shares, atol=1e-5)
    result = karpa("predict", run, " ")
    assert result.status == 2 and "has an empty text" in result.err


# --- Other data, wrong input


def test_other_images_are_evaluated_by_their_tasks(replay, karpa, tmp_path) -> None:
    x, y = make_images(60, 10, 1, classes=6, seed=5)
    folder = write_class_folders(tmp_path / "other", x, y, NAMES)
    result = karpa("evaluate", replay, "--data", folder, "--json")
    assert result.status == 0 and result.json["facts"]["rows"] == 60, result.err
    np.savez(tmp_path / "some.npz", x_test=x[y < 4], y_test=y[y < 4])
    result = karpa("evaluate", replay, "--data", tmp_path / "some.npz")
    assert result.status == 2 and "0 was taken for ant" not in result.out
    assert "some.npz has no rows of task 3 (eel, fox): each task needs some." in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", 1], "A stream has two tasks at least"),
        (["--tasks", 7], "has 6 classes, and 7 tasks of stream class need 7: --tasks may be 6 at most."),
        (["--tasks", 4, "--stream", "task"], "4 tasks of stream task need 8: --tasks may be 3 at most."),
        (["--tasks", 2, "--stream", "domain", "--data", "five.npz"], "5 of five.npz cannot be dealt into 2"),
        (["--data", "two.npz", "--stream", "task", "--tasks", 2], "too few for two tasks of stream task"),
        (["--buffer", 5], "The buffer must hold a row of each of the 6 classes"),
        (["--data", "bare.npz"], "bare.npz (test split) has no rows of task 2 (2, 3): each task needs some."),
        (["--data", "texts.csv"], "Texts (texts.csv) need --preset"),
        (["--network", "cnn"], "network cnn takes images of 16 x 16 at least"),
        (["--data", "texts.csv", "--preset", "x", "--network", "cnn"], "network cnn is for images"),
        (["--stream", "tasks"], 'did you mean "task"?'),
        (["--units", "4,a"], "units takes whole numbers above 0"),
    ],
)
def test_wrong_input_is_one_sentence(words, said, data, karpa, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, classes in (("two", 2), ("five", 5)):
        x, y = make_images(60, 10, 1, classes=classes)
        np.savez(f"{name}.npz", x_train=x, y_train=y)
    x, y = make_images(120, 10, 1, classes=6)
    np.savez("bare.npz", x_train=x, y_train=y, x_test=x[(y < 2) | (y > 3)], y_test=y[(y < 2) | (y > 3)])
    result = karpa("train", "continual", "--data", data, *TINY, *words, "--logs", tmp_path / "logs")
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "logs").exists()


def test_settings_from_python_are_checked() -> None:
    with pytest.raises(UserError, match="tasks must be at least 1"):
        settings(tasks=0)
    assert build_network(settings(network="cnn", image_size=16), (16, 16, 1), 3).output.shape == (None, 3)
