"""`karpa-tf search`: spaces, halving, trials that go on, kills, and what the winner is worth."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from karpa_tf.errors import UserError
from karpa_tf.judging.importance import importances
from karpa_tf.recipe import find_recipe
from karpa_tf.search.halving import Job, lengths, next_job
from karpa_tf.search.sampling import random_point, tpe_point
from karpa_tf.search.space import parse_space, points_of
from tests.conftest import TINY_DIGITS, TINY_TABLE

# Episodes of a table; the rungs are 4, 12 and 36 of them.
TABLE = [*TINY_TABLE, "--episodes", "36", "--log_every", "2", "--deterministic", "--checkpoint_seconds", "0"]
SPACE = "learning_rate=log:0.01:0.9 gamma=0.9:0.99"
OPTIONS = ["--space", SPACE, "--trials", "9", "--winner_seeds", "2", "--rungs", "3"]


def space(text: str, recipe: str = "mnist-mlp") -> Any:
    return parse_space(text, find_recipe(recipe).about, recipe)


# --- Spaces


def test_a_space_has_values_and_ranges(tmp_path) -> None:
    rate, size, flip, dropout = space(
        "learning_rate=log:1e-4:1e-2 batch_size=16:64 flip=none,random dropout=0:0.5"
    )
    assert rate.log and (rate.low, rate.high) == (1e-4, 1e-2) and not rate.whole
    assert size.whole and size.points == 49
    assert flip.values == ("none", "random") and flip.points == 2
    assert (dropout.low, dropout.high) == (0.0, 0.5)
    path = tmp_path / "space.yaml"
    path.write_text(
        'learning_rate: log:1e-4:1e-2\nbatch_size: 16:64\nflip: [none, random]\ndropout: "0:0.5"\n'
    )
    assert [repr(dimension) for dimension in space(str(path))] == [
        repr(dimension) for dimension in (rate, size, flip, dropout)
    ]
    # Texts that hold commas stand in YAML alone.
    path.write_text('units: ["64,64", "128"]\n')
    assert space(str(path))[0].values == ("64,64", "128")


@pytest.mark.parametrize("form", ["log:1e-4:1e-2", "1e-4:1e-2"])
def test_a_range_is_filled_evenly(form) -> None:
    (rate,) = space(f"learning_rate={form}")
    drawn = np.array([random_point([rate], 0, trial, [])["learning_rate"] for trial in range(2000)])
    assert drawn.min() >= 1e-4 and drawn.max() <= 1e-2
    middle = 1e-3 if rate.log else 5.05e-3
    assert (drawn < middle).mean() == pytest.approx(0.5, abs=0.04)


def test_whole_numbers_are_drawn_alike_often_and_both_ends_too() -> None:
    (size,) = space("batch_size=1:4")
    drawn = [random_point([size], 0, trial, [])["batch_size"] for trial in range(2000)]
    shares = np.bincount(drawn, minlength=5)[1:] / 2000
    assert shares == pytest.approx([0.25] * 4, abs=0.04)


def test_no_settings_are_tried_twice() -> None:
    (flip,) = space("flip=none,random,alternating")
    taken: list[dict[str, Any]] = []
    for trial in range(3):
        taken.append(random_point([flip], 0, trial, taken))
    assert {point["flip"] for point in taken} == {"none", "random", "alternating"}
    assert points_of([flip]) == 3


WRONG = [
    ("", "--space says what may differ"),
    ("learning_rat=0.1,0.2", 'mnist-mlp has no field "learning_rat"; did you mean "learning_rate"?'),
    ("learning_rate=-1:1", "--space: learning_rate must be above 0. Received: -1."),
    ("learning_rate=0.1,abc", "--space: learning_rate must be a finite number. Received: abc."),
    ("flip=none,sideways", "--space: flip must be one of none, random, alternating. Received: sideways"),
    ("batch_size=16", "--space holds one point only"),
    ("learning_rate=0.1:0.1", "--space holds one point only"),
    ("learning_rate=0.2:0.1", "the first number must be the smaller one. Received: 0.2:0.1."),
    ("dropout=log:0:0.5", "log: takes numbers above 0. Received: log:0:0.5."),
    ("learning_rate=1:2:3", "takes LOW:HIGH, log:LOW:HIGH or values apart by commas. Received: 1:2:3."),
    ("learning_rate", "--space takes NAME=VALUES, as units=64,128. Received: learning_rate."),
    ("dropout=0,0.1 dropout=0.2,0.3", "--space: dropout is given more than once."),
    ("dropout=0.1,0.1", "--space: dropout has a value twice. Received: 0.1,0.1."),
    ("epochs=5:10", "--space: epochs is the length of a training"),
    ("seed=1,2", "--space: seed is no matter of choice"),
    ("missing.yaml", "--space: there is no file missing.yaml."),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_a_wrong_space_is_a_sentence(text, sentence) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        space(text)


def test_what_is_wrong_leaves_no_folder(karpa, tmp_path) -> None:
    done = karpa("search", "mnist-mlp", "--space", "flip=none", "--logs", tmp_path / "logs")
    assert done.status == 2 and "one point only" in done.err
    done = karpa(
        "search", "mnist-mlp", "--space", "flip=none,random", "--folds", 3, "--logs", tmp_path / "logs"
    )
    assert done.status == 2 and "search trains plain runs: leave --folds out." in done.err
    assert not (tmp_path / "logs").exists()
    done = karpa("search", "mnist-mlp", "--space", "units=16,abc", "--logs", tmp_path / "logs")
    assert done.status == 2 and "--space: units" in done.err and "Received: abc" in done.err
    done = karpa(
        "search", "mnist-mlp", "--space", "dropout=0,0.1", "--parallel", 999, "--logs", tmp_path / "logs"
    )
    assert done.status == 2 and "cores here. Received: 999." in done.err
    assert not (tmp_path / "logs").exists()
    done = karpa("search", "mnist-mlp", "--resume", tmp_path)
    assert done.status == 2 and "is no search: it holds no search.json" in done.err
    done = karpa("search", "mnist-mlp", "--resume", tmp_path, "--trials", 5)
    assert done.status == 2 and "--trials cannot go with --resume" in done.err


# --- Halving


def test_lengths_rise_to_the_whole_training() -> None:
    assert lengths(27, 30, 3) == [1, 3, 9, 27]
    assert lengths(20, 30, 3) == [2, 6, 20]
    assert lengths(100, 5, 3) == [33, 100], "of 5 trials none would be left for a third length"
    assert lengths(9, 30, 3, 1) == [9]
    with pytest.raises(
        UserError, match=r"--rungs 4 with --factor 3 takes a training of 27 at least\. Received: 9\."
    ):
        lengths(9, 30, 3, 4)


def play(values: np.ndarray, parallel: int, *, lower: bool = False, length: int = 3) -> list[Job]:
    """Plays a search in which trial i reaches values[i, rung]."""
    jobs: list[Job | None] = []
    while True:
        known = [job for job in jobs[: max(0, len(jobs) - parallel + 1)] if job]
        known = [Job(job.trial, job.rung, float(values[job.trial, job.rung])) for job in known]
        job = next_job(known, [j for j in jobs if j], len(values), length, 3, lower=lower)
        if job is None and all(j is None for j in jobs[max(0, len(jobs) - parallel + 1) :]):
            return [Job(j.trial, j.rung, float(values[j.trial, j.rung])) for j in jobs if j]
        jobs.append(job)


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("lower", [False, True])
def test_the_best_trials_are_trained_further(parallel, lower) -> None:
    rng = np.random.default_rng(0)
    worth = rng.permutation(27).astype(float)
    values = np.stack([worth, worth + 0.1, worth + 0.2], axis=1)
    jobs = play(values, parallel, lower=lower)
    assert len({(job.trial, job.rung) for job in jobs}) == len(jobs), "nothing is trained twice"
    assert sum(job.rung == 0 for job in jobs) == 27
    last = [job for job in jobs if job.rung == 2]
    best = int(worth.argmin() if lower else worth.argmax())
    assert best in [job.trial for job in last] and len(last) <= 5
    for job in jobs:
        if job.rung:
            assert (job.trial, job.rung - 1) in [(j.trial, j.rung) for j in jobs]
    assert jobs == play(values, parallel, lower=lower)


def test_a_trial_that_failed_counts_and_is_never_promoted() -> None:
    known = [Job(0, 0, None), Job(1, 0, float("nan")), Job(2, 0, 0.5)]
    assert next_job(known, known, 3, 2, 3, lower=False) == Job(2, 1)
    assert next_job(known[:2], known, 3, 2, 3, lower=False) is None
    failed = [Job(trial, 0, None) for trial in range(3)]
    assert next_job(failed, failed, 3, 2, 3, lower=False) is None


# --- What makes a difference


def test_importance_finds_the_setting_that_matters() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((40, 3))
    shares = importances(points.tolist(), list(np.sin(3 * points[:, 1]) + 0.01 * rng.random(40)))
    assert sum(shares) == pytest.approx(1.0) and shares[1] > 0.8
    assert importances(points[:3].tolist(), [1.0, 2.0, 3.0]) == []
    assert importances(points.tolist(), [1.0] * 40) == []


def test_tpe_goes_where_it_was_good() -> None:
    pytest.importorskip("optuna")
    dimensions = space("dropout=0:0.5 flip=none,random batch_size=16:64")
    rng = np.random.default_rng(0)
    known = []
    for trial in range(40):
        point = random_point(dimensions, 0, trial, [])
        known.append((point, abs(point["dropout"] - 0.1) + (point["flip"] == "none") + 0.001 * rng.random()))
    asked = [tpe_point(dimensions, 0, trial, known, lower=True) for trial in range(40, 50)]
    assert asked == [tpe_point(dimensions, 0, trial, known, lower=True) for trial in range(40, 50)]
    assert np.mean([point["flip"] == "random" for point in asked]) > 0.7
    assert np.mean([abs(point["dropout"] - 0.1) for point in asked]) < 0.12
    assert all(16 <= point["batch_size"] <= 64 and type(point["batch_size"]) is int for point in asked)


# --- Searches


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "karpa_tf", "search", "q-learning", *map(str, words)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A search, and what it printed; tests only read it."""
    logs = tmp_path_factory.mktemp("search")
    done = subprocess.run(command(*TABLE, *OPTIONS, "--logs", logs, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trial 9 of 9, 4 of 36 episodes: return " in done.stderr
    return logs, json.loads(done.stdout)


def test_a_search_ends_with_a_winner_of_fresh_seeds(searched) -> None:
    logs, result = searched
    folder = logs / "searches" / "q-learning-1"
    assert result["search"] == str(folder) and len(result["trials"]) == 9
    best = result["trials"][0]
    assert best["episodes"] == 36 and best["trial"] == result["winner"]["trial"]
    assert (
        best["value"]
        == result["winner"]["search"]
        == max(row["value"] for row in result["trials"] if row["episodes"] == 36)
    )
    assert result["trained"] < result["in_full"] / 2
    chosen = yaml.safe_load((folder / "best.yaml").read_text())
    assert {name: chosen[name] for name in ("learning_rate", "gamma")} == best["settings"]
    assert [Path(run).name for run in result["winner"]["runs"]] == ["1", "2"]
    for run, seed in zip(result["winner"]["runs"], (1, 2), strict=True):
        config = yaml.safe_load((Path(run) / "config.yaml").read_text())
        assert config["seed"] == seed and config["gamma"] == best["settings"]["gamma"]
    assert result["winner"]["luck"] == pytest.approx(best["value"] - np.mean(result["winner"]["fresh_seeds"]))
    # The first trial has the settings as they were given.
    first = next(row for row in result["trials"] if row["trial"] == 1)
    assert first["settings"] == {"learning_rate": first["settings"]["learning_rate"], "gamma": 0.95}


def test_a_search_of_another_recipe_is_named(searched, karpa) -> None:
    logs, _ = searched
    done = karpa("search", "sarsa", "--resume", logs / "searches" / "q-learning-1")
    assert done.status == 2 and "is a search of q-learning, not of sarsa." in done.err


def test_a_figure_that_there_is_not_ends_the_search(karpa, digits, tmp_path) -> None:
    data = digits.parents[2] / "digits.npz"
    words = ["--data", data, *TINY_DIGITS, "--epochs", 1, "--logs", tmp_path]
    done = karpa("search", "mnist-mlp", *words, "--space", "dropout=0,0.1", "--trials", 2, "--monitor", "foo")
    assert done.status == 2
    assert "--monitor: no trial has a figure epoch/foo on validation. There is: epoch/accuracy" in done.err


def test_the_held_out_data_is_read_by_the_winner_alone(searched) -> None:
    _, result = searched
    assert [(Path(row["run"]) / "metrics.json").exists() for row in result["trials"]] == [False] * 9
    assert all((Path(run) / "metrics.json").exists() for run in result["winner"]["runs"])


def test_a_trial_is_the_run_that_train_makes(searched, karpa, tmp_path) -> None:
    _, result = searched
    best = Path(result["trials"][0]["run"])
    assert karpa("train", "q-learning", "--config", best / "config.yaml", "--logs", tmp_path).status == 0
    assert karpa("train", "q-learning", "--resume", best).status == 0, "a trial goes on as any run does"
    alone = tmp_path / "q-learning" / "1"
    tables = [np.load(run / "assets" / "q_values.npy") for run in (best, alone)]
    np.testing.assert_array_equal(*tables)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_is_killed_goes_on_to_the_same_winner(searched, how, tmp_path) -> None:
    logs, whole = searched
    folder = tmp_path / "searches" / "q-learning-1"
    process = subprocess.Popen(
        command(*TABLE, *OPTIONS, "--logs", tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    seen = 0
    while seen < 4:
        line = process.stderr.readline()
        assert line, "it has ended"
        seen += line.startswith("trial ")
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert (
            process.returncode == 130 and f"Go on with: karpa-tf search q-learning --resume {folder}" in said
        )
    done = subprocess.run(
        command("--resume", folder, "--logs", tmp_path, "--json"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    mine, others = (
        json.loads((folder / "search.json").read_text()),
        json.loads((logs / "searches" / "q-learning-1" / "search.json").read_text()),
    )
    assert mine["jobs"] == others["jobs"] and mine["trials"] == others["trials"]
    assert result["winner"]["metrics"] == whole["winner"]["metrics"]
    assert result["trained"] == whole["trained"]


@pytest.mark.slow
def test_a_trial_that_diverges_is_a_row(karpa, digits, tmp_path) -> None:
    data = digits.parents[2] / "digits.npz"
    words = ["--data", data, *TINY_DIGITS, "--epochs", 2, "--logs", tmp_path]
    options = [
        "--space",
        "learning_rate=0.01,1e30",
        "--trials",
        2,
        "--rungs",
        1,
        "--winner_seeds",
        2,
        "--parallel",
        2,
    ]
    done = karpa("search", "mnist-mlp", *words, *options, "--json")
    assert done.status == 0, done.err
    good, bad = done.json["trials"]
    assert good["value"] > 0.1 and bad["value"] is None
    assert "The loss" in bad["reason"] and done.json["winner"]["settings"] == {"learning_rate": 0.01}


def test_without_a_finished_trial_there_is_no_winner(karpa, digits, tmp_path) -> None:
    data = digits.parents[2] / "digits.npz"
    words = ["--data", data, *TINY_DIGITS, "--epochs", 1, "--logs", tmp_path]
    done = karpa("search", "mnist-mlp", *words, "--space", "learning_rate=1e29,1e30", "--trials", 2)
    assert done.status == 2
    assert "has ended well, so there is no winner; the first: The loss" in done.err
