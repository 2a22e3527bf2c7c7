"""Shared fixtures: a small text that can be learned in seconds, and one run trained on it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Small enough that a run takes seconds.
TINY = [
    *("--units", "24", "--embedding_size", "16", "--sequence_length", "16", "--batch_size", "32"),
    *("--vocabulary_size", "200", "--learning_rate", "0.01", "--precision", "float32", "--dropout", "0"),
]


# The same for dqn, whose policy cannot be perfect then; and for the tables.
TINY_DQN = [
    *(
        "--environment_steps",
        "1200",
        "--initial_steps",
        "200",
        "--target_return",
        "1000",
        "--judge_every",
        "200",
    ),
    *("--epsilon_steps", "500", "--units", "32", "--deterministic", "--updates", "4"),
]
TINY_TABLE = [
    *("--env", "FrozenLake-v1", "--slippery", "false", "--log_every", "20", "--epsilon_end", "0.1"),
    *("--initial_value", "0.5", "--gamma", "0.95"),
]


def make_text(sentences: int, seed: int = 0) -> str:
    """Sentences in which the words around a gap tell much about it."""
    rng = random.Random(seed)
    diet = {"cat": "fish", "dog": "bones", "cow": "grass", "bird": "seeds", "mouse": "cheese"}
    places = ["garden", "house", "field", "barn"]
    lines = []
    for number in range(sentences):
        animal = rng.choice(list(diet))
        place = rng.choice(places)
        day = f"{rng.choice('bcdfglmnprst')}{rng.choice('aeiou')}{rng.choice('bcdfglmnprst')}{number}"
        lines.append(f"On day {day} the {animal} ate {diet[animal]} in the {place}.")
    return "\n\n".join(" ".join(lines[i : i + 4]) for i in range(0, len(lines), 4))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the user's cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["KARPA_TF_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "animals.txt"
    path.write_text(make_text(800), encoding="utf-8")
    return path


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def karpa(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process."""
    from karpa_tf.cli import main

    def run(*words: object) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


def own_process(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, as users do: TF-Agents cannot live in the tests' one."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-m", "karpa_tf", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="session")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run of dqn, with all its checkpoints; tests only read it."""
    if sys.version_info >= (3, 12):
        pytest.skip("TF-Agents needs Python 3.11")
    logs = tmp_path_factory.mktemp("balanced")
    keep = ["--checkpoint_seconds", 0, "--keep_checkpoints", 100]
    done = own_process("train", "dqn", *TINY_DQN, *keep, "--logs", logs, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["run"] == str(logs / "dqn" / "1") and report["metrics"]["episodes"] == 100
    assert "greedy_return" in done.stderr and "environment steps/s" in done.stderr
    return logs / "dqn" / "1"


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs with finished runs of q-learning and sarsa, on ice that does not slip; tests only read them."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("frozen")
    for recipe in ("q-learning", "sarsa"):
        assert main(["train", recipe, *TINY_TABLE, "--episodes", "1500", "--logs", str(logs)]) == 0
    return logs


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished tiny run of mlm-gru; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("trained") / "logs"
    status = main(["train", "mlm-gru", "--data", str(text_file), "--epochs", "4", "--logs", str(logs), *TINY])
    assert status == 0
    return logs / "mlm-gru" / "1"
