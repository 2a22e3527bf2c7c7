"""A recipe of each family is trained, evaluated and exported on a GPU; the export is checked on the CPU.

Skipped where there is none. docs/deploy.md says on which one it has passed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import (
    BERT_TINY,
    TINY,
    TINY_DIGITS,
    TINY_DQN,
    TINY_PHOTOS,
    make_images,
    make_intents,
    make_tagged,
    own_process,
    write_conll,
    write_csv,
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips without a GPU; processes of their own then share its memory."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow finds no GPU: nothing was tried on one")
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def words_of(recipe: str, folder: Path, text_file: Path) -> list[object]:
    """The data and settings of a tiny run; the precision is what `auto` takes on the GPU."""
    if recipe == "mlm-gru":
        return ["--data", text_file, *TINY, "--epochs", 2, "--precision", "auto"]
    if recipe == "bert-classifier":
        data = write_csv(folder / "intents.csv", make_intents(300))
        return ["--data", data, *BERT_TINY, "--epochs", 2, "--precision", "auto"]
    if recipe == "bert-tagger":
        data = write_conll(folder / "tagged.conll", make_tagged(300))
        return ["--data", data, *BERT_TINY, "--epochs", 2, "--precision", "auto"]
    if recipe in ("mnist-mlp", "cifar10-cnn"):
        size, channels, settings = {"mnist-mlp": (10, 1, TINY_DIGITS), "cifar10-cnn": (16, 3, TINY_PHOTOS)}[
            recipe
        ]
        x, y = make_images(300, size, channels)
        np.savez(folder / "images.npz", x_train=x, y_train=y)
        return ["--data", folder / "images.npz", *settings, "--precision", "auto"]
    return [*TINY_DQN] if recipe == "dqn" else ["--episodes", 50]


RECIPES = ["mlm-gru", "bert-classifier", "bert-tagger", "mnist-mlp", "cifar10-cnn", "q-learning"]
if sys.version_info < (3, 12):  # as TF-Agents wants it
    RECIPES.append("dqn")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_trains_and_its_export_answers_on_the_cpu(recipe, tmp_path, text_file) -> None:
    logs = ["--logs", tmp_path / "logs", "--json"]
    for verb, words in (
        ("train", [recipe, *words_of(recipe, tmp_path, text_file)]),
        ("evaluate", [f"{recipe}/latest"]),
    ):
        done = own_process(verb, *words, *logs)
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)["metrics"].values()
        assert figures and all(math.isfinite(figure) for figure in figures)
    # Fails if it does not run on a CPU, or answers otherwise there.
    done = own_process("export", f"{recipe}/latest", "--to", tmp_path / "savedmodels", "--force", *logs)
    assert done.returncode == 0, done.stderr


STEP = """
import keras, numpy as np, tensorflow as tf
from karpa_tf.training import AdamW, SparseCrossEntropy, fit

model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
model.compile(AdamW(0.01), SparseCrossEntropy())
rows = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
fit(model, tf.data.Dataset.from_tensor_slices((rows, (rows[:, 0] > 0).astype(np.int64))).batch(16), epochs=1)
print({variable.value.device.rsplit("device:")[-1] for variable in model.trainable_variables})
"""


def test_the_weights_of_a_fit_lie_on_the_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{'GPU:0'}"
