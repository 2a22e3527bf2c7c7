"""Recipes of the user's own: in a folder, and in an installed package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import karpa_tf
from karpa_tf.errors import UserError
from karpa_tf.recipe import SHIPPED, all_recipes, find_recipe
from tests.conftest import TINY_DIGITS

OPTIONS = '''
from dataclasses import replace

from karpa_tf.settings import Count, option


@dataclass(kw_only=True)
class MyEvaluateOptions(ImageEvaluateOptions):
    """With an option of its own."""

    shown: Count = option(3, "How many images to name.")


ABOUT = replace(ABOUT, evaluate=MyEvaluateOptions)
'''

EVALUATE = """
    def evaluate(self, folder, options, step=None):
        found = super().evaluate(folder, options, step)
        found.facts["shown"] = options.shown
        return found
"""


@pytest.fixture
def mine(karpa, tmp_path, monkeypatch) -> Path:
    """A folder `my_digits` in the working directory: mnist-mlp with an option more."""
    monkeypatch.chdir(tmp_path)
    result = karpa("new", "my_digits", "--like", "mnist-mlp")
    assert result.status == 0 and "karpa-tf train ./my_digits" in result.out
    for name, more in (("__init__.py", OPTIONS), ("recipe.py", EVALUATE)):
        with (tmp_path / "my_digits" / name).open("a", encoding="utf-8") as file:
            file.write(more)
    return tmp_path / "my_digits"


def test_a_folder_is_trained_resumed_evaluated_and_exported(mine, digits, karpa) -> None:
    data = digits.parent.parent.parent / "digits.npz"
    report = karpa("train", "./my_digits", "--data", data, *TINY_DIGITS, "--epochs", 2, "--json").json
    assert report["run"] == "logs/my-digits/1" and report["metrics"]["accuracy"] > 0
    written = json.loads(Path("logs/my-digits/1/environment.json").read_text())
    assert written["recipe"] == {"name": "my-digits", "path": str(mine)} and written["seed"] == 0
    assert karpa("train", mine, "--resume", "my-digits/latest", "--epochs", 3).status == 0
    rows = karpa("runs", "my-digits", "--json").json["runs"]
    assert [(row["status"], row["config"]["epochs"]) for row in rows] == [("finished", 3)]
    assert "shown: 7" in karpa("evaluate", "my-digits/latest", "--shown", 7).out
    result = karpa("evaluate", "my-digits/latest", "--shown", 0)
    assert result.status == 2 and "--shown must be at least 1. Received: 0." in result.err
    result = karpa("evaluate", digits, "--shown", 7)
    assert result.status == 2 and "karpa-tf evaluate has no option --shown" in result.err
    assert karpa("export", "my-digits/latest", "--json").json["savedmodel"] == "savedmodels/my-digits/1"

    mine.rename(mine.parent / "elsewhere")
    result = karpa("evaluate", "my-digits/latest")
    assert result.status == 2 and f"trained by the recipe in {mine}, which is gone" in result.err
    (mine.parent / "new").mkdir()
    (mine.parent / "elsewhere").rename(mine.parent / "new" / "my_digits")
    assert karpa("train", "new/my_digits", "--resume", "logs/my-digits/1", "--epochs", 4).status == 0
    assert karpa("evaluate", "my-digits/latest").status == 0


def test_what_is_no_recipe(mine, karpa) -> None:
    for words, sentence in (
        (["new", "my_digits"], "my_digits exists already; choose another name."),
        (["new", "mlm_gru"], "There is a recipe mlm-gru already; choose another name."),
        (["new", "My Digits"], "A recipe's name has small letters, digits, - and _. Received: My Digits."),
        (["new", "more", "--like", "mnist"], 'There is no recipe "mnist"; did you mean "mnist-mlp"?'),
        (["train", "my_digits"], 'There is no recipe "my_digits"; did you mean "./my_digits"?'),
        (["train", "./logs"], "logs is no recipe: it has no __init__.py; `karpa-tf new` makes"),
    ):
        result = karpa(*words)
        assert result.status == 2 and sentence in result.err
    shutil.copytree(mine, mine.parent / "sarsa")
    with pytest.raises(
        UserError, match="There is a recipe sarsa already; give the folder sarsa another name"
    ):
        find_recipe("./sarsa")
    (mine / "recipe.py").write_text("from karpa_tf.recipe import Recipe\n")
    with pytest.raises(UserError, match=r"recipe\.py must have one subclass of Recipe\. Received: none\."):
        find_recipe("./my_digits").load()
    (mine.parent / "empty").mkdir()
    for name in ("__init__.py", "recipe.py"):
        (mine.parent / "empty" / name).touch()
    result = karpa("train", "./empty")
    assert result.status == 2 and "__init__.py must have `ABOUT = About(...)`" in result.err


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder of installed packages: one of them has a recipe `their-digits`."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SHIPPED / "mnist_mlp", site / "their_package" / "digits", ignore=ignored)
    (site / "their_package" / "__init__.py").touch()
    about = site / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[karpa_tf.recipes]\ntheir-digits = their_package.digits\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    all_recipes.cache_clear()
    yield site
    all_recipes.cache_clear()


def test_a_recipe_of_an_installed_package(installed, digits, karpa) -> None:
    names = [row["recipe"] for row in karpa("list", "--json").json["recipes"]]
    assert names[-1] == "their-digits" and len(names) == 15
    data = digits.parent.parent.parent / "digits.npz"
    words = ["--config", "essay", "--data", data, *TINY_DIGITS, "--epochs", 2]
    assert karpa("train", "their-digits", *words).status == 0
    result = karpa("evaluate", "their-digits/latest", "--attack", "fgsm")
    assert result.status == 0 and "most frequent" in result.out
    assert "their-digits/1" in karpa("runs").out
    # As it is found where it is installed.
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{Path(karpa_tf.__file__).parents[1]}"}
    command = [sys.executable, "-m", "karpa_tf", "train", "their-digits", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "--batch_normalization" in done.stdout


def test_a_package_that_is_not_there(installed, karpa) -> None:
    (installed / "their_package-1.0.dist-info" / "entry_points.txt").write_text(
        "[karpa_tf.recipes]\ntheir-digits = their_package.nothing\n"
    )
    all_recipes.cache_clear()
    result = karpa("train", "their-digits")
    assert result.status == 2
    assert "There is no package their_package.nothing, which karpa_tf.recipes names as recipe" in result.err


def test_mistakes_in_a_recipe_of_ones_own_are_sentences(mine, digits, karpa) -> None:
    data = digits.parent.parent.parent / "digits.npz"
    train = ["train", "./my_digits", "--data", data, *TINY_DIGITS, "--epochs", 1]
    assert karpa(*train).status == 0
    assert "logs/my-digits/1" in karpa("runs", "./my_digits").out
    other = mine.parent / "more" / "my_digits"
    shutil.copytree(mine, other)
    result = karpa("train", other, "--resume", "my-digits/latest")
    assert result.status == 2 and f"is a run of the recipe in {mine}; give that folder" in result.err
    code = (mine / "recipe.py").read_text()
    (mine / "recipe.py").write_text(code + "\n    def train(self, run):\n        super().train(run)\n")
    shutil.copytree(mine, mine.parent / "forgets")
    result = karpa("train", "./forgets", *train[2:])
    assert result.status == 2 and "train must return figures by name, those of run.finish" in result.err
    for number, (text, said) in enumerate(
        (
            ("epsodes: 3", 'has no field "epsodes"; did you mean "epochs"?'),
            ("epochs: many", "default.yaml: epochs must be a whole number. Received: many."),
            ("- 1", "default.yaml must hold one `field: value` a line"),
        )
    ):
        shutil.copytree(mine, mine.parent / f"odd{number}")
        (mine.parent / f"odd{number}" / "default.yaml").write_text(text)
        result = karpa("train", f"./odd{number}", "--help")
        assert result.status == 2 and said in result.err
