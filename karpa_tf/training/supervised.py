"""The usual step: a compiled Keras model, its loss and its optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf import private
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.training.distillation import Distillation
from karpa_tf.training.optimizers import rows_with_gradient
from karpa_tf.training.pruning import Sparsity, masked
from karpa_tf.training.step import Step, all_reduce, averaged, values_of

# (labels, outputs) to a value per label, of the shape of the sample weights: what
# keras.metrics.sparse_categorical_accuracy and its kin are.
Metric = Callable[[Any, Any], Any]

# (features, labels) of a batch to features that are harder for the model.
Attack = Callable[[Any, Any], Any]


@dataclass(frozen=True, repr=False)
class Adversary(InALine):
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
        sparsity: prune the model as it is trained.
        distillation: learn from a teacher as well as from the labels.

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
        sparsity: Sparsity | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        check_model(model)
        super().__init__(private.strategy_of(model.optimizer))
        self.model = model
        self.metrics = dict(metrics or {})
        self._names = ["loss", *self.metrics]
        self.accumulate = accumulate
        self.adversary = adversary
        self.attack = attack
        self.sparsity = sparsity
        self.distillation = distillation
        self.summed = len(self.metrics) + 2
        self._made = 0
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
        weight = tf.maximum(all_reduce(self.strategy, self.weigh(batch)), 1e-9)
        grads, sums = (self._accumulated if self.accumulate > 1 else self._gradients)(batch, weight)
        grads = all_reduce(self.strategy, grads)
        if self._statistics:
            sums_of = all_reduce(self.strategy, [tf.identity(v.value) for v in self._statistics])
            for variable, total in zip(self._statistics, sums_of, strict=True):
                variable.value.assign(total / self.strategy.num_replicas_in_sync)
        if not self._whole:
            grads = [rows_with_gradient(g) if i in self._sparse else g for i, g in enumerate(grads)]
        masks = self.sparsity.masks(variables) if self.sparsity else {}
        grads = [masked(g, masks[i]) if i in masks else g for i, g in enumerate(grads)]
        figures = self.figures(sums, weight)
        # Every replica makes the same update of its own copy of the weights.
        self.apply_gradients(figures, (self.model.optimizer, grads, variables))
        for place, mask in masks.items():  # momentum moves pruned weights as well
            variable = variables[place].value
            # The handle is this replica's own.
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=masked(variable, mask))
        return figures

    def weigh(self, batch: Any) -> tf.Tensor:
        """Returns what a batch's losses are divided by: the sum of its weights."""
        return tf.reduce_sum(_weights(batch))

    def mean(self, loss: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Returns what is descended on, of the loss of a batch or a part of it, and the batch's weight."""
        return loss / weight

    def figures(self, sums: tf.Tensor, weight: tf.Tensor) -> tuple[Mapping[str, Any], Any]:
        """Returns figures as `update` does, of the sums of `loss_and_sums` and the whole batch's weight."""
        *values, total = tf.unstack(sums)
        return dict(zip(self._names, values, strict=True)), total

    def __call__(self, batch: Any, stop: bool = False) -> Mapping[str, float]:
        """Makes the update, prunes if it is time for that, and returns the figures of the update."""
        figures = super().__call__(batch, stop)
        if self.sparsity:
            self._made += 1
            self.sparsity.prune(self._made)
        return figures

    def loss_and_sums(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of a batch summed over its weights, and `[loss, *metrics, 1]` summed likewise."""
        if self.distillation:
            return self.distillation.loss_and_sums(self.model, self.metrics, batch)
        return loss_and_sums(self.model, self.metrics, batch, training=True)

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
        with tf.control_dependencies([values_of(g) for g in more]):
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
            loss, sums = self.loss_and_sums(batch)
            loss = self.mean(loss, weight)
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
        start = (0, zeros, tf.zeros([self.summed]))
        _, grads, sums = tf.while_loop(lambda i, *_: i < count, add, start)
        return grads, sums

    def begin(self) -> None:
        """Gives each replica random numbers of its own; else all would drop the same activations.

        The first one keeps those that it has, and with them what a checkpoint holds.
        """
        self._made = int(np.asarray(self.model.optimizer.iterations))
        seeds = [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]

        def replica() -> None:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            for seed in seeds:
                seed.value.assign(seed.value + tf.cast(tf.stack([number, 0]), seed.dtype))

        if self.strategy.num_replicas_in_sync > 1 and seeds:
            tf.function(lambda: self.strategy.run(replica), autograph=False)()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Puts the running average of the weights in their place, if the optimizer keeps one."""
        variables = self.model.trainable_variables
        masks = self.sparsity.masks(variables) if self.sparsity else {}
        with averaged(self.model.optimizer, variables):
            for place, mask in masks.items():  # the average still has what was pruned lately
                variables[place].assign(masked(variables[place], mask))
            yield


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


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        values, indices = tf.concat([a.values, b.values], 0), tf.concat([a.indices, b.indices], 0)
        return tf.IndexedSlices(values, indices, a.dense_shape)
    return a + b
