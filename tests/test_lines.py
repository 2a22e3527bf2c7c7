"""What objects print: one line that a person reads, whatever they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf import data, export, meta, models, reports, serving, settings, training, watching
from karpa_tf.lines import InALine
from karpa_tf.privacy import Span
from karpa_tf.recipe import (
    EvaluateOptions,
    Evaluation,
    ExplainOptions,
    Explanation,
    Exported,
    ExportOptions,
    Input,
    PredictOptions,
    find_recipe,
)
from karpa_tf.training.loop import History
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.step import Figures
from tests.conftest import make_images, make_intents, make_ratings, make_tagged, make_text
from tests.documents import PACKAGES

MANY = 2000
# Keras prints these in its own way.
OF_KERAS = {"AdamW", "SGD", "SparseCrossEntropy", "BidirectionalGRU"}


class Holder(InALine):
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An object of every public class, with much in it."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "text.txt").write_text(make_text(MANY), encoding="utf-8")
    text = data.load_text(str(folder / "text.txt"), vocabulary_size=200, sequence_length=16)
    pairs = make_intents(MANY)
    columns = {"text": [text for text, _ in pairs], "label": [label for _, label in pairs]}
    table = data.load_table(columns, vocabulary=text.wordpiece)
    pixels, places = make_images(MANY, 10, 1)
    images = data.Images(pixels, list(map(str, places)), [f"image {i}" for i in range(MANY)])
    sentences = [data.Sentence(*zip(*words, strict=True)) for words in make_tagged(MANY)]
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    model.compile(training.AdamW(0.1), "mse")
    deep = keras.Sequential([keras.Input([4]), keras.layers.Dense(3), keras.layers.Dense(2)])
    batches = data.array_batches(np.zeros([MANY, 4]), np.zeros([MANY, 2]), batch_size=10)
    stage = training.Stage(training.SupervisedStep(model), batches)
    heads = keras.Model(deep.inputs, {name: deep.outputs[0] for name in ("a", "b")})
    heads.compile(training.AdamW(0.1), training.SparseCrossEntropy())
    tasks = meta.ClassTasks(np.zeros([MANY, 4], np.float32), [str(i // 2) for i in range(MANY)], 2)
    ratings = make_ratings(MANY // 10)
    algorithms = [kind(deep) for kind in (meta.MAML, meta.ANIL, meta.IMAML, meta.Reptile)]
    lesson = training.TaughtRows(np.zeros(MANY), np.zeros([MANY, 3], np.float32), np.ones(MANY))
    run_folder = RunFolder(folder / "mlm-gru" / "1")
    run_settings = find_recipe("mlm-gru").about.settings(epochs=3, precision="float32")
    found = [
        data.Augmentation(shift=2),
        batches,
        data.ImageData("photos", {"train": images, "validation": images, "test": images}, False),
        images,
        table,
        data.encode_texts(text.wordpiece, columns["text"], None, 32),
        text.corpus,
        text.record,
        data.Columns(),
        Span(0, 3, "email"),
        table.table.splits["train"],
        table.table,
        data.Sentence(("word",) * MANY, ("O",) * MANY),
        data.Tagged("tags", {"train": sentences, "validation": sentences, "test": sentences}, False),
        data.Masking(text.wordpiece),
        text,
        data.Windows(text.splits["train"], 16),
        text.wordpiece,
        models.Preset({"layers": 2}, text.wordpiece.pieces, True, {"x": np.zeros([MANY, MANY])}),
        export.Signature(lambda x: {"y": x}, {"x": tf.TensorSpec([None, 4])}, model.variables),
        tasks,
        meta.open_sinusoids(),
        meta.Sinusoids(),
        tasks.sample(np.random.default_rng(0), MANY, shots=1, queries=1),
        meta.Functional(deep),
        *algorithms,
        meta.ProtoNet(deep, ways=2),
        meta.MetaStep(algorithms[0], training.AdamW(0.1)),
        training.EwcStep(model, strength=1.0),
        data.Reservoir(9, 0),
        ratings,
        ratings.items,
        data.BalancedReservoir(9, 0),
        training.GanStep(
            models.build_dcgan_generator((8, 8, 1), latent=2, filters=2),
            models.build_dcgan_discriminator((8, 8, 1), filters=2, units=2),
            (training.AdamW(0.1), training.AdamW(0.1)),
        ),
        reports.TensorBoard(folder, hparams={f"field_{i}": i for i in range(MANY)}, example=pixels),
        reports.Progress(),
        serving.Serving("http://127.0.0.1:8501", None, {f"model {i}": [1] for i in range(MANY)}),
        serving.ServeOptions(port=1),
        watching.WatchOptions(window=9),
        watching.ShareAlarm(np.array([5, 5]), false_alarms=100),
        watching.InputAlarm([2] * 50, false_alarms=100),
        watching.Intervals(np.ones([MANY // 10, MANY // 10]), draws=2),
        watching.Watcher(watching.WatchOptions(), list(map(str, range(MANY)))),
        training.BestWeights(folder / "best.weights.h5"),
        training.Checkpoints(folder),
        lesson,
        training.Distillation(lesson, 2.0),
        training.Evaluator(model, batches, {}, tf.distribute.get_strategy()),
        training.MultiTaskStep(heads),
        training.Run(run_folder, run_settings),
        stage,
        stage.step,
        training.WarmupThenDecay(0.1, 100),
        find_recipe("mlm-gru").about,
        find_recipe("mlm-gru"),
        find_recipe("mlm-gru").load(),
        Input("text"),
        Evaluation(
            data="d", metrics={"loss": 1 / 3}, tables=[["a line"] * MANY], facts=dict(enumerate(pairs))
        ),
        Exported(format="savedmodel", path="p", signatures={"s": {"inputs": columns}}),
        Explanation(explanations=[{"text": "a"}] * MANY, lines=["line"] * MANY),
        EvaluateOptions(data="other.csv"),
        PredictOptions(),
        ExplainOptions(),
        ExportOptions(),
        run_settings,
        settings.RunSettings(),
        settings.TrainingSettings(),
        settings.Bounds(least=1),
        run_folder,
    ]
    return {kind.__name__: value for value in found for kind in type(value).__mro__[:-1]}


def public_classes() -> list[str]:
    modules = [import_module(f"karpa_tf.{name}") for name in PACKAGES]
    named = {name: getattr(module, name) for module in modules for name in module.__all__}
    classes = {name for name, x in named.items() if isinstance(x, type) and not issubclass(x, Exception)}
    return sorted(classes - OF_KERAS)


@pytest.mark.parametrize("name", public_classes())
def test_every_public_object_prints_in_a_line(objects: dict[str, Any], name: str) -> None:
    line = repr(objects[name])
    assert line.count("\n") == 0 and len(line) <= 300, line
    assert line.startswith(type(objects[name]).__name__ + "(") and line.endswith((")", "...")), line
    assert " at 0x" not in line and "array(" not in line, line


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda objects: objects["WordPiece"],
            "WordPiece(pieces=[200 str], lowercase=True)",
        ),
        (lambda objects: objects["Rows"], "Rows(texts=[1801 str], labels=[1801 str])"),
        (
            lambda objects: objects["Batches"],
            "Batches(load=array_batches.<locals>.load, steps_per_epoch=200, batch_size=10)",
        ),
        (lambda objects: objects["MlmGruSettings"], "MlmGruSettings(epochs=3, precision='float32')"),
        (lambda objects: objects["ServeOptions"], "ServeOptions(port=1)"),
        (
            lambda _: History([{"loss": 0.5, "val_loss": 1 / 3}]),
            "History(epochs=1, loss=0.5, val_loss=0.333333)",
        ),
        (lambda _: Figures(["loss"], [3.0, 2.0]), "Figures(loss=1.5)"),
        (lambda _: Holder(a=None, b="", c=0, d=Path("x y"), _hidden=1), "Holder(c=0, d='x y')"),
        (
            lambda _: Holder(e={"k": (1, 2.5)}, f="x\ny" * 99),
            f"Holder(e={{k: [1, 2.5]}}, f='{('x y' * 99)[:37]}...')",
        ),
        (
            lambda _: Holder(
                a=np.zeros([2, 3]), b=tf.TensorSpec(None, tf.string), c=keras.Sequential(name="m")
            ),
            "Holder(a=float64 (2, 3), b=string <unknown>, c=m)",
        ),
    ],
)
def test_what_a_line_says(objects: dict[str, Any], make: Callable[[Any], Any], line: str) -> None:
    assert repr(make(objects)) == line


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="TF-Agents needs Python 3.11")
def test_environments_print_in_a_line() -> None:
    code = (
        "from karpa_tf.rl.environment import CartPole, GymnasiumEnvironment;"
        "print(CartPole(3)); print(GymnasiumEnvironment('Acrobot-v1', 2))"
    )
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "CartPole(batch_size=3)",
        "GymnasiumEnvironment(name='Acrobot-v1', batch_size=2)",
    ]
