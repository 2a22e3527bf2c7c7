"""`karpa-tf interpolate`: runs between two others, and soups of several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from karpa_tf.models.averaging import Statistics
from karpa_tf.recipe import find_recipe
from karpa_tf.recipes.families.settings import ImageSettings
from karpa_tf.training.ancestry import lineage
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import TINY_DIGITS, make_images


@pytest.fixture(scope="module")
def logs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of mnist-mlp: a copy of the conftest's, one that began with it on other images, one of its own."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("interpolate")
    shutil.copytree(digits, folder / "mnist-mlp" / "1")
    x, y = make_images(300, 10, 1, seed=3)
    np.savez(folder / "darker.npz", x_train=x // 2, y_train=y)
    data = digits.parents[2] / "digits.npz"
    for more in (
        ["--data", folder / "darker.npz", "--init", "mnist-mlp/1"],
        ["--data", data, "--seed", 5],
    ):
        words = ["train", "mnist-mlp", *TINY_DIGITS, "--epochs", 2, *more, "--logs", folder]
        assert main([str(word) for word in words]) == 0
    return folder


def test_runs_remember_what_they_come_of(logs) -> None:
    one, two, three = (lineage(RunFolder(logs / "mnist-mlp" / str(number))) for number in (1, 2, 3))
    assert one & two and not one & three and not two & three


@pytest.mark.slow
def test_the_curve_between_two_runs_ends_in_them(logs, karpa) -> None:
    result = karpa(
        "interpolate", "mnist-mlp/1", "mnist-mlp/2", "--lambda", "0:1:0.5", "--logs", logs, "--json"
    )
    assert result.status == 0, result.err
    assert "a common start: a mean can work" in result.err
    run = Path(result.json["run"])
    note = json.loads((run / "assets" / "average.json").read_text())
    assert [row["lambda"] for row in note["curve"]] == [0, 0.5, 1]
    assert set(note["curve"][0]) == {"lambda", "digits.npz", "darker.npz"}
    recipe: Any = find_recipe("mnist-mlp").load()
    for number, row in ((1, note["curve"][0]), (2, note["curve"][2])):
        own = RunFolder(logs / "mnist-mlp" / str(number))
        model = recipe.network(own)
        opened = [recipe.rows_of(RunFolder(logs / "mnist-mlp" / str(other)), model) for other in (1, 2)]
        Statistics(model, opened[0].features)()  # as at every other point
        for rows, data in zip(opened, ("digits.npz", "darker.npz"), strict=True):
            assert row[data] == pytest.approx(rows.figures("validation")(), abs=1e-6)
    # The chosen point is the best one on both validation splits, and what the run holds.
    means = [
        np.mean([row[data]["accuracy"] for data in ("digits.npz", "darker.npz")]) for row in note["curve"]
    ]
    chosen = [row["lambda"] for row in note["curve"]].index(note["shares"][1])
    assert means[chosen] == max(means)
    assert set(result.json["baselines"]) >= {"mnist-mlp/1", "mnist-mlp/2"}
    facts = json.loads((run / "metrics.json").read_text())["facts"]
    assert "accuracy on the test split of darker.npz" in facts and "barrier (digits.npz)" in facts
    assert (run / "interpolation.png").stat().st_size > 1000
    assert lineage(RunFolder(run)) >= lineage(RunFolder(logs / "mnist-mlp" / "1")) & lineage(
        RunFolder(logs / "mnist-mlp" / "2")
    )
    # A run as any other.
    evaluated = karpa("evaluate", run, "--logs", logs, "--json")
    assert evaluated.json["metrics"]["loss"] == pytest.approx(result.json["metrics"]["loss"], abs=1e-6)
    exported = karpa("export", run, "--to", logs / "models", "--logs", logs, "--json")
    assert exported.status == 0, exported.err
    card = (Path(exported.json["savedmodel"]) / "assets.extra" / "model_card.md").read_text()
    assert "mean of the weights" in card


def test_two_starts_are_said_to_collapse_and_essay_needs_two_data(logs, karpa) -> None:
    result = karpa("interpolate", "mnist-mlp/1", "mnist-mlp/3", "--lambda", "0.5", "--logs", logs)
    assert result.status == 0 and "no common start" in result.err, result.err
    result = karpa("interpolate", "mnist-mlp/1", "mnist-mlp/3", "--lambda", "essay", "--logs", logs)
    assert result.status == 2 and "both runs have the same: give other data as --data2" in result.err
    words = ["--lambda", "essay", "--data2", logs / "darker.npz", "--logs", logs, "--json"]
    result = karpa("interpolate", "mnist-mlp/1", "mnist-mlp/3", *words)
    assert result.status == 0, result.err
    run = Path(result.json["run"])
    curve = json.loads((run / "assets" / "average.json").read_text())["curve"]
    first = curve[0]
    ratio = min(1.0, first["digits.npz"]["loss"] / first["darker.npz"]["loss"])
    assert float(yaml.safe_load((run / "metrics.json").read_text())["facts"]["lambda"]) == pytest.approx(
        ratio, abs=1e-3
    )


def test_a_soup_takes_what_helps(logs, karpa) -> None:
    runs = [f"mnist-mlp/{number}" for number in (1, 2, 3)]
    result = karpa("interpolate", "--soup", *runs, "--logs", logs, "--json")
    assert result.status == 0, result.err
    note = json.loads((Path(result.json["run"]) / "assets" / "average.json").read_text())
    tried = {
        name: np.mean([figures["accuracy"] for figures in row.values()])
        for name, row in note["tried"].items()
    }
    assert set(tried) == {*runs, "uniform soup", "greedy soup"}
    assert tried["greedy soup"] >= max(tried[run] for run in runs)
    assert sum(note["shares"]) == pytest.approx(1)


def test_what_cannot_be_averaged_is_said_in_a_sentence(
    logs, digits, classified, frozen, karpa, tmp_path
) -> None:
    small = tmp_path / "small"
    words = ["--data", digits.parents[2] / "digits.npz", *TINY_DIGITS, "--units", 8, "--epochs", 1]
    assert karpa("train", "mnist-mlp", *words, "--logs", small).status == 0
    elsewhere = ["--data", logs / "darker.npz", *TINY_DIGITS, "--epochs", 1]
    assert karpa("train", "mnist-mlp", *elsewhere, "--logs", small).status == 0
    odd = shutil.copytree(digits, tmp_path / "odd" / "mnist-mlp" / "1")
    record = json.loads((odd / "assets" / "data.json").read_text())
    (odd / "assets" / "data.json").write_text(json.dumps({**record, "labels": ["0", "1", "owl"]}))
    stopped = shutil.copytree(digits, tmp_path / "stopped" / "mnist-mlp" / "1")
    (stopped / "metrics.json").unlink()
    one = logs / "mnist-mlp" / "1"
    cases: list[tuple[list[Any], str]] = [
        ([one], "interpolate takes two runs; with --soup more."),
        ([one, one], "An average takes two runs at least, each once."),
        ([one, small / "mnist-mlp" / "1"], "are networks of different architectures: "),
        ([one, small / "mnist-mlp" / "2"], "standardize pixels in other ways"),
        ([one, odd], "their labels differ (only"),
        ([one, stopped], "has not ended: go on with"),
        ([one, classified], "are runs of different recipes"),
        ([one, frozen / "q-learning" / "1"], "interpolate does not go with q-learning; it goes with"),
        ([one, logs / "mnist-mlp" / "2", "--lambda", "0:2:0.5"], "lambda takes numbers from 0 to 1"),
        ([one, logs / "mnist-mlp" / "2", "--soup", "--lambda", "0.5"], "--soup has no lambda"),
        ([one, logs / "mnist-mlp" / "2", "--data2", tmp_path / "none.npz"], "There is no file or folder"),
    ]
    for words, said in cases:
        result = karpa("interpolate", *words, "--logs", tmp_path / "logs")
        assert result.status == 2 and said in result.err, (words, result.err)
        assert len([line for line in result.err.splitlines() if line.startswith("karpa-tf: ")]) == 1
    assert not (tmp_path / "logs").exists(), "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("text", "found"), [("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]), ("0.4,0.1", [0.1, 0.4]), ("0.3", [0.3])]
)
def test_lambdas(text, found) -> None:
    assert ImageSettings(lambdas=text).values_of_lambda() == found
