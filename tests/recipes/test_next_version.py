"""The next version of a run: `--init` on data with new labels, `--rehearse` of the old rows."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from karpa_tf.recipe import find_recipe
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import BERT_TINY, TINY_DIGITS, make_images, make_intents, write_csv
from tests.presets import write_reader


def news(rows: int) -> list[tuple[str, str]]:
    rng = random.Random(4)
    words = ["Oslo", "Lima", "Kiev", "Rome"]
    return [(f"read me the headlines of {rng.choice(words)} {n}", "news") for n in range(rows)]


@pytest.fixture(scope="module")
def second(classified: Path, intents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of bert-classifier that began with the conftest's: a new label, a quarter of the old rows."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("second")
    data = write_csv(folder / "news.csv", [*news(60), *make_intents(6, seed=8)])
    words = ["--data", data, "--init", classified, "--rehearse", 0.25, "--epochs", 4, *BERT_TINY]
    assert main([str(word) for word in ("train", "bert-classifier", *words, "--logs", folder / "logs")]) == 0
    return folder / "logs" / "bert-classifier" / "1"


def test_new_labels_are_appended_and_old_ones_are_kept(second, classified, karpa) -> None:
    old, new = (json.loads((run / "assets" / "labels.json").read_text()) for run in (classified, second))
    assert new == [*old, "news"]
    metrics = json.loads((second / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9
    assert metrics["facts"]["labels of init"].startswith("accuracy ")
    assert metrics["facts"]["new labels"].startswith("accuracy ")
    for text, label in (("read me the headlines of Rome", "news"), ("play music of Ada now", "music")):
        result = karpa("predict", second, text, "--json")
        assert result.json["predictions"][0]["label"] == label


def test_what_either_run_holds_out_is_not_learned_from(second, classified) -> None:
    recipe: Any = find_recipe("bert-classifier").load()
    configs = [RunFolder(run).open_config(recipe.about.settings) for run in (classified, second)]
    old, mixed = (recipe.open_data(config) for config in configs)
    new = recipe.open_data(configs[1].__class__(**{**vars(configs[1]), "rehearse": 0.0}))
    known = set(old.splits["train"].keys())
    keys = {split: set(rows.keys()) for split, rows in mixed.splits.items()}
    held = keys["test"] | keys["validation"]
    assert not keys["train"] & held and not keys["test"] & keys["validation"]
    for split in ("test", "validation"):
        assert set(old.splits[split].keys()) <= held
        assert not set(old.splits[split].keys()) & keys["train"]
    assert not held & known, "init has learned from it"
    share = len(keys["train"] & known) / len(known)
    assert 0.2 < share < 0.35
    assert set(new.splits["train"].keys()) - held <= keys["train"]


def test_weights_begin_as_those_of_the_run(classified, intents_file, tmp_path, karpa) -> None:
    """With a learning rate that moves nothing, the old labels' logits are the old run's."""
    data = write_csv(tmp_path / "news.csv", [*news(40), *make_intents(30, seed=8)])
    words = [*BERT_TINY, "--learning_rate", 1e-12, "--epochs", 1, "--logs", tmp_path / "logs", "--json"]
    result = karpa("train", "bert-classifier", "--data", data, "--init", classified, *words)
    assert result.status == 0, result.err
    recipe: Any = find_recipe("bert-classifier").load()
    texts = {"text": np.array([b"play music of Ada", b"is it raining?"], object)}
    runs = [RunFolder(Path(run)) for run in (classified, result.json["run"])]
    # Without the temperatures, which each has of its own.
    signatures = [recipe.served(recipe.open_model(run)[0], recipe.network(run)) for run in runs]
    old, new = (signature(texts)["probabilities"] for signature in signatures)
    np.testing.assert_allclose(new[:, :3] / new[:, :3].sum(axis=1, keepdims=True), old, atol=1e-5)
    # Old rows are not learned from: nothing keeps a new version from forgetting them.
    assert "3 labels, which keep their weights; new: news" in result.err


def test_images_learn_new_classes(digits, tmp_path, karpa) -> None:
    x, y = make_images(120, 10, 1, seed=2)
    named = np.array(["new" if label == 0 else f"{label}" for label in y])
    np.savez(tmp_path / "more.npz", x_train=255 - x, y_train=named)
    words = [*TINY_DIGITS, "--epochs", 2, "--rehearse", 1, "--logs", tmp_path / "logs", "--json"]
    result = karpa("train", "mnist-mlp", "--data", tmp_path / "more.npz", "--init", digits, *words)
    assert result.status == 0, result.err
    run = Path(result.json["run"])
    assert json.loads((run / "assets" / "labels.json").read_text())[:3] == ["0", "1", "2"]
    assert json.loads((run / "assets" / "labels.json").read_text())[3:] == ["new"]
    measured = [json.loads((path / "assets" / "images.json").read_text()) for path in (run, digits)]
    assert measured[0] == measured[1]
    assert karpa("evaluate", run, "--json").json["metrics"]["accuracy"] == result.json["metrics"]["accuracy"]
    # Runs that come of it have its labels in their order, and the same rows.
    for verb, more in (("distill", ["--units", 8]), ("prune", ["--sparsity", 0.5])):
        words = [*more, "--epochs", 1, "--logs", tmp_path / "logs", "--json"]
        child = karpa(verb, run, *words)
        assert child.status == 0, child.err
        assert (Path(child.json["run"]) / "assets" / "labels.json").read_text() == (
            run / "assets" / "labels.json"
        ).read_text()
        records = [
            json.loads((p / "assets" / "data.json").read_text()) for p in (run, Path(child.json["run"]))
        ]
        assert verb == "prune" or records[0]["fingerprint"] == records[1]["fingerprint"]


@pytest.mark.parametrize("method", ["lora", pytest.param("head", marks=pytest.mark.slow)])
def test_adapters_on_a_run_are_kept_with_it(method, classified, intents_file, tmp_path, karpa) -> None:
    """They were read back on the preset's weights, and not on those that they were trained on."""
    preset = write_reader(tmp_path / "preset", classified / "assets" / "vocab.txt")
    common = [*BERT_TINY, "--data", intents_file, "--preset", preset, "--logs", tmp_path / "logs", "--json"]
    full = karpa("train", "bert-classifier", *common, "--epochs", 3)
    assert full.status == 0, full.err
    added = karpa(
        "train", "bert-classifier", *common, "--init", full.json["run"], "--method", method, "--epochs", 1
    )
    assert added.status == 0, added.err
    metrics = json.loads((Path(added.json["run"]) / "metrics.json").read_text())
    assert metrics["accuracy"] >= full.json["metrics"]["accuracy"] - 0.05
    assert abs(metrics["accuracy"] - metrics["validation_accuracy"]) < 0.2
    # And a run of adapters can be begun with.
    again = karpa("train", "bert-classifier", *common, "--init", added.json["run"], "--epochs", 1)
    assert again.status == 0, again.err
    assert again.json["metrics"]["accuracy"] >= metrics["accuracy"] - 0.05


