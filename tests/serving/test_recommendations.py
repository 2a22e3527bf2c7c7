"""The example of recommendations: its steps, and all of it."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.documents import DOCS, ROOT
from tests.serving.conftest import Running

EXAMPLE = ROOT / "examples" / "recommendations"
HISTORY = tf.TensorSpec([None, None], tf.string)


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE / "steps.py"))


@pytest.fixture(scope="module")
def prepared(steps: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommendations")
    steps["prepare"](folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that scores a candidate by how many items of the history are of its module."""
    folder = tmp_path_factory.mktemp("models")
    module = tf.Module()

    def module_of(names: tf.Tensor) -> tf.Tensor:
        return tf.strings.regex_replace(names, r"\.[^.]*$", "")

    def score(history: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        same = (module_of(history)[:, :, None] == module_of(candidates)[:, None]) & (history != "")[
            :, :, None
        ]
        return {"scores": tf.reduce_sum(tf.cast(same, tf.float32), 1)}

    def recommend(history: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = score(history, candidates)["scores"]
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        ranked = tf.gather(candidates, order, batch_dims=1)
        return {"ranked": ranked, "scores": tf.gather(scores, order, batch_dims=1)}

    def retrieve(history: tf.Tensor) -> dict[str, tf.Tensor]:
        names = tf.constant(["scipy.fft.dct", "scipy.stats.norm", "scipy.signal.butter", "sklearn.svm.SVC"])
        items = tf.tile(names[None], [tf.shape(history)[0], 1])
        return {"item": items, "score": tf.zeros(tf.shape(items))}

    both = {"history": HISTORY, "candidates": HISTORY}
    signatures = {
        "serving_default": tf.function(recommend).get_concrete_function(**both),
        "score": tf.function(score).get_concrete_function(**both),
        "retrieve": tf.function(retrieve).get_concrete_function(history=HISTORY),
    }
    tf.saved_model.save(module, str(folder / "recommender" / "1"), signatures=signatures)
    return folder


def test_what_is_new_is_in_no_row_that_is_learned_from(
    steps: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    read = steps["read_table"]
    learned, items, new = (
        read(prepared / f) for f in ("data/ratings.csv", "data/items.csv", "new_items.csv")
    )
    users, clicks = read(prepared / "new_users.csv"), read(prepared / "new_clicks.csv")
    assert len(new) == steps["NEW_ITEMS"] and len({row["user"] for row in users}) == steps["NEW_USERS"]
    names = [{row["id"] for row in rows} for rows in (items, new)]
    assert not names[0] & names[1] and {row["item"] for row in learned + users} <= names[0]
    assert {row["item"] for row in clicks} == names[1]
    assert not {row["user"] for row in learned} & {row["user"] for row in users}
    steps["prepare"](tmp_path)
    assert (tmp_path / "data" / "ratings.csv").read_bytes() == (
        prepared / "data" / "ratings.csv"
    ).read_bytes()


def test_why_is_the_score_less_the_score_without(steps: dict[str, Any], model: Path) -> None:
    with Running(model) as server:
        url = f"{server.rest}/v1/models/recommender"
        ranked = steps["rank"](url, ["scipy.signal.firwin", "scipy.signal.lfilter", "scipy.stats.gamma"])
        assert ranked[:2] == [("scipy.signal.butter", 2.0), ("scipy.stats.norm", 1.0)]
        items = [name for name, _ in ranked[:2]]
        history = ["scipy.signal.firwin", "scipy.fft.dct", "scipy.stats.gamma"]
        assert steps["contributions"](url, history, items).tolist() == [[1, 0], [0, 0], [0, 1]]


def test_the_picture_is_drawn(steps: dict[str, Any], tmp_path: Path) -> None:
    why = {"user": "user-7", "history": [f"item {n}" for n in range(20)], "items": ["a", "b"], "new": ["b"]}
    table = np.random.default_rng(0).normal(size=(20, 2)).tolist()
    (tmp_path / "why.json").write_text(json.dumps({**why, "contributions": table}))
    steps["draw"](tmp_path, tmp_path / "deep" / "why.png")
    assert np.asarray(Image.open(tmp_path / "deep" / "why.png")).std() > 10
    assert Image.open(DOCS / "pictures" / "recommendations.png").size == (800, 500)


@pytest.mark.slow
def test_the_whole_example(tmp_path: Path) -> None:
    words = ["--folder", tmp_path / "made", "--picture", tmp_path / "why.png"]
    command = [sys.executable, EXAMPLE / "run.py", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\w+) +ndcg_10 (\S+)", done.stdout, re.MULTILINE)
    figures = {name: float(value) for name, value in found}
    assert figures["recommender"] > 1.5 * figures["popularity"]
    assert "is first because of" in done.stdout and "of the 25 new items" in done.stdout
    assert Image.open(tmp_path / "why.png").size == (800, 500)
