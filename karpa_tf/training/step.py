"""One update of a training: what the loop calls, and every variable that a checkpoint must hold.

`karpa_tf.training.supervised.SupervisedStep` is the usual one: a compiled Keras model, its loss and its
optimizer. A training of another kind (two optimizers, a loss of its own, an environment) is a subclass of
`Step`; see docs/training.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine, in_a_line


class Figures(Mapping[str, float]):
    """The figures of a step, by name; they stay on the device until one of them is read.

    Args:
        names: of the figures.
        sums: float64 (names + 1,): each summed over the batch, and last the weight that divides them; or
            (2 names,): and then the weight of each. A figure whose own weight is 0 is not there.
    """

    def __init__(self, names: Sequence[str], sums: Any) -> None:
        self.names = names
        self._sums = sums

    @cached_property
    def sums(self) -> np.ndarray:
        """The sums, float64 (names + 1,); waits for the device."""
        return np.asarray(self._sums)

    def __getitem__(self, name: str) -> float:
        place = self.names.index(name) if name in self.names else -1
        if place < 0 or (self._own and self.sums[len(self.names) + place] <= 0):
            raise KeyError(name)
        total, weight = float(self.sums[place]), float(self.sums[len(self.names) + place * self._own])
        if weight <= 0 and total:
            return math.nan
        return total / max(weight, 1e-9)

    @property
    def _own(self) -> bool:
        """Whether each figure has a weight of its own; its shape is known without waiting."""
        return len(self.names) > 1 and self._sums.shape[0] == 2 * len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in self.names if name in self] if self._own else self.names)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return in_a_line("Figures", dict(self))


class Step(InALine, ABC):
    """One update, as the loop makes it again and again, and all that a checkpoint must hold of it.

    A subclass gives `variables` and `update`, which is traced once for each shape of batches and runs on
    every replica of the strategy. A step that is more than a function of a batch overrides `__call__`.

    Args:
        strategy: of tf.distribute, under whose scope the variables were made; None: the present one.

    Attributes:
        model: the Keras model that callbacks see, if there is one.
        strategy: the same.
        parts: into how many equal parts a batch is cut.
        advance: by how much the last call has moved the clock of the training.
        stop_training: set it to end the training after this step, where there is no model to set it on.
        watched: the losses among the figures: training ends where one of them is no number or grows away.
    """

    model: keras.Model | None = None
    parts = 1
    advance = 1
    stop_training = False
    watched: Sequence[str] = ("loss",)

    def __init__(self, strategy: tf.distribute.Strategy | None = None) -> None:
        self.strategy = strategy or tf.distribute.get_strategy()
        self.parts = self.strategy.num_replicas_in_sync
        self._names: list[str] = []
        self._function: Any = None
        self._stops: Any = None

    @property
    @abstractmethod
    def variables(self) -> Sequence[Any]:
        """Everything that changes, in an order that does not: weights, optimizers, counters."""

    @property
    def names(self) -> list[str]:
        """The names of the figures; none while they are not known."""
        return self._names

    def begin(self) -> None:
        """Is called before the first step, after a checkpoint was put into the variables."""

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Puts what is evaluated and kept at the end of an epoch in the place of what is trained."""
        yield

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        """Makes one update, in TensorFlow ops.

        Args:
            batch: this replica's part of one batch.

        Returns:
            Figures by name, scalars summed over the batch, and the weight that divides the sums: figures are
            averages over replicas, steps and epochs by it. With means over a batch it is 1. Weights by name
            where figures have different ones: one of weight 0 is left out.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither update nor __call__.")

    def apply_gradients(self, figures: Any, *updates: tuple[Any, Sequence[Any], Sequence[Any]]) -> None:
        """Updates variables, after all figures and all gradients were computed from what they were before.

        Without that, TensorFlow's graph optimizer may let an update come first where its gradient does not
        depend on the variable's value, as with a loss that is linear in what a layer gives.

        Args:
            figures: tensors, in any structure.
            updates: each an optimizer of Keras, gradients and the variables that they are of.
        """
        gradients = [gradient for _, some, _ in updates for gradient in some]
        with tf.control_dependencies([*tf.nest.flatten(figures), *map(values_of, gradients)]):
            for optimizer, some, variables in updates:
                optimizer.apply(some, variables)

    def __call__(self, batch: Any, stop: bool = False) -> Mapping[str, float]:
        """Makes the update and returns its figures.

        Args:
            batch: of `Batches`, distributed over the replicas; None where a training has none.
            stop: whether this process wants to stop; see `stops`.
        """
        if self._function is None:
            self._function = self._traced()
        sums, self._stops = self._function(batch, tf.constant(float(stop)))
        return Figures(self._names, sums)

    @property
    def stops(self) -> bool:
        """Whether any process wanted to stop at the last step; waits for the device."""
        return self._stops is not None and bool(self._stops.numpy())

    @property
    def traces(self) -> int:
        """How often the update was traced: once for each shape that batches have."""
        return self._function.experimental_get_tracing_count() if self._function else 0

    def _traced(self) -> Any:
        def replica(batch: Any, stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            names, values = _checked(self, self.update(batch))
            self._names = names
            sums = tf.stack(values)
            # An argument has no device, and what is reduced must have one: tf.identity.
            sums, stops = all_reduce(self.strategy, [sums, tf.identity(stop)])
            return tf.cast(sums, tf.float64), stops

        @tf.function(autograph=False)
        def step(batch: Any, stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return any_replica(self.strategy, self.strategy.run(replica, args=(batch, stop)))

        return step if self.strategy.num_replicas_in_sync > 1 else TracedByShape(step)


def _checked(step: Step, given: Any) -> tuple[list[str], list[tf.Tensor]]:
    """Returns the names of an update's figures, and their sums and the weight; or raises a UserError."""
    try:
        figures, weight = given
        weights = [weight[name] for name in figures] if isinstance(weight, Mapping) else [weight]
        values = [tf.convert_to_tensor(value) for value in (*figures.values(), *weights)]
        numbers = all(value.dtype.is_floating or value.dtype.is_integer for value in values)
        if numbers and all(value.shape.rank == 0 for value in values):
            return list(map(str, figures)), [tf.cast(value, tf.float32) for value in values]
        given = {name: value.shape for name, value in zip([*figures, "weight"], values, strict=True)}
    except (TypeError, ValueError, KeyError, AttributeError, tf.errors.OpError):
        pass
    raise UserError(
        f"{type(step).__name__}.update must return figures by name and their weight, each one number: "
        f'{{"loss": loss}}, 1.0. Received: {str(given)[:200]}.'
    )


class TracedByShape:
    """A tf.function that is traced once for each shape of its arguments.

    Left to itself TensorFlow does the same, and warns of it as soon as batches have a third width.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._graphs: dict[Any, Any] = {}

    def __call__(self, *args: Any) -> Any:
        key = tuple(tuple(tensor.shape) for tensor in tf.nest.flatten(args))
        if key not in self._graphs:
            self._graphs[key] = self._function.get_concrete_function(*args)
        return self._graphs[key](*args)

    def experimental_get_tracing_count(self) -> int:
        return len(self._graphs)


def all_reduce(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Sums tensors over the replicas; to be called in one."""
    if strategy.num_replicas_in_sync == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def any_replica(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Returns what one replica of this process holds, where all hold the same."""
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], values)


@contextmanager
def averaged(optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]) -> Iterator[None]:
    """Puts the running average of weights in their place, if their optimizer keeps one (`use_ema`)."""
    if not optimizer.use_ema:
        yield
        return
    weights = [np.asarray(v) for v in variables]
    optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)


def values_of(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