def test_wrong_words(classified, digits, tagged, intents_file, tmp_path, karpa) -> None:
    moved = shutil.copytree(classified, tmp_path / "moved" / "bert-classifier" / "1")
    record = moved / "assets" / "data.json"
    record.write_text(record.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    cases: list[tuple[str, list[Any], str]] = [
        ("bert-classifier", ["--rehearse", 0.5], "give that one as init"),
        (
            "bert-classifier",
            ["--rehearse", 1.5, "--init", classified],
            "rehearse must be at least 0 and at most 1",
        ),
        ("bert-classifier", ["--rehearse_from", classified], "rehearse_from goes with rehearse"),
        ("bert-classifier", ["--init", tagged], "is a run of bert-tagger, not of bert-classifier"),
        ("bert-classifier", ["--init", moved, "--rehearse", 0.5], "is not the data that"),
    ]
    for recipe, words, said in cases:
        words = ["--data", intents_file, *words, *BERT_TINY, "--logs", tmp_path / "logs"]
        result = karpa("train", recipe, *words)
        assert result.status == 2 and said in result.err, (words, result.err)
    assert not (tmp_path / "logs").exists()


def test_what_is_rehearsed_is_named_where_it_is_gone(second, classified, tmp_path, karpa) -> None:
    text = (second / "config.yaml").read_text()
    for name, (word, other), said in (
        ("run", (str(classified), str(tmp_path / "gone")), "whose rows are rehearsed: bring it back"),
        ("own", ("rehearse: 0.25", "rehearse: 0.5"), "is not the data that"),
    ):
        copy = shutil.copytree(second, tmp_path / name / "bert-classifier" / "1")
        assert word in text
        (copy / "config.yaml").write_text(text.replace(word, other))
        result = karpa("evaluate", copy)
        assert result.status == 2 and said in result.err, result.err


def test_numbers_with_gaps_are_classes_where_they_are_text(tmp_path, karpa) -> None:
    x, y = make_images(120, 10, 1)
    words = [*TINY_DIGITS, "--epochs", 1, "--logs", tmp_path / "logs"]
    np.savez(tmp_path / "numbers.npz", x_train=x, y_train=y + 5)
    result = karpa("train", "mnist-mlp", "--data", tmp_path / "numbers.npz", *words)
    assert result.status == 2 and "or give them names (an array of text" in result.err
    np.savez(tmp_path / "text.npz", x_train=x, y_train=(y + 5).astype(str))
    assert karpa("train", "mnist-mlp", "--data", tmp_path / "text.npz", *words).status == 0


def test_weights_of_other_sizes_are_refused_in_our_words(digits, tmp_path, karpa, recwarn) -> None:
    data = digits.parents[2] / "digits.npz"
    words = [*TINY_DIGITS, "--units", 9, "--init", digits, "--logs", tmp_path / "logs"]
    result = karpa("train", "mnist-mlp", "--data", data, *words)
    assert result.status == 2 and "do not fit; it must be a run of the same model and sizes" in result.err
    assert not [w for w in recwarn if "container" in str(w.message)]


@pytest.mark.parametrize("recipe", ["bert-tagger", "multi-task"])
def test_blocks_of_a_teacher_need_one(recipe, karpa) -> None:
    result = karpa("train", recipe, "--preset", "teacher")
    assert result.status == 2 and "preset teacher goes with recipes that have a teacher" in result.err


@pytest.mark.slow
def test_a_preset_learns_masked_words_of_its_texts_first(classified, intents_file, tmp_path, karpa) -> None:
    """The encoder goes on from the preset, and the head on from what masked words have made of it."""
    preset = write_reader(tmp_path / "preset", classified / "assets" / "vocab.txt")
    words = [*BERT_TINY, "--data", intents_file, "--preset", preset, "--logs", tmp_path / "logs", "--json"]
    words += ["--pretrain_data", "same", "--pretrain_epochs", 2, "--epochs", 2]
    full = karpa("train", "bert-classifier", *words)
    assert full.status == 0, full.err
    # What masked words have changed is under the adapters as well.
    added = karpa("train", "bert-classifier", *words, "--method", "head")
    assert added.status == 0, added.err
    recipe: Any = find_recipe("bert-classifier").load()
    tables = [
        np.asarray(recipe.network(RunFolder(Path(run.json["run"]))).get_layer("embeddings").tokens.embeddings)
        for run in (full, added)
    ]
    from karpa_tf.models.presets import load_preset

    before = load_preset(str(preset)).weights["token_embedding"]
    for table in tables:
        moved = np.abs(table - before).max()
        assert 1e-4 < moved < 0.3, "it goes on from the preset, and is changed"
    metrics = json.loads((Path(added.json["run"]) / "metrics.json").read_text())
    assert abs(metrics["accuracy"] - metrics["validation_accuracy"]) < 0.25
