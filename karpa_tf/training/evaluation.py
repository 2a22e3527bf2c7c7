"""What a model gives for data that it does not learn from: outputs, loss and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf import private
from karpa_tf.data.batches import Batches, from_dataset
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.training.step import Figures, all_reduce, any_replica
from karpa_tf.training.supervised import Metric, loss_and_sums


class Outputs:
    """What a model gives for one pass over data, again and again; traced once, whatever widths batches have.

    Args:
        model: the model.
        data: the batches.
    """

    def __init__(self, model: keras.Model, data: Batches) -> None:
        self._dataset = data.dataset()
        forward = tf.function(
            lambda features: model(features, training=False),
            input_signature=[self._dataset.element_spec[0]],
            autograph=False,
        )
        # Calls of the function itself are counted, and TensorFlow warns where several models are evaluated.
        self._forward = forward.get_concrete_function()

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yields (outputs, labels, sample weights) of each batch, as arrays."""
        for features, labels, weights in self._dataset:
            yield tf.nest.map_structure(np.asarray, (self._forward(features), labels, weights))


def evaluate(
    model: keras.Model, data: Batches | tf.data.Dataset, metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Returns the loss and the metrics over all of `data`, averaged over the sample weights.

    Args:
        model: compiled with a loss, as for `fit`.
        data: what to evaluate it on; a `tf.data.Dataset` as `fit` takes it.
        metrics: functions of (labels, outputs) that give a value per label, by name.

    Raises:
        UserError: the model is not compiled, the metrics are none, or the dataset does not say how many
            batches it has, or holds something else than those.
    """
    if getattr(model, "optimizer", None) is None:
        raise UserError("The model is not compiled: call model.compile(optimizer, loss) before evaluate.")
    check_metrics(metrics)
    if isinstance(data, tf.data.Dataset):
        data = from_dataset(data)
    return Evaluator(model, data, metrics, private.strategy_of(model.optimizer))()


def check_metrics(metrics: Any) -> None:
    """Raises a UserError for metrics that are not functions by name."""
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, Mapping) or not all(
        callable(metric) and not isinstance(metric, keras.metrics.Metric) for metric in metrics.values()
    ):
        raise UserError(
            "metrics are functions of labels and outputs by name, e.g. "
            '{"accuracy": keras.metrics.sparse_categorical_accuracy}; objects of Keras add up by themselves. '
            f"Received: {metrics!r}."
        )
    if "loss" in metrics:
        raise UserError('The figure "loss" is the loss: give the metric another name.')


class Evaluator(InALine):
    """Evaluates a model on the same batches again and again, on every replica a part of them.

    A call returns the loss and the metrics, averaged over the sample weights.

    Args:
        model: compiled with a loss.
        data: the batches.
        metrics: functions of (labels, outputs) that give a value per label, by name.
        strategy: under whose scope the model was made.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Batches,
        metrics: Mapping[str, Metric] | None,
        strategy: tf.distribute.Strategy,
    ) -> None:
        metrics = metrics or {}
        self.names = ["loss", *metrics]
        self._batches = distribute(data, strategy, 0, data.steps_per_epoch)
        self._steps = data.steps_per_epoch

        def replica(batch: Any) -> tf.Tensor:
            _, sums = loss_and_sums(model, metrics, batch, training=False)
            return tf.cast(all_reduce(strategy, sums), tf.float64)

        # Batches may have many widths: the graph of the second one takes all of them.
        @tf.function(autograph=False, reduce_retracing=True)
        def step(batch: Any) -> tf.Tensor:
            return any_replica(strategy, strategy.run(replica, args=(batch,)))

        self._step = step

    def __call__(self) -> dict[str, float]:
        totals = np.zeros(len(self.names) + 1)
        for batch in islice(self._batches, self._steps):
            totals += self._step(batch).numpy()
        return dict(Figures(self.names, totals))


def distribute(data: Batches, strategy: tf.distribute.Strategy, start: int, stop: int) -> Any:
    """Returns batches `start` to `stop`, cut among the replicas of a strategy."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return data.dataset(start, stop)

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        parts = context.num_input_pipelines
        mine = data.dataset(start, stop, part=context.input_pipeline_id, parts=parts)
        if parts < replicas:
            mine = mine.rebatch(data.batch_size // replicas, drop_remainder=True)
        # Where data can end, all workers agree on that by network before each step.
        return mine.repeat()

    return strategy.distribute_datasets_from_function(dataset)
