"""What differs between the methods: the batches of a task, its step, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from karpa_tf.data.augmentation import Augmentation, image_batches
from karpa_tf.data.batches import Batches, paired_batches
from karpa_tf.data.reservoir import BalancedReservoir, Reservoir
from karpa_tf.lines import InALine
from karpa_tf.models import build_image_cnn, build_image_mlp
from karpa_tf.training.consolidation import EwcStep, fisher_information
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.supervised import SupervisedStep

from . import ContinualSettings
from .data import Examples
from .stream import CandidatesCrossEntropy, Stream, among

_AUGMENTATION = Augmentation(shift=2, rotate=12.0, scale=0.12, shear=0.15)
# What random numbers are for, beside the seed and the number of the task.
_ORDER, _BATCHES, _REPLAYED, _FISHER = range(4)


def build_network(config: ContinualSettings, shape: Sequence[int], outputs: int) -> keras.Model:
    """Builds the network: images of 0 to 255, or vectors of texts, to logits.

    Nothing in it normalizes by the batch, whose rows are of one task.

    Args:
        config: of the run.
        shape: of a row.
        outputs: how many.
    """
    units = [int(number) for number in config.units.split(",")]
    if len(shape) == 1:
        vector = keras.Input(shape, name="vector")
        x = keras.layers.Rescaling(shape[0] ** 0.5, name="rescale")(vector)  # of length 1: small numbers
        for number, width in enumerate(units):
            x = keras.layers.Dense(width, "relu", kernel_initializer="he_normal", name=f"hidden_{number}")(x)
            x = keras.layers.Dropout(config.dropout, name=f"dropout_{number}")(x) if config.dropout else x
        return keras.Model(vector, keras.layers.Dense(outputs, name="logits")(x), name="vector_mlp")
    if config.network == "cnn":
        return build_image_cnn(config.shape, outputs, channels=(16, 32), units=units, dropout=config.dropout)
    return build_image_mlp(config.shape, outputs, units=units, dropout=config.dropout)


class Learner(InALine):
    """The network and what is known of the tasks so far.

    Args:
        config: of the run.
        stream: its tasks.
        rows: to learn from.
        model: the network.

    Attributes:
        step: the present task's, or the last one's.
    """

    def __init__(self, config: ContinualSettings, stream: Stream, rows: Examples, model: keras.Model) -> None:
        self.config, self.stream, self.rows, self.model = config, stream, rows, model
        self.step: SupervisedStep | None = None
        self.targets = stream.targets(rows.labels)
        task = stream.task_of(rows.labels)
        self._places = [np.flatnonzero(task == number) for number in range(len(stream.tasks))]

    def _seed(self, what: int, task: int) -> int:
        return int(np.random.SeedSequence((self.config.seed, what, task)).generate_state(1)[0] // 2)

    def places(self, task: int) -> np.ndarray:
        """Returns the places of the rows of a task, from 0, in the order in which they pass."""
        return np.random.default_rng(self._seed(_ORDER, task)).permutation(self._places[task])

    def buffer(self, task: int) -> list[int]:
        """Returns the places of the rows that are kept when a task begins, all tasks before having passed."""
        kind = BalancedReservoir if self.config.reservoir == "balanced" else Reservoir
        reservoir = kind(self.config.buffer, self.config.seed)
        for before in range(task):
            for place in self.places(before):
                reservoir.add(int(place), int(self.targets[place]))
        return reservoir.rows

    def _batches(self, places: Sequence[int] | np.ndarray, what: int, task: int) -> Batches:
        return image_batches(
            self.rows.features[places],
            self.targets[places],
            batch_size=min(self.config.batch_size, len(places)),
            seed=self._seed(what, task),
            augmentation=_AUGMENTATION if self.config.augment and self.rows.features.ndim == 4 else None,
        )

    def batches(self, task: int) -> Batches:
        """Returns the batches of a task: its rows, and what the method adds.

        With replay each task so far has the same share of the loss.
        """
        if self.config.method == "joint":
            so_far = np.concatenate([self.places(number) for number in range(task + 1)])
            return self._batches(so_far, _BATCHES, task)
        own = self._batches(self.places(task), _BATCHES, task)
        if self.config.method != "replay" or not task:
            return own
        return paired_batches(own, self._batches(self.buffer(task), _REPLAYED, task), task / (task + 1))

    def begin(self, task: int, steps: int) -> SupervisedStep:
        """Makes the step of a task, with an optimizer of its own; `steps`: how many the task has."""
        loss = CandidatesCrossEntropy(self.stream.candidates(task + 1))

        def accuracy(targets: Any, logits: Any) -> Any:
            logits = among(loss.candidates, targets, logits)
            return keras.metrics.sparse_categorical_accuracy(targets, logits)

        rate = WarmupThenDecay(self.config.learning_rate, steps, warmup=0.0)
        self.model.compile(AdamW(rate, weight_decay=0.0), loss)
        metrics = {"accuracy": accuracy}
        if self.config.method == "ewc":
            before = self.step if isinstance(self.step, EwcStep) else None
            self.step = EwcStep(self.model, metrics, strength=self.config.strength, before=before)
        else:
            self.step = SupervisedStep(self.model, metrics)
        return self.step

    def end(self, task: int) -> None:
        """Keeps what the next task needs of a task that was learned."""
        if isinstance(self.step, EwcStep) and task + 1 < len(self.stream.tasks):
            rng = np.random.default_rng(self._seed(_FISHER, task))
            some = rng.permutation(self._places[task])[: self.config.fisher_rows]
            allowed = self.stream.of_task(task, task + 1)
            found = fisher_information(self.model, self.rows.features[some], allowed)
            self.step.remember(found, self.config.decay)

    def memory(self) -> int:
        """Returns the bytes that the method keeps when the last task begins, beside the weights."""
        row = self.rows.features[0].nbytes + self.targets.itemsize
        last = len(self.stream.tasks) - 1
        return {
            "naive": lambda: 0,
            "ewc": lambda: 2 * sum(4 * int(np.prod(v.shape)) for v in self.model.trainable_variables),
            "replay": lambda: row * len(self.buffer(last)),
            "joint": lambda: row * sum(len(places) for places in self._places[:last]),
        }[self.config.method]()
