"""Steps of the user's own, stages one after the other, and when figures are read from the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.errors import UserError
from karpa_tf.settings import RunSettings
from karpa_tf.training import Checkpoints, Run, Stage, Step, SupervisedStep, train
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.step import Figures
from tests.events import read_events as read_event_files
from tests.training.helpers import StopAt, make_batches, read_events


def numbers(steps_per_epoch: int = 4) -> Batches:
    """Batch n holds 8 points around n."""

    def load(step: tf.Tensor, part: int, parts: int) -> tf.Tensor:
        noise = tf.random.stateless_normal([8, 2], tf.stack([step, 7]))
        return (tf.cast(step, tf.float32) * 0.1 + noise)[part * 8 // parts : (part + 1) * 8 // parts]

    return Batches(load, steps_per_epoch, 8)


class Gan(Step):
    """Two models, two optimizers, and random numbers from a counter."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(4)
        self.model = keras.Sequential([keras.Input([3]), keras.layers.Dense(4), keras.layers.Dense(2)])
        layers = [keras.Input([2]), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]
        self.critic = keras.Sequential(layers)
        self.optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1, momentum=0.9)]
        self.count = tf.Variable(0, dtype=tf.int64)
        for optimizer, model in zip(self.optimizers, (self.model, self.critic), strict=True):
            optimizer.build(model.trainable_variables)

    @property
    def variables(self) -> Sequence[Any]:
        states = [v for optimizer in self.optimizers for v in optimizer.variables]
        return [*self.model.variables, *self.critic.variables, *states, self.count]

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        z = tf.random.stateless_normal([8, 3], tf.stack([self.count.assign_add(1), 1]))
        with tf.GradientTape(persistent=True) as tape:
            fake, real = self.critic(self.model(z)), self.critic(batch)
            losses = [tf.reduce_mean(-fake), tf.reduce_mean(fake - real + 0.1 * real**2)]
        figures = {"loss": losses[0], "critic_loss": losses[1]}
        updates = []
        for optimizer, model, loss in zip(self.optimizers, (self.model, self.critic), losses, strict=True):
            weights = [v.value for v in model.trainable_variables]
            updates.append((optimizer, tape.gradient(loss, weights), model.trainable_variables))
        self.apply_gradients(figures, *updates)
        return figures, 1.0


