"""`karpa-tf distill`: a run teaches a smaller one, which is a run as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from karpa_tf.data.tables import Rows
from karpa_tf.models.presets import encoder_variables
from karpa_tf.recipe import find_recipe
from karpa_tf.recipes.bert_classifier import BertClassifierSettings
from karpa_tf.recipes.bert_classifier.teaching import unlabelled
from karpa_tf.recipes.families.starts import TeacherBlocks
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import kill_in_the_middle, make_images, make_intents

EVERY = ["--deterministic", "--checkpoint_seconds", 0, "--keep_checkpoints", 1000]


def open_weights(run: Path) -> list[np.ndarray]:
    found = find_recipe(run.parent.name).load().open_model(RunFolder(run))  # type: ignore[attr-defined]
    return (found[1] if isinstance(found, tuple) else found.model).get_weights()


def train(folder: RunFolder, config: Any, resume: bool = False) -> dict[str, float]:
    """Trains as the command does, but measures no costs, which takes as long."""
    recipe = find_recipe(folder.recipe)
    return recipe.load().train(Run(folder, config, resume=resume, about=recipe.about))


def resumes_to_the_bit(run: Path, folder: Path) -> None:
    """Kills a finished run in the middle, goes on with it, and compares."""
    copy = RunFolder(shutil.copytree(run, folder / run.parent.name / "1"))
    kill_in_the_middle(copy.path)
    copy.best_weights.unlink()
    train(copy, copy.open_config(find_recipe(copy.recipe).about.settings), resume=True)
    before, after = (json.loads((path / "metrics.json").read_text()) for path in (run, copy.path))
    for metrics in (before, after):
        metrics.pop("costs", None)
        del metrics["graph_traces"]
    assert after == before
    for a, b in zip(open_weights(run), open_weights(copy.path), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Images


@pytest.mark.parametrize(
    "changes", [["--shift", 1, "--rotate", 5], ["--shift", 0]], ids=["changed images", "as they are"]
)
def test_an_image_network_learns_from_a_teacher_and_resumes(changes, digits, karpa, tmp_path) -> None:
    """A teacher is asked in every step where images are changed, and once where they are not."""
    words = [*changes, "--epochs", 2, *EVERY, "--logs", tmp_path / "logs", "--json"]
    result = karpa("distill", digits, *words)
    assert result.status == 0, result.err
    run = Path(result.json["run"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    before = yaml.safe_load((digits / "config.yaml").read_text())
    assert config["teacher"] == str(digits.resolve()) and config["units"] == "8"
    assert config["data"] == before["data"] and config["image_size"] == before["image_size"]
    assert result.json["metrics"]["accuracy"] > 0.5
    table = result.json["costs"]["table"]
    student, teacher = (table[name] for name in sorted(table, key=lambda name: table[name]["bytes"]))
    assert student["bytes"] < teacher["bytes"] and teacher["accuracy"] > 0.9
    resumes_to_the_bit(run, tmp_path / "again")


def test_a_student_is_used_without_its_teacher_but_not_trained(digits, karpa, tmp_path) -> None:
    teacher = shutil.copytree(digits, tmp_path / "teacher" / "mnist-mlp" / "1")
    result = karpa("distill", teacher, "--epochs", 1, "--units", 4, "--logs", tmp_path / "logs", "--json")
    run = Path(result.json["run"])
    other = shutil.copytree(teacher, tmp_path / "other")
    shutil.rmtree(teacher)
    image = json.dumps(make_images(1, 10, 1)[0][0].tolist())
    assert karpa("predict", run, image).status == 0
    assert karpa("export", run, "--to", tmp_path / "models", "--force").status == 0
    (card,) = (tmp_path / "models").rglob("model_card.md")
    assert f"Distilled from {teacher}" in card.read_text()
    result = karpa("train", "mnist-mlp", "--resume", run, "--epochs", 2)
    assert result.status == 2 and f"There is no run {teacher}, which is to teach this one" in result.err
    assert len(result.err.strip().splitlines()) <= 3  # the data is said before
    other.rename(teacher)
    with (teacher / "best.weights.h5").open("ab") as file:
        file.write(b"more")
    result = karpa("train", "mnist-mlp", "--resume", run, "--epochs", 2)
    assert result.status == 2 and "has other weights than when" in result.err


# --- Texts


@pytest.fixture(scope="module")
def student(classified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that begins with the blocks of `classified`, also on texts without labels; tests only read it."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("student")
    texts = [text for text, _ in make_intents(40, seed=5)]
    (folder / "more.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    words = ["--epochs", 2, "--extra_data", folder / "more.txt", "--logs", folder / "logs", *EVERY]
    assert main(["distill", str(classified), *map(str, words)]) == 0
    return folder / "logs" / "bert-classifier" / "1"


def test_a_bert_learns_from_a_teacher_and_texts_without_labels(student, classified, tmp_path) -> None:
    config = yaml.safe_load((student / "config.yaml").read_text())
    assert (config["preset"], config["layers"], config["teacher"]) == (
        "teacher",
        1,
        str(classified.resolve()),
    )
    metrics = json.loads((student / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9 and metrics["steps"] == 2 * -(-(240 + 40) // 16)
    assert set(metrics["costs"]["table"]) == {"bert-classifier/1", str(student)}
    assert (student / "assets" / "vocab.txt").read_text() == (classified / "assets" / "vocab.txt").read_text()
    resumes_to_the_bit(student, tmp_path)


def test_a_student_begins_with_every_second_block_and_the_head(classified, tmp_path) -> None:
    recipe: Any = find_recipe("bert-classifier").load()
    folder = RunFolder(shutil.copytree(classified, tmp_path / "bert-classifier" / "1"))
    path = folder.assets / "encoder.json"
    saved = json.loads(path.read_text())
    saved["architecture"]["layers"] = 6
    path.write_text(json.dumps(saved))
    task, start = recipe.open_task(folder)
    model = recipe.build(task, start.build_encoder())
    model.save_weights(folder.best_weights)
    blocks = TeacherBlocks(folder, 3)
    assert blocks.places == [0, 2, 4]
    assert TeacherBlocks(folder, 4).places == [0, 1, 3, 4]
    smaller = recipe.build(task, start.__class__(blocks.architecture, blocks.wordpiece).build_encoder())
    blocks.assign(smaller)
    known, found = encoder_variables(model), encoder_variables(smaller)
    for name, variable in found.items():
        block, slash, part = name.partition("/")
        twice = f"block_{2 * int(block[6:])}" if block.startswith("block_") else block
        np.testing.assert_array_equal(variable, known[f"{twice}{slash}{part}"])
    for a, b in zip(*(m.get_layer("logits").get_weights() for m in (model, smaller)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_an_ensemble_teaches_a_gru_of_its_own_vocabulary(classified, student, karpa, tmp_path) -> None:
    joined, run = (RunFolder(tmp_path / "bert-classifier" / number) for number in "12")
    first: Any = RunFolder(classified).open_config(BertClassifierSettings)
    for folder in (joined, run):
        folder.assets.mkdir(parents=True)
    train(joined, first.joined(f"{classified},{student}"))
    config: Any = joined.open_config(BertClassifierSettings)
    values = config.student(str(joined.path), joined.assets, BertClassifierSettings)
    small = {"preset": "scratch", "encoder": "gru", "width": 16, "epochs": 2, "learning_rate": 0.02}
    assert train(run, BertClassifierSettings(**{**values, **small}))["accuracy"] > 0.6
    config = run.open_config(BertClassifierSettings)
    assert not config.ensemble and config.teacher == str(joined.path)
    model = find_recipe("bert-classifier").load().open_model(run)[1]  # type: ignore[attr-defined]
    assert any("gru/forward_kernel" in variable.path for variable in model.weights)
    result = karpa("export", run.path, "--to", tmp_path / "models", "--json")
    assert result.status == 0, result.err
    result = karpa("predict", result.json["savedmodel"], "play music of Ada", "--json")
    assert result.json["predictions"][0]["label"] == "music"


def test_texts_without_labels_are_new_ones_each_once(tmp_path) -> None:
    known = Rows(["Play it.", "no"], None, ["a", "b"])
    held_out = Rows(["stop   IT"], None, ["a"])
    path = tmp_path / "more.csv"
    path.write_text("id,query\n1,new\n2,stop it\n3,other\n4,NEW\n5,play it.\n")
    config = BertClassifierSettings(teacher="x", text="query", extra_data=str(path))
    found = unlabelled(config, {"train": known, "validation": held_out, "test": held_out.take([])})
    assert found.texts == ["new", "other"] and found.labels == ["", ""]


def test_what_cannot_be_taught_is_said_in_a_sentence(
    digits, photos, classified, tagged, frozen, karpa, tmp_path
) -> None:
    unfinished = shutil.copytree(digits, tmp_path / "unfinished" / "mnist-mlp" / "1")
    (unfinished / "metrics.json").unlink()
    cases: list[tuple[list[object], str]] = [
        ([], "karpa-tf distill: RUN is missing: A run's folder, or RECIPE/latest"),
        ([unfinished], "has not ended: go on with"),
        ([frozen / "q-learning" / "1"], "distill does not go with q-learning; it goes with"),
        ([tagged], "distill does not go with bert-tagger; it goes with"),
        ([digits, "--into", "dqn"], "distill does not go with dqn; it goes with"),
        ([digits, "--into", "cifar10-cn"], 'did you mean "cifar10-cnn"?'),
        ([digits, "--unit", 3], 'has no option --unit; did you mean "--units"?'),
        ([classified, "--method", "fewshot"], "A teacher goes with method full, lora or head."),
        ([classified, "--layers", 3], "preset teacher leaves 3 transformer blocks of"),
        ([photos, "--data", digits.parents[2] / "digits.npz"], "their labels differ (only"),
        ([classified, "--encoder", "gru"], "encoder gru is trained from scratch"),
        # Their data is read first, which is no sheet of texts, or no images.
        ([digits, "--into", "bert-classifier"], "digits.npz"),
        ([classified, "--into", "mnist-mlp"], ".csv"),
    ]
    for words, said in cases:
        result = karpa("distill", *words, "--logs", tmp_path / "logs")
        assert result.status == 2 and said in result.err, result.err
        assert "Traceback" not in result.err
    assert not (tmp_path / "logs").exists(), "a mistake leaves nothing behind"
    into = ["--into", "cifar10-cnn", "--image_size", 16, "--widths", "4,4"]
    result = karpa("distill", digits, *into, "--logs", tmp_path / "logs")
    assert result.status == 2
    assert "reads image float32 [n, 10, 10], and what it is to teach reads" in result.err
    assert "image float32 [n, 16, 16, 3]: both must have the same signature." in result.err
