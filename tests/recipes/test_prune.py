"""`karpa-tf prune`: runs of every family that loses weights, heads or neurons, resumed, exported, refused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import yaml

from karpa_tf.errors import UserError
from karpa_tf.recipes.bert_classifier import BertClassifierSettings
from karpa_tf.recipes.mnist_mlp import MnistMlpSettings
from tests.conftest import kill_in_the_middle

EXACT = ["--deterministic", "--checkpoint_seconds", 0, "--keep_checkpoints", 100]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(run / "best.weights.h5") as file:
        file.visititems(lambda n, x: found.update({n: x[()]} if isinstance(x, h5py.Dataset) else {}))
    return found


def config_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def same_end(run: Path, other: Path) -> None:
    checkpoints = [sorted((folder / "checkpoints").glob("step-*.npz"))[-1] for folder in (run, other)]
    assert checkpoints[0].name == checkpoints[1].name
    with np.load(checkpoints[0]) as a, np.load(checkpoints[1]) as b:
        names = [name for name in a.files if name != "state"]
        assert all(np.array_equal(a[name], b[name]) for name in names)
    first, second = weights_of(run), weights_of(other)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def killed_copy(run: Path, logs: Path) -> Path:
    copy = logs / run.parent.name / "1"
    shutil.copytree(run, copy)
    kill_in_the_middle(copy)
    return copy


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "fixture",
    ["digits", *(pytest.param(name, marks=SLOW) for name in ("photos", "classified", "tagged"))],
)
def test_a_sparse_run_has_its_zeros_and_says_what_it_costs(fixture, karpa, request, tmp_path) -> None:
    parent = request.getfixturevalue(fixture)
    words = ["--sparsity", 0.8, "--epochs", 2, *EXACT, "--logs", tmp_path]
    done = karpa("prune", parent, *words, "--json")
    assert done.status == 0, done.err
    run = Path(done.json["run"])
    assert run.parent == tmp_path / parent.parent.name
    assert config_of(run)["init"] == str(parent.resolve()) and config_of(run)["sparsity"] == 0.8
    matrices = [value for name, value in weights_of(run).items() if value.ndim > 1 and "whitened" not in name]
    assert len(matrices) > 1
    for matrix in matrices:
        assert (matrix == 0).sum() == int(0.8 * matrix.size)
    assert "nothing faster" in done.err
    table = done.json["costs"]["table"]
    before, after = table.values()
    assert list(table) == [f"{run.parent.name}/1", str(run)]
    assert after["bytes"] == pytest.approx(before["bytes"], abs=50)
    assert before["gzip_bytes"] > after["gzip_bytes"]
    assert after["zeros"] > 0.5 > before["zeros"]
    figure = "f1" if fixture == "tagged" else "accuracy"
    assert after[figure] == done.json["metrics"][figure]
    assert json.loads((run / "metrics.json").read_text())["costs"] == done.json["costs"]
    resumed = killed_copy(run, tmp_path / "other")
    assert karpa("train", run.parent.name, "--resume", resumed).status == 0
    same_end(run, resumed)
    if fixture != "digits":
        return
    assert "gzip_bytes" in done.err and "request_ms: median of" in done.err
    exported = karpa("export", run, "--to", tmp_path / "models", "--force", "--json")
    assert exported.status == 0, exported.err
    model = Path(exported.json["savedmodel"])
    kernels = [v.numpy() for v in tf.saved_model.load(str(model)).weights if v.shape.rank == 2]
    assert [(kernel == 0).sum() for kernel in kernels] == [int(0.8 * kernel.size) for kernel in kernels]
    data = (model / "variables" / "variables.data-00000-of-00001").read_bytes()
    assert len(gzip.compress(data)) < len(data) / 2
    card = (model / "assets.extra" / "model_card.md").read_text()
    assert "## Costs" in card and f"| {run} |" in card and "processor time for" in card


@pytest.mark.parametrize("fixture", [pytest.param(name, marks=SLOW) for name in ("classified", "tagged")])
def test_heads_and_neurons_leave_the_graph(fixture, karpa, request, tmp_path) -> None:
    parent = request.getfixturevalue(fixture)
    recipe = parent.parent.name
    words = ["--heads", 0.5, "--neurons", 0.75, "--epochs", 2, *EXACT, "--logs", tmp_path]
    done = karpa("prune", parent, *words, "--json")
    assert done.status == 0, done.err
    assert "Removing 1 of 2 heads and 96 of 128 neurons" in done.err
    run = Path(done.json["run"])
    config = config_of(run)
    assert (config["prune_heads"], config["prune_neurons"], config["sparsity"]) == (0.5, 0.75, 0.0)
    sizes = json.loads((run / "assets" / "encoder.json").read_text())["architecture"]
    assert (sizes["heads"], sizes["head_width"], sizes["intermediate"]) == (1, 16, 32)
    before, after = done.json["costs"]["table"].values()
    assert after["bytes"] < before["bytes"] and "zeros" not in after
    resumed = killed_copy(run, tmp_path / "other")
    assert karpa("train", recipe, "--resume", resumed).status == 0
    same_end(run, resumed)
    assert karpa("evaluate", run, "--json").json["metrics"]["loss"] == pytest.approx(
        done.json["metrics"]["loss"]
    )
    exported = karpa("export", run, "--to", tmp_path / "models", "--force", "--json")
    assert exported.status == 0, exported.err
    shapes = [
        v.shape.as_list() for v in tf.saved_model.load(exported.json["savedmodel"]).weights if v.shape.rank
    ]
    assert [32, 16] in shapes and [32, 32] in shapes and [32, 128] not in shapes
    if fixture == "classified":
        return
    # What came of it may be pruned once more, and begins with the same sizes.
    again = karpa("prune", run, "--sparsity", 0.5, "--epochs", 1, "--logs", tmp_path, "--json")
    assert again.status == 0, again.err
    assert config_of(Path(again.json["run"]))["prune_heads"] == 0
    both = again.json["costs"]["table"]
    assert list(both) == [f"{recipe}/1", f"{recipe}/2"]
    graphs = [both[f"{recipe}/{number}"]["bytes"] for number in (1, 2)]
    assert graphs[1] == pytest.approx(graphs[0], abs=50)  # names in it are numbered


def test_neurons_leave_a_perceptron(digits, karpa, tmp_path) -> None:
    words = ["--neurons", 0.5, "--epochs", 2, *EXACT, "--seed", 3, "--logs", tmp_path]
    done = karpa("prune", digits, *words, "--json")
    assert done.status == 0, done.err
    run = Path(done.json["run"])
    assert "Removing 8 of 16 neurons" in done.err
    assert (config_of(run)["units"], config_of(run)["seed"], config_of(digits)["units"]) == ("8", 3, "16")
    before, after = done.json["costs"]["table"].values()
    assert after["bytes"] < before["bytes"]
    resumed = killed_copy(run, tmp_path / "other")
    assert karpa("train", "mnist-mlp", "--resume", resumed).status == 0
    same_end(run, resumed)


@pytest.mark.parametrize(
    ("fixture", "words", "said"),
    [
        ("digits", ["--sparsity", 1], "--sparsity must be at least 0 and below 1. Received: 1."),
        ("digits", ["--sparsity", -0.1], "--sparsity must be at least 0 and below 1. Received: -0.1."),
        ("classified", ["--heads", 1.5], "--heads must be at least 0 and below 1. Received: 1.5."),
        ("classified", ["--neurons", "half"], "--neurons must be a finite number. Received: half."),
        ("digits", ["--heads", 0.5], "A network of mnist-mlp has no heads that can be removed"),
        ("photos", ["--neurons", 0.5], "--neurons goes with bert-classifier"),
        ("digits", [], "prune takes --sparsity or --neurons, a share above 0."),
        ("classified", ["--sparsity", 0.5, "--heads", 0.5], "prune twice"),
        ("trained", ["--sparsity", 0.5], "prune does not go with mlm-gru; it goes with bert-classifier"),
        ("classified", ["--heads", 0.1], "Nothing is removed by 0.1 of the heads"),
        ("classified", ["--sparsity", 0.5, "--batch_size", 0.5], "--batch_size must be"),
        ("digits", ["--sparsity", 0.5, "--sparsty", 1], "--sparsity"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(fixture, words, said, karpa, request, tmp_path) -> None:
    run = request.getfixturevalue(fixture)
    done = karpa("prune", run, *words, "--logs", tmp_path)
    assert done.status == 2 and done.err.count("\n") <= 4
    assert said in done.err.splitlines()[-1] and done.err.splitlines()[-1].startswith("karpa-tf")
    assert not (tmp_path / run.parent.name).exists()


def test_only_a_finished_run_with_weights_is_pruned(digits, karpa, tmp_path) -> None:
    run = tmp_path / "mnist-mlp" / "1"
    shutil.copytree(digits, run)
    (run / "best.weights.h5").unlink()
    done = karpa("prune", run, "--sparsity", 0.5, "--logs", tmp_path)
    assert (done.status, done.out) == (2, "") and "has no weights any more" in done.err
    (run / "metrics.json").unlink()
    done = karpa("prune", "mnist-mlp/latest", "--sparsity", 0.5, "--logs", tmp_path)
    assert done.status == 2 and "has not ended: go on with `karpa-tf train mnist-mlp --resume" in done.err
    for words in ([], ["--sparsity", 0.5]):
        assert "RUN" in karpa("prune", *words).err
    assert "There is no run" in karpa("prune", tmp_path / "none", "--sparsity", 0.5).err


def test_settings_that_cannot_prune_are_refused() -> None:
    with pytest.raises(UserError, match="give it as init"):
        BertClassifierSettings(prune_heads=0.5)
    with pytest.raises(UserError, match="give it as init"):
        MnistMlpSettings(prune_neurons=0.5)
    for method in ("lora", "fewshot"):
        with pytest.raises(UserError, match=f"method full. Received: method {method}"):
            BertClassifierSettings(preset="p", method=method, sparsity=0.5)  # type: ignore[arg-type]
    # A run of adapters is pruned in full, at the rate of that; one from few rows is not.
    adapted = BertClassifierSettings(preset="p", method="lora", learning_rate=1e-3)
    changed = {"pretrain_data": "", "method": "full", "learning_rate": 0.0, "average": ""}
    assert changed.items() <= adapted.of_pruned().items()
    with pytest.raises(UserError, match="Received: a run of fewshot"):
        BertClassifierSettings(preset="p", method="fewshot").of_pruned()


@SLOW
def test_several_seeds_of_a_sparse_run(digits, karpa, tmp_path) -> None:
    words = ["--sparsity", 0.5, "--epochs", 1, "--seeds", "0,1", "--logs", tmp_path]
    done = karpa("prune", digits, *words, "--json")
    assert done.status == 0, done.err
    runs = [tmp_path / "mnist-mlp" / number for number in "12"]
    assert [config_of(run)["seed"] for run in runs] == [0, 1]
    for run in runs:
        _, after = json.loads((run / "metrics.json").read_text())["costs"]["table"].values()
        assert after["zeros"] > 0.4