def weights(step: Step) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in step.variables]


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_training_with_two_optimizers_resumes_to_the_bit(stop: int, tmp_path: Path) -> None:
    whole = Gan()
    history = train(Stage(whole, numbers(), 3, stop_if_diverged=False))
    first = Gan()
    with pytest.raises(KeyboardInterrupt):
        train(
            Stage(first, numbers(), 3, stop_if_diverged=False),
            callbacks=[StopAt(stop)],
            checkpoints=Checkpoints(tmp_path),
        )
    again = Gan()
    resumed = train(
        Stage(again, numbers(), 3, stop_if_diverged=False), checkpoints=Checkpoints(tmp_path), resume=True
    )
    assert list(resumed) == list(history) and resumed.steps == 12
    assert set(history[0]) == {"loss", "critic_loss"}
    for a, b in zip(weights(whole), weights(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_without_an_update_says_so() -> None:
    class Nothing(Step):
        @property
        def variables(self) -> Sequence[Any]:
            return []

    with pytest.raises(NotImplementedError, match="Nothing has neither update nor __call__"):
        train(Stage(Nothing(), numbers()))


def test_a_monitor_of_a_step_of_ones_own_is_checked(tmp_path: Path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_distanc")
    with pytest.raises(UserError, match='monitors "val_distanc"; did you mean "val_distance"'):
        train(Stage(Gan(), numbers(), validation=lambda: {"distance": 1.0}), callbacks=[best])


# --- Stages ---------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Settings(RunSettings):
    checkpoint_seconds: float = 1000.0


def make_step(seed: int) -> SupervisedStep:
    keras.utils.set_random_seed(seed)
    layers = [keras.Input([6], dtype="int32"), keras.layers.Embedding(10, 8, name="embedding")]
    model = keras.Sequential([*layers, keras.layers.Dense(10, name="dense")], name="model")
    model.compile(keras.optimizers.Adam(0.01), SparseCrossEntropy())
    return SupervisedStep(model)


def two_stages(folder: Path, resume: bool = False, stop: int = 0) -> list[np.ndarray]:
    """Trains the first stage, then a second one that begins with its weights."""
    run = Run(RunFolder(folder), Settings(seed=3), resume=resume)
    if not resume:
        run.folder.assets.mkdir(parents=True)
    callbacks = [StopAt(stop)] if stop else []
    weights = None
    if not run.is_over("warming"):
        step = make_step(1)
        run.fit(Stage(step, make_batches(), 2, name="warming"), callbacks=callbacks)
        weights = step.model.get_weights()
    step = make_step(2)
    if weights:
        step.model.set_weights(weights)
    run.fit(Stage(step, make_batches(seed=9), 2), callbacks=callbacks)
    assert run.steps == 24
    return step.model.get_weights()


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("stages") / "1"
    return folder, two_stages(folder)


@pytest.mark.parametrize("stop", [5, 12, 13, 20])
def test_a_run_of_two_stages_goes_on_in_either(unstopped, stop: int, tmp_path: Path) -> None:
    """Steps 1 to 12 are the first stage's; at 12 it ends, and the checkpoint is its last one."""
    with pytest.raises(KeyboardInterrupt):
        two_stages(tmp_path / "1", stop=stop)
    for a, b in zip(two_stages(tmp_path / "1", resume=True), unstopped[1], strict=True):
        np.testing.assert_array_equal(a, b)
    whole, again = (read_events(folder) for folder in (unstopped[0], tmp_path / "1"))
    for key, value in whole.items():
        assert "hparams" in key[0] or "speed" in key[1] or again[key] == value, key


@pytest.mark.parametrize(
    ("error", "said", "noted"),
    [
        (KeyboardInterrupt(), "stopped at step 24", ""),
        (UserError("no room."), "failed at step 24: no room.", "no room."),
        (ValueError("odd"), "failed at step 24: ValueError: odd", "ValueError: odd"),
    ],
)
def test_how_a_run_ended_is_noted(error, said, noted, tmp_path: Path) -> None:
    run = Run(RunFolder(tmp_path / "1"), Settings(seed=3))
    run.folder.assets.mkdir(parents=True)
    run.begin()
    with pytest.raises(type(error)), run.noting_its_end():
        run.fit(Stage(make_step(1), make_batches(), 4))
        raise error
    texts = [
        value.tensor.string_val[0].decode()
        for event in read_event_files(run.folder.path / "hparams")
        for value in event.summary.value
        if value.tag == "status"
    ]
    assert texts[0].startswith("begun 2") and texts[1:] == [said]
    assert run.folder.environment.get("failed", "") == noted
    assert run.folder.environment["seed"] == 3


def test_the_stages_of_a_run_share_one_clock_in_tensorboard(unstopped) -> None:
    steps: dict[str, list[int]] = {}
    for _, tag, step in read_events(unstopped[0]):
        if tag.endswith("epoch/loss"):
            steps.setdefault(tag, []).append(step)
    assert {tag: sorted(found) for tag, found in steps.items()} == {
        "warming/epoch/loss": [6, 12],
        "epoch/loss": [18, 24],
    }


# --- Reading from the device ----------------------------------------------------------------------


def test_figures_are_read_when_something_is_logged_and_not_at_each_step() -> None:
    """To read one is to wait for the device; on a GPU that would be every step's wait."""
    reads: list[int] = []

    class Counted(Figures):
        @property
        def sums(self) -> np.ndarray:  # type: ignore[override]
            reads.append(step.made)
            return np.asarray(self._sums)

    class Counting(Gan):
        made = 0

        def __call__(self, batch: Any, stop: bool = False) -> Mapping[str, float]:
            self.made += 1
            figures = super().__call__(batch, stop)
            assert isinstance(figures, Figures)
            return Counted(figures.names, figures._sums)

    step = Counting()
    train(Stage(step, numbers(25), 1, stop_if_diverged=False))
    assert set(reads) == {10, 20, 25}


# --- What makes no sense --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None,
        {"loss": 1.0},
        ({"loss": tf.zeros([2])}, 1.0),
        (tf.constant(1.0), 1.0),
        ({"loss": "high"}, 1.0),
        ({"loss": 1.0}, None),
        ({"loss": 1.0}, 1.0, 2.0),
    ],
)
def test_an_update_that_returns_something_else_is_one_sentence(given: Any) -> None:
    class Odd(Gan):
        def update(self, batch: Any) -> Any:
            return given

    with pytest.raises(UserError, match=r"Odd\.update must return figures by name and their weight"):
        train(Stage(Odd(), numbers()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "Stage takes batches and epochs, or a length"),
        ({"batches": numbers(), "length": 3}, "batches given, length 3"),
        ({"length": -1}, "length -1"),
        ({"batches": numbers(), "epochs": 0}, "epochs must be a whole number of at least 1. Received: 0"),
        ({"batches": np.zeros((4, 2))}, "Stage takes Batches: .* Received: ndarray"),
        ({"batches": dataclasses.replace(numbers(), steps_per_epoch=0)}, "nothing to train on"),
    ],
)
def test_a_stage_that_makes_no_sense_is_one_sentence(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Stage(Gan(), **words)


class Counting(Step):
    """Counts to a length by itself."""

    def __init__(self, advance: Any = 1, figures: Any = None, variables: bool = True) -> None:
        super().__init__()
        self.count = tf.Variable(0)
        self.advance, self.figures, self.has_variables = advance, figures, variables

    @property
    def variables(self) -> Sequence[Any]:
        return [self.count] if self.has_variables else []

    def __call__(self, batch: Any, stop: bool = False) -> Any:
        self.count.assign_add(1)
        return self.figures or {"loss": np.float32(1.0), "count": np.int64(3)}


def test_a_step_of_a_length_resumes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Stage(Counting(), length=5), callbacks=[StopAt(2)], checkpoints=Checkpoints(tmp_path))
    step = Counting()
    history = train(Stage(step, length=5), checkpoints=Checkpoints(tmp_path), resume=True)
    assert int(step.count) == 5 and list(history) == [{"loss": 1.0, "count": 3.0}] * 5


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Counting(advance=0), "move the clock by its `advance`, 1 at least"),
        (Counting(figures=({"loss": 1.0}, 1.0)), "must return figures by name"),
        (Counting(variables=False), "Counting.variables is empty"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_sentence(step: Step, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(Stage(step, length=5), checkpoints=Checkpoints(tmp_path))


def test_a_sum_without_a_weight_is_not_a_number() -> None:
    assert np.isnan(Figures(["loss"], np.array([3.0, 0.0]))["loss"])
    assert Figures(["loss"], np.array([0.0, 0.0]))["loss"] == 0.0
