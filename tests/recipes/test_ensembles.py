"""`karpa-tf ensemble`: several runs as one, that is evaluated, predicted with and exported as any run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from karpa_tf.recipe import find_recipe
from karpa_tf.recipes.families.ensembles import members_of
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import TINY_DIGITS, make_images


@pytest.fixture(scope="module")
def two(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished tiny runs of mnist-mlp: one of the conftest, and a smaller one; tests only read them."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("two")
    words = [
        "--data",
        digits.parents[2] / "digits.npz",
        *TINY_DIGITS,
        "--epochs",
        1,
        "--units",
        8,
        "--seed",
        1,
    ]
    assert main([str(word) for word in ("train", "mnist-mlp", *words, "--logs", logs)]) == 0
    return [digits, logs / "mnist-mlp" / "1"]


@pytest.fixture(scope="module")
def joined(two: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of copies of the two, which are gone; tests only read it."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("joined")
    copies = [
        shutil.copytree(run, folder / f"run{number}" / "mnist-mlp" / "1") for number, run in enumerate(two)
    ]
    (copies[0] / "assets" / "reference.json").write_text("of a member", encoding="utf-8")
    assert main(["ensemble", *map(str, copies), "--logs", str(folder / "logs"), "--json"]) == 0
    # What held-out rows were like for a member is not what they are like for all.
    assert not (folder / "logs" / "mnist-mlp" / "1" / "assets" / "reference.json").exists()
    for copy in copies:
        shutil.rmtree(copy)
    return folder / "logs" / "mnist-mlp" / "1"


def predicted(karpa: Any, run: Path, pixels: np.ndarray) -> list[dict[str, Any]]:
    result = karpa("predict", run, *(json.dumps(image.tolist()) for image in pixels), "--json")
    assert result.status == 0, result.err
    return result.json["predictions"]


def test_its_probabilities_are_the_mean_of_its_members(joined, two, karpa) -> None:
    pixels, _ = make_images(6, 10, 1, seed=7)
    each = [[row["probabilities"] for row in predicted(karpa, run, pixels)] for run in two]
    rows = predicted(karpa, joined, pixels)
    np.testing.assert_allclose([row["probabilities"] for row in rows], np.mean(each, axis=0), atol=1e-6)
    assert all(0 <= row["disagreement"] <= np.log(2) for row in rows)
    assert max(row["disagreement"] for row in rows) > 1e-3


def test_it_names_its_parents_and_stands_beside_them(joined, two, karpa) -> None:
    config = yaml.safe_load((joined / "config.yaml").read_text())
    assert [Path(path).parts[-3:] for path in config["ensemble"].split(",")] == [
        ("run0", "mnist-mlp", "1"),
        ("run1", "mnist-mlp", "1"),
    ]
    metrics = json.loads((joined / "metrics.json").read_text())
    figures = [json.loads((run / "metrics.json").read_text()) for run in two]
    for number, figure in enumerate(figures, 1):
        assert metrics["baselines"][f"member {number}"]["ece"] == pytest.approx(figure["ece"], abs=1e-5)
    mean = metrics["baselines"]["members' mean"]
    assert mean["accuracy"] == pytest.approx(np.mean([figure["accuracy"] for figure in figures]))
    assert "members make" in metrics["facts"]["errors"]
    table = metrics["costs"]["table"]
    assert set(table) == {"member 1", "member 2", "mnist-mlp/1"}
    assert table["mnist-mlp/1"]["bytes"] > max(table["member 1"]["bytes"], table["member 2"]["bytes"])
    result = karpa("evaluate", joined, "--json")
    assert result.json["metrics"]["loss"] == pytest.approx(metrics["loss"], abs=1e-6)
    assert "errors: " in result.err and "members' mean" in result.err


def test_it_is_exported_and_goes_on_without_its_members(joined, karpa, tmp_path) -> None:
    result = karpa("export", joined, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    outputs = result.json["signatures"]["serving_default"]["outputs"]
    assert outputs == {
        "label": "string [n]",
        "probabilities": "float32 [n, 3]",
        "disagreement": "float32 [n]",
    }
    card = (Path(result.json["savedmodel"]) / "assets.extra" / "model_card.md").read_text()
    assert "An ensemble of 2 runs" in card and "| members' mean |" in card and "## Costs" in card
    pixels, _ = make_images(3, 10, 1, seed=7)
    served = predicted(karpa, Path(result.json["savedmodel"]), pixels)
    for a, b in zip(served, predicted(karpa, joined, pixels), strict=True):
        np.testing.assert_allclose(a["probabilities"], b["probabilities"], atol=1e-5)
        np.testing.assert_allclose(a["disagreement"], b["disagreement"], atol=1e-5)
    copy = shutil.copytree(joined, tmp_path / "logs" / "mnist-mlp" / "1")
    (copy / "metrics.json").unlink()
    assert karpa("train", "mnist-mlp", "--resume", copy).status == 0
    before, after = (json.loads((run / "metrics.json").read_text()) for run in (joined, copy))
    assert after["loss"] == before["loss"]
    assert [row["status"] for row in karpa("runs", "--logs", tmp_path / "logs", "--json").json["runs"]] == [
        "finished"
    ]


def test_weights_by_validation_make_its_loss_there_smaller(two, joined, tmp_path) -> None:
    recipe = find_recipe("mnist-mlp")
    config = RunFolder(two[0]).open_config(recipe.about.settings)  # type: ignore[var-annotated]
    folder = RunFolder(tmp_path / "logs" / "mnist-mlp" / "1")
    folder.assets.mkdir(parents=True)
    own = recipe.load()
    own.start(config.joined(",".join(map(str, two)), "validation"), folder)  # type: ignore[attr-defined]
    fitted = folder.read_json("assets/ensemble.json")
    assert sum(fitted["weights"]) == pytest.approx(1) and fitted["temperature"] > 0

    def loss(run: RunFolder) -> float:
        labels, probabilities = own.validation(run)(own.member(run))  # type: ignore[attr-defined]
        return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())

    assert loss(folder) < loss(RunFolder(joined))
    assert [member.path.name for member in members_of(folder)] == ["1", "2"]


def test_texts_are_read_alike_or_not_at_all(classified, karpa, tmp_path) -> None:
    """Two classifiers of texts; one of them is a copy with other weights."""
    import h5py

    other = shutil.copytree(classified, tmp_path / "other" / "bert-classifier" / "1")
    with h5py.File(other / "best.weights.h5", "r+") as file:
        file.visititems(
            lambda _, item: item.write_direct(item[()] * 1.5) if hasattr(item, "write_direct") else None
        )
    recipe = find_recipe("bert-classifier")
    config: Any = RunFolder(classified).open_config(recipe.about.settings)
    folder, own = RunFolder(tmp_path / "logs" / "bert-classifier" / "1"), recipe.load()
    folder.assets.mkdir(parents=True)
    metrics = own.train(Run(folder, config.joined(f"{classified},{other}")))
    assert metrics["accuracy"] > 0.9
    texts = {"text": np.array([b"play music of Ada", b"is it raining?"], object)}
    runs = (RunFolder(classified), RunFolder(other), folder)
    *each, joined = (own.signature(run, recipe.about.predict())(texts) for run in runs)
    mean = np.mean([found["probabilities"] for found in each], axis=0)
    np.testing.assert_allclose(joined["probabilities"], mean, atol=1e-6)
    assert (joined["disagreement"] > 0).all() and joined["disagreement"].shape == (2,)
    with (other / "assets" / "vocab.txt").open("a") as vocabulary:
        vocabulary.write("zebra\n")
    result = karpa("ensemble", classified, other)
    assert result.status == 2 and "do not have the same vocabulary" in result.err
    assert len(result.err.strip().splitlines()) == 1


def changed(run: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of a run, with a file of JSON changed."""
    copy = shutil.copytree(run, folder / run.parent.name / "1")
    path = copy / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return copy


