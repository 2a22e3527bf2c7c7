"""The classifier of the run's own real images that judges what is generated, and others of its kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation, image_batches
from karpa_tf.data.batches import Batches
from karpa_tf.lines import InALine
from karpa_tf.models import build_image_cnn
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.fitting import fit
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.supervised import SupervisedStep

from . import GanSettings

# Its one seed, whatever the run's: generators of several seeds are judged by one network.
SEED = 0
STAGE, _WEIGHTS = "judge", "judge.weights.h5"
_BATCH, _RATE, _AT_ONCE = 64, 0.002, 256
# Real images of the classifier that synthetic ones are added to.
FEW = 100
_CHANGES = Augmentation(shift=2, rotate=10.0, scale=0.1)


class Judge(InALine):
    """A trained classifier: uint8 images to features and probabilities.

    Args:
        model: gives logits.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        both = keras.Model(model.input, [model.get_layer("logits").input, model.output])
        spec = tf.TensorSpec(model.input.shape, tf.float32)
        self._read = tf.function(
            lambda images: both(images, training=False), input_signature=[spec], autograph=False
        )

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns features float32 (n, width) and probabilities float32 (n, classes).

        Args:
            pixels: uint8 (n, height, width, channels).
        """
        parts = [pixels[i : i + _AT_ONCE].astype(np.float32) for i in range(0, len(pixels), _AT_ONCE)]
        features, logits = (np.concatenate(x) for x in zip(*map(self._read, parts), strict=True))
        return features, tf.nn.softmax(logits).numpy()


def train_judge(run: Run[GanSettings], pixels: np.ndarray, labels: np.ndarray, classes: int) -> Judge:
    """Trains the classifier, the first stage of a run, or passes by if that is over.

    Args:
        run: the run.
        pixels: real training images, uint8 (n, height, width, channels).
        labels: int32 (n,).
        classes: how many.
    """
    model, batches = _classifier(run.settings, pixels, labels, classes, run.settings.judge_iterations)
    best = BestWeights(run.folder.assets / _WEIGHTS, "loss", last=True, writes=run.chief)
    metrics = {"accuracy": keras.metrics.sparse_categorical_accuracy}
    run.fit(
        Stage(SupervisedStep(model, metrics), batches, 1, name=STAGE),
        best=best,
        shown=("accuracy",),
        unit="images",
        units_per_step=_BATCH,
        period=STAGE,
    )
    return open_judge(run.folder, run.settings, classes)


def open_judge(folder: RunFolder, config: GanSettings, classes: int) -> Judge:
    """Returns the classifier of a run, in float32.

    Raises:
        OSError: its weights are not there.
        ValueError: they do not fit.
    """
    model = _build(config, classes, "float32")
    model.load_weights(folder.assets / _WEIGHTS)
    return Judge(model)


def accuracy_of_few(
    config: GanSettings,
    few: tuple[np.ndarray, np.ndarray],
    added: tuple[np.ndarray, np.ndarray] | None,
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> float:
    """Trains a classifier on a few real images, and perhaps others, for half as long as the judge.

    Args:
        config: of the run.
        few: images uint8 and labels int32.
        added: the same of synthetic ones; an update takes as many of them as of the real ones.
        test: what it is tested on.
        classes: how many.

    Returns:
        Its accuracy.
    """
    pixels, labels = few
    if added:
        repeated = np.resize(np.arange(len(labels)), len(added[1]))
        pixels = np.concatenate([pixels[repeated], added[0]])
        labels = np.concatenate([labels[repeated], added[1]])
    model, batches = _classifier(config, pixels, labels, classes, -(-config.judge_iterations // 2))
    fit(model, batches)
    return float((Judge(model)(test[0])[1].argmax(1) == test[1]).mean())


def some_of_each(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the places of so many rows, as many of each class as there can be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), int)
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        turn[mine] = np.arange(len(mine))
    return order[np.argsort(turn[order], kind="stable")][:count]


def _classifier(
    config: GanSettings, pixels: np.ndarray, labels: np.ndarray, classes: int, updates: int
) -> tuple[keras.Model, Batches]:
    keras.utils.set_random_seed(SEED)
    model = _build(config, classes, config.precision)
    model.compile(AdamW(WarmupThenDecay(_RATE, updates), weight_decay=0.01), SparseCrossEntropy())
    batches = image_batches(pixels, labels, batch_size=_BATCH, seed=SEED, augmentation=_CHANGES)
    return model, dataclasses.replace(batches, steps_per_epoch=updates)


def _build(config: GanSettings, classes: int, dtype: str) -> keras.Model:
    sizes: dict[str, Any] = {"channels": (16, 32), "units": (128, 64)}
    return build_image_cnn(config.shape, classes, **sizes, dtype=dtype)
