"""`karpa-tf compare`: the same rows, a test, a page; and what cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY_DIGITS, make_images


@pytest.fixture(scope="module")
def other(digits, tmp_path_factory) -> Path:
    """A run like `digits` that has learned less; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("other")
    words = ["--data", str(digits.parents[2] / "digits.npz"), *TINY_DIGITS, "--logs", str(logs)]
    own = ["--epochs", "1", "--learning_rate", "0.0003", "--seed", "5"]
    assert main(["train", "mnist-mlp", *words, *own]) == 0
    return logs / "mnist-mlp" / "1"


def test_two_runs_are_compared_on_the_same_rows(digits, other, karpa, tmp_path) -> None:
    page = tmp_path / "page.html"
    done = karpa("compare", digits, other, "--rows", 3, "--html", page)
    assert done.status == 0
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (digits, other)]
    difference = metrics[1]["accuracy"] - metrics[0]["accuracy"]
    assert re.search(r"^epochs +4 +1$", done.out, re.MULTILINE)
    assert re.search(r"^seed +0 +5$", done.out, re.MULTILINE) and "batch_size" not in done.out
    assert f"{other} against {digits}: accuracy {difference:+.4g} (" in done.out
    assert "McNemar's exact test, p " in done.out
    found = karpa("compare", digits, other, "--rows", 3, "--json").json
    (pair,) = found["pairs"]["accuracy"]
    assert pair["difference"] == pytest.approx(difference)
    assert (pair["only_second"] - pair["only_first"]) / 30 == pytest.approx(difference)
    for own, expected in zip(found["figures"], metrics, strict=True):
        assert own["accuracy"]["figure"] == pytest.approx(expected["accuracy"])
        assert own["accuracy"]["low"] <= expected["accuracy"] <= own["accuracy"]["high"]
    rows = found["disagree"]["accuracy"]
    assert 1 <= len(rows) <= 3 and all(len(set(row["answers"])) == 2 for row in rows)
    # The page holds the same, and asks for nothing from elsewhere.
    text = page.read_text(encoding="utf-8")
    assert rows[0]["row"] in text and str(other) in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")


def test_a_run_is_no_better_than_itself_on_other_data(digits, other, karpa, tmp_path) -> None:
    x, y = make_images(40, 10, 1, seed=3)
    np.savez(tmp_path / "more.npz", x_test=x, y_test=y, x_train=x, y_train=y)
    found = karpa("compare", digits, other, "--data", tmp_path / "more.npz", "--json").json
    assert found["data"] == str(tmp_path / "more.npz")
    assert found["figures"][0]["accuracy"]["figure"] != found["figures"][1]["accuracy"]["figure"]


def test_what_cannot_be_compared_says_why(digits, other, photos, karpa, tmp_path) -> None:
    done = karpa("compare", digits)
    assert done.status == 2 and "compare takes two runs at least. Received:" in done.err
    done = karpa("compare", digits, digits)
    assert done.status == 2 and "compare takes two runs at least." in done.err
    done = karpa("compare", digits, photos)
    assert done.status == 2
    assert f"{digits} and {photos} are not judged on the same rows: 30 of" in done.err
    done = karpa("compare", digits, tmp_path / "none")
    assert done.status == 2 and "There is no run" in done.err


def test_runs_of_other_tasks_have_no_figure_in_common(digits, frozen, karpa) -> None:
    done = karpa("compare", digits, frozen / "q-learning" / "1")
    assert done.status == 2
    assert "so they are of different tasks" in done.err
    assert "has accuracy" in done.err and "has mean_return" in done.err


def test_policies_are_compared_by_the_returns_of_the_same_episodes(frozen, karpa) -> None:
    found = karpa("compare", frozen / "q-learning" / "1", frozen / "sarsa" / "1", "--json").json
    (pair,) = found["pairs"]["mean_return"]
    assert pair["test"] == "paired bootstrap" and pair["low"] <= pair["difference"] <= pair["high"]


def test_masked_language_models_are_compared_window_by_window(trained, karpa, tmp_path) -> None:
    copy = tmp_path / "mlm-gru" / "2"
    shutil.copytree(trained, copy)
    found = karpa("compare", trained, copy, "--json").json
    (pair,) = found["pairs"]["loss"]
    assert pair["difference"] == 0.0 and pair["p"] == 1.0 and found["disagree"]["loss"] == []
    metrics = json.loads((trained / "metrics.json").read_text())
    assert found["figures"][0]["loss"]["figure"] == pytest.approx(metrics["loss"], rel=1e-4)