def test_what_cannot_be_joined_is_said_in_a_sentence(
    two, digits, classified, frozen, karpa, tmp_path
) -> None:
    def other_labels(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "labels": ["0", "1", "owl"]}

    labels = changed(digits, tmp_path / "labels", "assets/data.json", other_labels)
    unfinished = shutil.copytree(digits, tmp_path / "unfinished" / "mnist-mlp" / "1")
    (unfinished / "metrics.json").unlink()
    cases = [
        ([digits], "ensemble takes two runs at least. Received: "),
        ([digits, digits], "An ensemble takes two runs at least, each once."),
        ([digits, labels], "their labels differ (only"),
        ([digits, unfinished], "has not ended: go on with"),
        ([digits, classified], "are runs of different recipes, mnist-mlp and bert-classifier"),
        ([digits, frozen / "q-learning" / "1"], "ensemble does not go with q-learning; it goes with"),
        ([digits, tmp_path / "nothing"], "There is no run"),
    ]
    for runs, said in cases:
        result = karpa("ensemble", *runs, "--logs", tmp_path / "logs")
        assert result.status == 2 and said in result.err, result.err
        assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "logs").exists(), "a mistake leaves nothing behind"
    result = karpa("train", "mnist-mlp", "--ensemble", ",".join(map(str, two)), "--logs", tmp_path / "logs")
    assert result.status == 2 and "has the settings of its first member" in result.err
