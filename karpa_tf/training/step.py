"""One update of a training: what the loop calls, and every variable that a checkpoint must hold.

`SupervisedStep` is the usual one: a compiled Keras model, its loss and its optimizer. A training of another
kind (two optimizers, a loss of its own, an environment) is a subclass of `Step`; see docs/training.md.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf import private
from karpa_tf.errors import UserError
from karpa_tf.training.optimizers import rows_with_gradient

# (labels, outputs) to a value per label, of the shape of the sample weights: what
# keras.metrics.sparse_categorical_accuracy and its kin are.
Metric = Callable[[Any, Any], Any]

# (features, labels) of a batch to features that are harder for the model.
Attack = Callable[[Any, Any], Any]


class Figures(Mapping[str, float]):
    """The figures of a step, by name; they stay on the device until one of them is read.

    Args:
        names: of the figures.
        sums: float64 (names + 1,): each summed over the batch, and last the weight that divides them.
    """

    def __init__(self, names: Sequence[str], sums: Any) -> None:
        self.names = names
        self._sums = sums

    @cached_property
    def sums(self) -> np.ndarray:
        """The sums, float64 (names + 1,); waits for the device."""
        return np.asarray(self._sums)

    def __getitem__(self, name: str) -> float:
        return float(self.sums[self.names.index(name)]) / max(float(self.sums[-1]), 1e-9)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Step(ABC):
    """One update, as the loop makes it again and again, and all that a checkpoint must hold of it.

    A subclass gives `variables` and `update`, which is traced once for each shape of batches and runs on
    every replica of the strategy. A step that is more than a function of a batch overrides `__call__`.

    Attributes:
        model: the Keras model that callbacks see, if there is one.
        strategy: of tf.distribute, under whose scope the variables were made.
        parts: into how many equal parts a batch is cut.
        advance: by how much the last call has moved the clock of the training.
        stop_training: set it to end the training after this step, where there is no model to set it on.
    """

    model: keras.Model | None = None
    parts = 1
    advance = 1
    stop_training = False

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

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        """Makes one update, in TensorFlow ops.

        Args:
            batch: this replica's part of one batch.

        Returns:
            Figures by name, scalars summed over the batch, and the weight that divides the sums: figures are
            averages over replicas, steps and epochs by it. With means over a batch it is 1.
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
        with tf.control_dependencies([*tf.nest.flatten(figures), *map(_values, gradients)]):
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
            figures, weight = self.update(batch)
            self._names = list(figures)
            sums = tf.stack([tf.cast(value, tf.float32) for value in (*figures.values(), weight)])
            # An argument has no device, and what is reduced must have one: tf.identity.
            sums, stops = all_reduce(self.strategy, [sums, tf.identity(stop)])
            return tf.cast(sums, tf.float64), stops

        @tf.function(autograph=False)
        def step(batch: Any, stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return any_replica(self.strategy, self.strategy.run(replica, args=(batch, stop)))

        return step if self.strategy.num_replicas_in_sync > 1 else _TracedByShape(step)


class _TracedByShape:
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


# --- The usual one --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adversary:
    """The fast gradient method (Miyato et al. 2017, https://arxiv.org/abs/1605.07725) on an embedding.

    Attributes:
        embedding: the table (rows, width); a batch's gradient moves the rows that the batch uses.
        epsilon: length of the move.
    """

    embedding: keras.Variable
    epsilon: float


class SupervisedStep(Step):
    """An update of a compiled Keras model by the gradient of its loss.

    Loss, metrics and gradients are averages over the sample weights of the whole global batch, for any number
    of replicas or parts.

    Args:
        model: compiled with an optimizer and a loss, and built, under the strategy's scope if there is one.
        metrics: functions of (labels, outputs) that give a value per label, by name.
        accumulate: compute each batch in so many parts, one after the other, to save memory.
        adversary: train on each batch a second time, with an embedding moved to where the loss rises.
        attack: train on features that it has changed, instead of those of the batch.

    Raises:
        UserError: the model is not compiled, or does what this step cannot do (a `train_step` of its own, a
            loss that is a sum).
    """

    model: keras.Model

    def __init__(
        self,
        model: keras.Model,
        metrics: Mapping[str, Metric] | None = None,
        *,
        accumulate: int = 1,
        adversary: Adversary | None = None,
        attack: Attack | None = None,
    ) -> None:
        check_model(model)
        super().__init__(private.strategy_of(model.optimizer))
        self.model = model
        self.metrics = dict(metrics or {})
        self.accumulate = accumulate
        self.adversary = adversary
        self.attack = attack
        self.parts *= accumulate
        if adversary and self.strategy.num_replicas_in_sync > 1:
            raise UserError(
                "Adversarial training moves one copy of the embedding: use it with strategy none."
            )
        with self.strategy.scope():
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
        # The gradients are summed below, before they are clipped; Keras would add up the sums once more.
        private.take_gradients_as_sums(model.optimizer)
        self._statistics = private.statistics(model) if self.strategy.num_replicas_in_sync > 1 else []
        self._lazy = getattr(model.optimizer, "lazy", False)
        self._whole = self.parts == 1
        self._sparse: set[int] = set()

    @property
    def variables(self) -> Sequence[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        variables = self.model.trainable_variables
        # The weight of the whole global batch, known beforehand, spares a pass over all gradients.
        weight = all_reduce(self.strategy, tf.reduce_sum(_weights(batch)))
        weight = tf.maximum(weight, 1e-9)
        grads, sums = (self._accumulated if self.accumulate > 1 else self._gradients)(batch, weight)
        grads = all_reduce(self.strategy, grads)
        if self._statistics:
            sums_of = all_reduce(self.strategy, [tf.identity(v.value) for v in self._statistics])
            for variable, total in zip(self._statistics, sums_of, strict=True):
                variable.value.assign(total / self.strategy.num_replicas_in_sync)
        if not self._whole:
            grads = [rows_with_gradient(g) if i in self._sparse else g for i, g in enumerate(grads)]
        # Every replica makes the same update of its own copy of the weights.
        self.apply_gradients(sums, (self.model.optimizer, grads, variables))
        *values, total = tf.unstack(sums)
        return dict(zip(["loss", *self.metrics], values, strict=True)), total

    def _gradients(self, batch: Any, weight: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        if self.adversary is None:
            return self._plain_gradients(batch, weight)
        table = self.adversary.embedding.value
        (*grads, slope), sums = self._plain_gradients(batch, weight, [table])
        slope = tf.convert_to_tensor(slope)
        before = tf.identity(table)
        with tf.control_dependencies([before]):
            table.assign_add(self.adversary.epsilon * slope / tf.maximum(tf.norm(slope), 1e-12))
        more, _ = self._plain_gradients(batch, weight)
        with tf.control_dependencies([_values(g) for g in more]):
            table.assign(before)
        return [_add(a, b) for a, b in zip(grads, more, strict=True)], sums

    def _plain_gradients(
        self, batch: Any, weight: tf.Tensor, others: Sequence[tf.Variable] = ()
    ) -> tuple[list[Any], tf.Tensor]:
        if self.attack:
            features, labels, *weights = batch
            batch = (tf.stop_gradient(self.attack(features, labels)), labels, *weights)
        with tf.GradientTape() as tape:
            tape.watch(others)  # a frozen one too
            loss, sums = loss_and_sums(self.model, self.metrics, batch, training=True)
            loss /= weight
        sources = [*(v.value for v in self.model.trainable_variables), *others]
        grads = tape.gradient(loss, sources, unconnected_gradients="zero")
        if self._lazy:
            self._sparse.update(i for i, g in enumerate(grads) if isinstance(g, tf.IndexedSlices))
        if not (self._lazy and self._whole):
            # Dense: repeated rows of an embedding must be summed before anything squares them.
            grads = [tf.convert_to_tensor(g) for g in grads]
        return grads, sums

    def _accumulated(self, batch: Any, weight: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        count = self.accumulate
        parts = tf.nest.map_structure(lambda x: tf.reshape(x, [count, -1, *x.shape[1:]]), batch)

        def add(i: tf.Tensor, grads: list[tf.Tensor], sums: tf.Tensor) -> Any:
            more, partial = self._gradients(tf.nest.map_structure(lambda x: x[i], parts), weight)
            return i + 1, [a + b for a, b in zip(grads, more, strict=True)], sums + partial

        zeros = [tf.zeros_like(v) for v in self.model.trainable_variables]
        start = (0, zeros, tf.zeros([len(self.metrics) + 2]))
        _, grads, sums = tf.while_loop(lambda i, *_: i < count, add, start)
        return grads, sums

    def spread_seeds(self) -> None:
        """Gives each replica random numbers of its own; else all would drop the same activations.

        The first one keeps those that it has, and with them what a checkpoint holds.
        """
        seeds = [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]

        def replica() -> None:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            for seed in seeds:
                seed.value.assign(seed.value + tf.cast(tf.stack([number, 0]), seed.dtype))

        if self.strategy.num_replicas_in_sync > 1 and seeds:
            tf.function(lambda: self.strategy.run(replica), autograph=False)()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the running average of the weights in their place, if the optimizer keeps one."""
        model = self.model
        if not model.optimizer.use_ema:
            yield
            return
        weights = [np.asarray(v) for v in model.trainable_variables]
        model.optimizer.finalize_variable_values(model.trainable_variables)
        try:
            yield
        finally:
            for variable, value in zip(model.trainable_variables, weights, strict=True):
                variable.assign(value)


def loss_and_sums(
    model: keras.Model, metrics: Mapping[str, Metric], batch: Any, training: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss summed over the weights, and `[loss, *metrics, 1]` summed over the weights."""
    features, labels, *given = batch
    outputs = model(features, training=training)
    if any(map(private.has_mask, tf.nest.flatten(outputs))):
        raise UserError(
            "The model's output carries a Keras mask (mask_zero=True, or a Masking layer); here the sample "
            "weights of a batch say what counts: give what is padding the weight 0, and stop the mask."
        )
    takes = inspect.signature(model.compute_loss).parameters
    loss = tf.cast(
        model.compute_loss(
            features, labels, outputs, *given, **({"training": training} if "training" in takes else {})
        ),
        tf.float32,
    )
    weights = _weights(batch)
    weight = tf.reduce_sum(weights)
    # Keras has divided by the number of replicas, for sums of their averages; ours are true averages.
    loss *= tf.distribute.get_strategy().num_replicas_in_sync
    if _averages_over_rows(model):
        # Rows of no weight count there, and do not here. What layers add to the loss has no weights.
        added = tf.add_n([tf.cast(x, tf.float32) for x in [tf.constant(0.0), *model.losses]])
        loss = (loss - added) * tf.cast(tf.size(weights), tf.float32) / tf.maximum(weight, 1e-9) + added
    loss *= weight
    sums = [loss]
    for metric in metrics.values():
        values = tf.cast(metric(labels, outputs), tf.float32)
        values = tf.reduce_mean(values, axis=list(range(weights.shape.rank, values.shape.rank)))
        sums.append(tf.reduce_sum(values * weights))
    return loss, tf.stack([*sums, weight])


def _weights(batch: Any) -> tf.Tensor:
    """Returns the sample weights of a batch, float32; ones, a row each, where it brings none."""
    _, labels, *given = batch
    if given and isinstance(given[0], (dict, list, tuple)):
        raise UserError("fit takes one array of sample weights a batch, for all outputs. Received: several.")
    return tf.cast(given[0], tf.float32) if given else tf.ones(tf.shape(tf.nest.flatten(labels)[0])[:1])


def check_model(model: keras.Model) -> None:
    """Raises a UserError for a model that this step would not train as it says."""
    if getattr(model, "optimizer", None) is None:
        raise UserError("The model is not compiled: call model.compile(optimizer, loss) before fit.")
    for name in ("train_step", "test_step", "compute_metrics"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise UserError(
                f"{type(model).__name__} has a {name} of its own, which fit does not call: write a "
                "karpa_tf.training.Step, use model.fit, or put what it does into the layers, the loss or "
                "compute_loss."
            )
    if private.has_compiled_metrics(model):
        raise UserError(
            "fit does not read compile(metrics=...): give it functions of labels and outputs, e.g. "
            'metrics={"accuracy": keras.metrics.sparse_categorical_accuracy}.'
        )
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        raise UserError(
            "fit does not scale losses, which mixed_float16 needs: use the policy mixed_bfloat16, or float32."
        )
    _averages_over_rows(model)


def _averages_over_rows(model: keras.Model) -> bool:
    """Whether the compiled loss divides by the rows, Keras' default, rather than by their weights.

    Raises:
        UserError: it does neither.
    """
    losses = tf.nest.flatten(getattr(model, "loss", None))
    kinds = {getattr(x, "reduction", "sum_over_batch_size") for x in losses if x is not None}
    by_rows = kinds <= {"sum_over_batch_size", "mean"} and bool(kinds)
    own = type(model).compute_loss is not keras.Model.compute_loss
    if (kinds and not by_rows and kinds != {"mean_with_sample_weight"}) or (by_rows and own):
        raise UserError(
            "fit takes averages over the sample weights: compile with losses of "
            f'reduction="mean_with_sample_weight". Received: {", ".join(sorted(map(str, kinds)))}'
            f"{' under a compute_loss of its own' if own else ''}."
        )
    return by_rows


def _values(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        values, indices = tf.concat([a.values, b.values], 0), tf.concat([a.indices, b.indices], 0)
        return tf.IndexedSlices(values, indices, a.dense_shape)
    return a + b
