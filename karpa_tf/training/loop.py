"""The training loop: one worker or several, and resume from any step. No loss stands here.

Keras 3's own `fit` fails under MultiWorkerMirroredStrategy (keras #20585), restarts its counters and
cannot go on inside an epoch. This one does the same work with the step as its only clock: data, masks,
learning rate, logs and checkpoints all follow from it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np

from karpa_tf.data.batches import Batches
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine, in_a_line
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.evaluation import Evaluator, distribute
from karpa_tf.training.runtime import (
    from_chief,
    has_other_workers,
    is_chief,
    needing_all_workers,
    sum_over_replicas,
)
from karpa_tf.training.step import Figures, Step
from karpa_tf.training.stopping import Pace, stop_signal

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A loss this many times above the least of the first ones, and by this much at least, for so many steps
# on end, will not come back.
_DIVERGED = 2.0
_DIVERGED_BY = 1.0
_DIVERGED_STEPS = 20
# Steps after which figures are read, at the latest: on a GPU to read them is to wait for it.
_READ_EVERY = 10


class Diverged(UserError):
    """The loss is not a number, or has grown away."""


class Paused(KeyboardInterrupt):
    """A training has come as far as it was to; a checkpoint is written, and it may go on."""


class History(list[dict[str, float]]):
    """The figures of each epoch.

    Attributes:
        steps: of the run, when the training ended.
        graph_traces: how often the step was traced: once for each shape that batches have.
    """

    steps = 0
    graph_traces = 0

    def __repr__(self) -> str:
        return in_a_line("History", {"epochs": len(self), **(self[-1] if self else {})})


@dataclass(frozen=True, repr=False)
class Stage(InALine):
    """A training from its first step to its last; a run has one, or several one after the other.

    Attributes:
        step: makes the updates.
        batches: of the step; None: it finds its own data, and an epoch is one call of it.
        epochs: passes over the batches.
        length: where there are no batches: the clock at which the stage ends.
        validation: returns figures after each epoch, which get the prefix `val_`; of several workers the
            chief alone calls it.
        name: of the stage, within its run.
        stop_if_diverged: end when the loss is not a number or grows away. A GAN's may rise.
        own_tags: whether its tags in TensorBoard begin with its name; else its curves go on with those of the
            stage before.
        pause: raise `Paused` after so many epochs, or where there are no batches at this clock; 0: never.
    """

    step: Step
    batches: Batches | None = None
    epochs: int = 1
    length: int = 0
    validation: Callable[[], dict[str, float]] | None = None
    name: str = "training"
    stop_if_diverged: bool = True
    own_tags: bool = True
    pause: int = 0

    def __post_init__(self) -> None:
        """Raises a UserError for a stage that makes no sense."""
        if self.batches is not None and not isinstance(self.batches, Batches):
            raise UserError(
                "Stage takes Batches: karpa_tf.data.array_batches makes them of arrays, from_dataset of a "
                f"tf.data.Dataset. Received: {type(self.batches).__name__}."
            )
        if (self.batches is None) == (self.length == 0) or self.length < 0:
            raise UserError(
                "Stage takes batches and epochs, or a length of 1 at least where the step finds its own "
                f"data. Received: batches {'given' if self.batches else 'None'}, length {self.length}."
            )
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise UserError(f"epochs must be a whole number of at least 1. Received: {self.epochs!r}.")
        if self.batches and self.batches.steps_per_epoch < 1:
            raise UserError("There is nothing to train on: the batches of an epoch are 0.")

    @property
    def steps(self) -> int:
        """The clock at which the stage ends."""
        return self.epochs * self.batches.steps_per_epoch if self.batches else self.length


def releasing_checkpoints(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Lets others have the folder of the checkpoints when a training ends, also where it is refused."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        finally:
            checkpoints = kwargs.get("checkpoints")
            if isinstance(checkpoints, Checkpoints):
                checkpoints.release()

    return wrapper


@releasing_checkpoints
def train(
    stage: Stage,
    *,
    callbacks: Sequence[Any] = (),
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    begin: int = 0,
    finished: Sequence[str] = (),
    saved: Callable[[], object] = lambda: None,
) -> History:
    """Makes the steps of a stage.

    Args:
        stage: what is trained, on what, and for how long.
        callbacks: as for `fit`. One that has an attribute `clock` gets the steps of the run there, those of
            earlier stages included, before it is called.
        checkpoints: where to save the state.
        resume: go on from the newest checkpoint, if it is one of this stage.
        begin: steps of the stages before.
        finished: names of the stages before.
        saved: is called after each checkpoint.

    Returns:
        The figures of each epoch; see `fit`, also for what is raised.
    """
    return _Training(stage, list(callbacks), checkpoints, begin, finished, saved).run(resume)


class _Training:
    """One stage as it is trained."""

    def __init__(
        self,
        stage: Stage,
        callbacks: list[Any],
        checkpoints: Checkpoints | None,
        begin: int,
        finished: Sequence[str],
        saved: Callable[[], object],
    ) -> None:
        self.stage = stage
        self.step = stage.step
        self.callbacks = callbacks
        self.checkpoints = checkpoints
        self.begin = begin
        self.finished = list(finished)
        self.saved = saved
        self.strategy = self.step.strategy
        self.chief = is_chief(self.strategy)
        self.several = has_other_workers(self.strategy)
        self.clock = 0
        self.history = History()
        self.totals: np.ndarray = np.zeros(0)
        self.watches = {name: _Watch(stage.stop_if_diverged) for name in self.step.watched}
        self.watch = next(iter(self.watches.values()))
        self._unread: list[tuple[int, Figures]] = []
        self._figures: Mapping[str, float] = {}
        if stage.batches and stage.batches.batch_size % self.step.parts:
            raise UserError(
                f"batch_size must be a multiple of {self.step.parts}, the workers times accumulate. "
                f"Received: {stage.batches.batch_size}."
            )

    # --- What a checkpoint holds

    @property
    def _setup(self) -> dict[str, Any]:
        """What must not differ when a checkpoint is continued; layers are compared by their shapes."""
        setup: dict[str, Any] = {"stage": self.stage.name}
        if self.stage.batches:
            setup["steps_per_epoch"] = self.stage.batches.steps_per_epoch
        if (optimizer := getattr(self.step.model, "optimizer", None)) is not None:
            setup["optimizer"] = type(optimizer).__name__
        return setup

    @property
    def _stateful(self) -> list[Any]:
        return [c for c in (*self.watches.values(), self.step, *self.callbacks) if hasattr(c, "get_state")]

    def _save(self) -> None:
        self._read()
        if self.checkpoints and self.chief:
            state = {
                **self._setup,
                "finished": self.finished,
                "begin": self.begin,
                "history": self.history,
                "totals": self.totals.tolist(),
                "callbacks": [part.get_state() for part in self._stateful],
            }
            self.checkpoints.save(self.begin + self.clock, self.step.variables, state)
            self.saved()

    def _resume(self) -> None:
        saved = None
        if self.checkpoints:
            if self.chief and self.checkpoints.folder.is_dir():
                self.checkpoints.begin()
            saved = self.checkpoints.restore(self.step.variables, self.stage.name)
        if saved:
            _check_setup(saved, self._setup, self.stage)
            self.begin = saved.get("begin", 0)
            self.clock, self.history = saved["step"] - self.begin, History(saved["history"])
            self.totals = np.array(saved["totals"])
            for part, state in zip(self._stateful, saved["callbacks"], strict=True):
                part.set_state(state)
        for callback in self.callbacks:
            if hasattr(callback, "on_resume"):
                callback.on_resume(self.begin + self.clock if saved or self.begin else None)

    # --- Training

    def run(self, resume: bool) -> History:
        if self.checkpoints and self.chief and not resume and not self.finished and self.checkpoints.exist():
            raise UserError(
                f"{self.checkpoints.folder} holds the checkpoints of a training: resume=True goes on with "
                "it; for a new one give another folder."
            )
        if resume:
            _warn_of_stateless(self.callbacks)
            self._resume()
        replicas = self.strategy.num_replicas_in_sync
        if sum_over_replicas(self.strategy, self.clock) != replicas * self.clock:
            raise UserError(
                f"The workers do not go on from the same step, this one from {self.clock}: they must all see "
                "the same run folder, and all be started with --resume or all without."
            )
        if self.checkpoints and not list(self.step.variables):
            raise UserError(
                f"{type(self.step).__name__}.variables is empty: nothing could be resumed from a checkpoint."
            )
        self.step.begin()
        self._check_monitors()
        model = self.step.model
        self._set_stopped(self.watch.stopped)
        callbacks = keras.callbacks.CallbackList(
            self.callbacks, model=model, epochs=self.stage.epochs, steps=self._per_epoch, verbose=0
        )
        self._set_clock()
        callbacks.on_train_begin()
        with ExitStack() as stack:
            pace = Pace()
            stopping = stack.enter_context(stop_signal(pace.patience if self.several else None))
            stack.callback(callbacks.on_train_end)  # whatever ends the training, logs are flushed
            stack.enter_context(needing_all_workers(self.strategy))
            batches = self._batches()
            while self.clock < self.stage.steps and not self._stopped:
                if self.stage.pause and self.clock >= self.stage.pause * self._per_epoch:
                    self._save()
                    raise Paused
                epoch, index = self._place(self.clock)
                if index == 0:
                    self.totals = np.zeros(0)
                    callbacks.on_epoch_begin(epoch)
                for callback in self.callbacks:
                    callback.on_train_batch_begin(index)
                with pace.step():
                    self._figures = self.step(next(batches), stopping.is_set())
                    stops = self.several and self.step.stops
                if not isinstance(self._figures, Mapping) or self.step.advance < 1:
                    raise UserError(
                        f"A call of {type(self.step).__name__} must return figures by name and move the "
                        "clock by its `advance`, 1 at least. Received: "
                        f"{self._figures!r}, {self.step.advance}."
                    )
                self.clock += self.step.advance
                if self.checkpoints and self.chief and pace.steps == 1:
                    self.checkpoints.begin()
                self._set_clock()
                self._note(self._figures)
                for callback in self.callbacks:
                    callback.on_train_batch_end(index, self._figures)
                if self.stage.batches is None or self.clock % self._per_epoch == 0:
                    self._end_epoch(callbacks, epoch)
                # Workers stop together: one that is to ends the step after, and with it all the others.
                if stops or (not self.several and stopping.is_set()):
                    self._save()
                    raise KeyboardInterrupt
                if self.checkpoints and self.checkpoints.due():
                    self._save()
            self._save()
        self.history.steps = self.begin + self.clock
        self.history.graph_traces = self.step.traces
        return self.history

    def _end_epoch(self, callbacks: keras.callbacks.CallbackList, epoch: int) -> None:
        self._read()
        # Numbers of NumPy are none of JSON's.
        logs = {k: v if isinstance(v, int) else float(v) for k, v in self._figures.items()}
        if isinstance(self._figures, Figures):
            logs = dict(Figures(self._figures.names, self.totals))
        with self.step.evaluated():
            if self.stage.validation:
                callbacks.on_test_begin()
                figures = self._validate()
                callbacks.on_test_end(figures)
                logs |= {f"val_{name}": value for name, value in figures.items()}
            self.history.append(logs)
            for callback in self.callbacks:  # Keras' list would make every count a float
                callback.on_epoch_end(epoch, logs)
        self.watch.stopped = from_chief(self.strategy, lambda: self._stopped)
        self._set_stopped(self.watch.stopped)

    def _validate(self) -> Any:
        validation = self.stage.validation
        assert validation
        if isinstance(validation, Evaluator):  # on all workers
            return validation()
        return from_chief(self.strategy, validation)

    def _note(self, figures: Mapping[str, float]) -> None:
        """Adds figures to those of the epoch; they are read a few steps later, or when they are needed."""
        if not isinstance(figures, Figures):
            self.watch.check(float(figures.get("loss", 0.0)), self.clock)
            return
        self._unread.append((self.clock, figures))
        if len(self._unread) >= _READ_EVERY:
            self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for clock, figures in unread:
            self.totals = self.totals + figures.sums if self.totals.size else figures.sums.copy()
            for name, watch in self.watches.items():
                if name in figures:
                    watch.check(figures[name], clock)

    # --- Small parts

    @property
    def _per_epoch(self) -> int:
        return self.stage.batches.steps_per_epoch if self.stage.batches else 1

    def _place(self, clock: int) -> tuple[int, int]:
        """Returns the epoch and the step in it that begin at a clock."""
        return divmod(clock, self._per_epoch) if self.stage.batches else (len(self.history), 0)

    def _batches(self) -> Iterator[Any]:
        if self.stage.batches is None:
            return iter(lambda: None, 0)
        return iter(distribute(self.stage.batches, self.strategy, self.clock, self.stage.steps))

    @property
    def _stopped(self) -> bool:
        return bool(self.step.stop_training if self.step.model is None else self.step.model.stop_training)

    def _set_stopped(self, stopped: bool) -> None:
        if self.step.model is None:
            self.step.stop_training = stopped
        else:
            self.step.model.stop_training = stopped

    def _set_clock(self) -> None:
        for callback in self.callbacks:
            if hasattr(callback, "clock"):
                callback.clock = self.begin + self.clock

    def _check_monitors(self) -> None:
        """Raises a UserError if a callback wants a figure that no epoch will have."""
        if self.stage.batches is None:
            return
        known = list(self.step.names)
        if isinstance(self.stage.validation, Evaluator):
            known += [f"val_{name}" for name in self.stage.validation.names]
        elif self.stage.validation:
            # What a function gives is known when it was called.
            figures = self._validate()
            if not isinstance(figures, dict):
                raise UserError(
                    f"A validation function returns figures by name. Received: {type(figures).__name__}."
                )
            known += [f"val_{name}" for name in figures]
        monitors = [c for c in self.callbacks if isinstance(getattr(c, "monitor", None), str)]
        for callback in monitors:
            monitor = callback.monitor
            if getattr(callback, "monitors_if_there", False) and monitor == "val_loss":
                continue  # without validation it keeps the last weights
            # Those of a step of the user's own are known when it was made.
            if monitor not in known and (self.step.names or monitor.startswith("val_")):
                raise UserError(
                    f'{type(callback).__name__} monitors "{monitor}"{did_you_mean(monitor, known)} '
                    f"There is: {', '.join(known)}."
                )


def _warn_of_stateless(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        kinds = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
        if isinstance(callback, kinds) and not hasattr(callback, "get_state"):
            warnings.warn(
                f"{type(callback).__name__} begins anew in a resumed run: Keras keeps no state of it; "
                "karpa_tf.training.callbacks.BestWeights(patience=...) stops early and resumes.",
                stacklevel=5,
            )


def _check_setup(saved: Mapping[str, Any], setup: Mapping[str, Any], stage: Stage) -> None:
    """Raises a UserError if a checkpoint belongs to a training of another shape."""
    if not {"history", "callbacks"} <= set(saved):
        raise UserError("The checkpoint was written by another version of karpa_tf: go on with that one.")
    for name, value in setup.items():
        if saved.get(name, value) != value:
            raise UserError(
                f"The checkpoint belongs to a training with {name} {saved[name]}: go on with the same, or "
                f"begin a new one in another folder. Received: {value}."
            )
    if stage.batches and len(saved["history"]) > stage.epochs:
        raise UserError(f"epochs may only grow: {len(saved['history'])} are made. Received: {stage.epochs}.")


class _Watch:
    """Stops a run whose loss is not a number or has grown away."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.start = float("inf")
        self.seen = 0
        self.high = 0
        self.stopped = False

    def check(self, loss: float, step: int) -> None:
        if not self.enabled:
            return
        if not math.isfinite(loss):
            raise Diverged(
                f"The loss is {loss} at step {step}: training stopped; try a smaller learning_rate, "
                "or precision float32."
            )
        if self.seen < 5:
            self.start = min(self.start, abs(loss))
            self.seen += 1
        self.high = self.high + 1 if loss > _DIVERGED * self.start + _DIVERGED_BY else 0
        if self.high >= _DIVERGED_STEPS:
            raise Diverged(
                f"The loss has diverged: {loss:.4g} at step {step}, from {self.start:.4g} at the "
                "start; try a smaller learning_rate."
            )

    def get_state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "enabled"}

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
