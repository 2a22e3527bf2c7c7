"""The training loop: one worker or several, and resume from any step.

Keras 3's own `fit` fails under MultiWorkerMirroredStrategy (keras #20585), restarts its counters and
cannot go on inside an epoch. This one does the same work with the step as its only clock: data, masks,
learning rate, logs and checkpoints all follow from it.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches, from_dataset
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.optimizers import rows_with_gradient
from karpa_tf.training.runtime import (
    from_chief,
    has_other_workers,
    is_chief,
    needing_all_workers,
    sum_over_replicas,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

# (labels, outputs) to a value per label, of the shape of the sample weights: what
# keras.metrics.sparse_categorical_accuracy and its kin are.
Metric = Callable[[Any, Any], Any]

# (features, labels) of a batch to features that are harder for the model.
Attack = Callable[[Any, Any], Any]

# A loss this many times above the least of the first ones, and by this much at least, for so many steps
# on end, will not come back.
_DIVERGED = 2.0
_DIVERGED_BY = 1.0
_DIVERGED_STEPS = 20
# Seconds that a step may take, at least, once a worker was told to stop.
_PATIENCE = 4.0


class Diverged(UserError):
    """The loss is not a number, or has grown away."""


def _releasing_checkpoints(fit: Callable[_P, _R]) -> Callable[_P, _R]:
    """Lets others have the folder of the checkpoints when `fit` ends, also where it is refused."""

    @functools.wraps(fit)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return fit(*args, **kwargs)
        finally:
            checkpoints = kwargs.get("checkpoints")
            if isinstance(checkpoints, Checkpoints):
                checkpoints.release()

    return wrapper


@_releasing_checkpoints
def fit(
    model: keras.Model,
    data: Batches | tf.data.Dataset,
    *,
    validation: Batches | tf.data.Dataset | Callable[[], dict[str, float]] | None = None,
    epochs: int = 1,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    accumulate: int = 1,
    adversary: Adversary | None = None,
    attack: Attack | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
) -> History:
    """Trains a compiled model.

    Losses, metrics and gradients are averages over the sample weights of the whole global batch, for
    any number of workers or parts: twice the workers is the same training. Batch normalization is the
    exception: each replica normalizes by its own part of the batch, and the moving averages are the means
    over the replicas (`keras.layers.BatchNormalization(synchronized=True)` normalizes by all of it).

    Args:
        model: any Keras model that is compiled with an optimizer and a loss, made under the strategy's
            scope if there is one. What `compile` was told of metrics is not read: see `metrics`.
        data: the training batches. A `tf.data.Dataset` of (features, labels) or (features, labels, sample
            weights) will do on one worker; it does not resume at the same batch.
        validation: batches to judge the model by after each epoch, or a function that judges it and
            returns figures; they get the prefix `val_`. A function is called once before the first step as
            well, and of several workers by the chief alone. If the optimizer keeps a running average of the
            weights (`use_ema`), that is what is judged and what callbacks see at the end of an epoch.
        epochs: passes over `data`, those before a resume included.
        metrics: functions of (labels, outputs) that give a value per label, by name.
        callbacks: Keras callbacks. One that has `get_state()` and `set_state(state)` keeps its state
            through a resume; one that has `on_resume(step)` is told where the run goes on.
        accumulate: compute each batch in so many parts, one after the other, to save memory.
        adversary: train on each batch a second time, with an embedding moved to where the loss rises.
        attack: train on features that it has changed, instead of those of the batch.
        checkpoints: where to save the state of the run.
        resume: go on from the newest checkpoint, if there is one.

    Returns:
        The figures of each epoch: `loss`, the metrics, and the same with `val_`. Its `graph_traces` says
        how often the step was traced: once for each shape that batches have.

    Raises:
        Diverged: the loss is not a number or has grown away from where it started.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step was finished and a checkpoint written; at all
            workers if one was told.
        UserError: the model is not compiled, or does what this loop cannot do (a `train_step` of its own, a
            loss that is a sum); a callback monitors a figure that there is not; another worker is gone.
    """
    _check_model(model)
    _check_words(epochs, accumulate, metrics, callbacks, resume)
    if isinstance(data, tf.data.Dataset) and checkpoints:
        warnings.warn(
            "A tf.data.Dataset does not say which batch is the n-th: a run that is resumed sees other "
            "batches than one that was not stopped. karpa_tf.data.batches.Batches resumes exactly.",
            stacklevel=2,
        )
    strategy = model.optimizer._distribution_strategy
    chief = is_chief(strategy)
    several = has_other_workers(strategy)
    workers = strategy.num_replicas_in_sync
    parts = accumulate * workers
    data = _as_batches(data, "data", parts)
    if data.batch_size % parts:
        raise UserError(
            f"batch_size must be a multiple of {parts}, the workers times accumulate. "
            f"Received: {data.batch_size}."
        )
    with strategy.scope():
        # A model without an input shape has no variables before it has seen one.
        if not model.built:
            model(next(iter(data.dataset(0, 1)))[0], training=False)
    names = ["loss", *(metrics or {})]
    if adversary and workers > 1:
        raise UserError("Adversarial training moves one copy of the embedding: use it with strategy none.")
    step_function = train_step(
        model, metrics or {}, strategy, accumulate=accumulate, adversary=adversary, attack=attack
    )
    judge: Callable[[], dict[str, float]] | None = None
    if callable(validation):
        judged = validation  # for mypy

        def judge() -> dict[str, float]:
            return from_chief(strategy, judged)

    elif validation is not None:
        judge = _Judge(model, _as_batches(validation, "validation", workers), metrics or {}, strategy)
    with strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    variables = [*model.variables, *model.optimizer.variables]
    history = History()
    totals = np.zeros(len(names) + 1)
    watch = _Watch()
    stateful: list[Any] = [watch, *(c for c in callbacks if hasattr(c, "get_state"))]
    step = 0
    # What a checkpoint must not be continued with otherwise; the layers are compared by their shapes.
    setup = {"steps_per_epoch": data.steps_per_epoch, "optimizer": type(model.optimizer).__name__}
    if checkpoints and chief and not resume and checkpoints.exist():
        raise UserError(
            f"{checkpoints.folder} holds the checkpoints of a training: resume=True goes on with it; for "
            "a new one give another folder."
        )
    if resume:
        if checkpoints and chief and checkpoints.folder.is_dir():
            checkpoints.begin()
        saved = checkpoints.restore(variables) if checkpoints else None
        if saved:
            _check_setup(saved, setup, epochs)
            step, history = saved["step"], History(saved["history"])
            totals = np.array(saved["totals"])
            for part, state in zip(stateful, saved["callbacks"], strict=True):
                part.set_state(state)
        for callback in callbacks:
            if hasattr(callback, "on_resume"):
                callback.on_resume(step if saved else None)
    if sum_over_replicas(strategy, step) != workers * step:
        raise UserError(
            f"The workers do not go on from the same step, this one from {step}: they must all see the "
            "same run folder, and all be started with --resume or all without."
        )
    _spread_seeds(model, strategy)
    # What a function gives is known when it was called.
    figures: Any = judge() if judge and callable(validation) else names
    if not isinstance(figures, (dict, list)):
        raise UserError(f"A validation function returns figures by name. Received: {type(figures).__name__}.")
    _check_monitors(callbacks, [*names, *(f"val_{name}" for name in figures if judge)])

    def save() -> None:
        if checkpoints and chief:
            state = {
                **setup,
                "history": history,
                "totals": totals.tolist(),
                "callbacks": [part.get_state() for part in stateful],
            }
            checkpoints.save(step, variables, state)

    per_epoch = data.steps_per_epoch
    callback_list = keras.callbacks.CallbackList(
        list(callbacks), model=model, epochs=epochs, steps=per_epoch, verbose=0
    )
    model.stop_training = watch.stopped
    callback_list.on_train_begin()
    with ExitStack() as stack:
        pace = _Pace()
        stopping = stack.enter_context(stop_signal(pace.patience if several else None))
        stack.callback(callback_list.on_train_end)  # whatever ends the training, logs are flushed
        stack.enter_context(needing_all_workers(strategy))
        batches = iter(_distribute(data, strategy, step, epochs * per_epoch))
        while step < epochs * per_epoch and not model.stop_training:
            epoch, index = divmod(step, per_epoch)
            if index == 0:
                totals[:] = 0
                callback_list.on_epoch_begin(epoch)
            callback_list.on_train_batch_begin(index)
            with pace.step():
                sums, stops = step_function(next(batches), tf.constant(float(stopping.is_set())))
                sums = sums.numpy()
            totals += sums
            step += 1
            if checkpoints and chief and pace.steps == 1:
                checkpoints.begin()
            logs = _averages(names, sums)
            watch.check(logs["loss"], step)
            callback_list.on_train_batch_end(index, logs)
            if step % per_epoch == 0:
                logs = _averages(names, totals)
                with _averaged_weights(model):
                    if judge:
                        callback_list.on_test_begin()
                        figures = judge()
                        callback_list.on_test_end(figures)
                        logs |= {f"val_{name}": value for name, value in figures.items()}
                    history.append(logs)
                    callback_list.on_epoch_end(epoch, logs)
                model.stop_training = from_chief(strategy, lambda: bool(model.stop_training))
                watch.stopped = model.stop_training
            # Workers stop together: one that is told to ends the step after, and with it all the others.
            if stops.numpy() if workers > 1 else stopping.is_set():
                save()
                raise KeyboardInterrupt
            if checkpoints and checkpoints.due():
                save()
        save()
    history.graph_traces = step_function.experimental_get_tracing_count()
    return history


class History(list[dict[str, float]]):
    """The figures of each epoch."""

    graph_traces = 0


@dataclass(frozen=True)
class Adversary:
    """The fast gradient method (Miyato et al. 2017, https://arxiv.org/abs/1605.07725) on an embedding.

    Attributes:
        embedding: the table (rows, width); a batch's gradient moves the rows that the batch uses.
        epsilon: length of the move.
    """

    embedding: keras.Variable
    epsilon: float


class Outputs:
    """What a model gives for one pass over data, again and again; traced once, whatever widths batches have.

    Args:
        model: the model.
        data: the batches.
    """

    def __init__(self, model: keras.Model, data: Batches) -> None:
        self._dataset = data.dataset()
        self._forward = tf.function(
            lambda features: model(features, training=False),
            input_signature=[self._dataset.element_spec[0]],
            autograph=False,
        )

    def __iter__(self) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Yields (outputs, labels, sample weights) of each batch, as arrays."""
        for features, labels, weights in self._dataset:
            outputs = self._forward(features)
            yield tf.nest.map_structure(np.asarray, outputs), labels.numpy(), weights.numpy()


def evaluate(
    model: keras.Model, data: Batches, metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Returns the loss and the metrics over all of `data`, averaged over the sample weights.

    Args:
        model: compiled with a loss, as for `fit`.
        data: what to judge it by.
        metrics: functions of (labels, outputs) that give a value per label, by name.
    """
    return _Judge(model, data, metrics or {}, model.optimizer._distribution_strategy)()


# --- One step -------------------------------------------------------------------------------------


def _loss_and_sums(
    model: keras.Model, metrics: Mapping[str, Metric], batch: Any, training: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss summed over the weights, and `[loss, *metrics, 1]` summed over the weights."""
    features, labels, *given = batch
    outputs = model(features, training=training)
    if any(getattr(output, "_keras_mask", None) is not None for output in tf.nest.flatten(outputs)):
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


def _check_model(model: keras.Model) -> None:
    """Raises a UserError for a model that this loop would not train as it says."""
    if getattr(model, "optimizer", None) is None:
        raise UserError("The model is not compiled: call model.compile(optimizer, loss) before fit.")
    for name in ("train_step", "test_step", "compute_metrics"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise UserError(
                f"{type(model).__name__} has a {name} of its own, which fit does not call: use model.fit, or "
                "put what it does into the layers, the loss or compute_loss."
            )
    if model._compile_metrics is not None:
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


def _check_words(
    epochs: Any, accumulate: Any, metrics: Any, callbacks: Sequence[keras.callbacks.Callback], resume: bool
) -> None:
    """Raises a UserError for what `fit` was told that makes no sense."""
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1. Received: {value!r}.")
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
    if resume:
        for callback in callbacks:
            kinds = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
            if isinstance(callback, kinds) and not hasattr(callback, "get_state"):
                warnings.warn(
                    f"{type(callback).__name__} begins anew in a resumed run: Keras keeps no state of it; "
                    "karpa_tf.training.callbacks.BestWeights(patience=...) stops early and resumes.",
                    stacklevel=3,
                )


def _check_setup(saved: Mapping[str, Any], setup: Mapping[str, Any], epochs: int) -> None:
    """Raises a UserError if a checkpoint belongs to a training of another shape."""
    for name, value in setup.items():
        if saved.get(name, value) != value:
            raise UserError(
                f"The checkpoint belongs to a training with {name} {saved[name]}: go on with the same, or "
                f"begin a new one in another folder. Received: {value}."
            )
    if len(saved["history"]) > epochs:
        raise UserError(f"epochs may only grow: {len(saved['history'])} are made. Received: {epochs}.")


def _as_batches(data: Any, what: str, parts: int) -> Batches:
    if isinstance(data, Batches):
        return data
    if isinstance(data, tf.data.Dataset):
        if parts > 1:
            raise UserError(
                f"{what} is a tf.data.Dataset, which is read on one worker and in whole batches: make "
                f"Batches for several workers or accumulate. Received: {parts} parts."
            )
        return from_dataset(data)
    raise UserError(f"{what} must be Batches or a tf.data.Dataset. Received: {type(data).__name__}.")


def _check_monitors(callbacks: Sequence[keras.callbacks.Callback], known: Sequence[str]) -> None:
    """Raises a UserError if a callback wants a figure that no epoch will have."""
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if getattr(callback, "monitors_if_there", False) and monitor == "val_loss":
            continue  # without validation it keeps the last weights
        if isinstance(monitor, str) and monitor not in known:
            raise UserError(
                f'{type(callback).__name__} monitors "{monitor}"{did_you_mean(monitor, known)} '
                f"There is: {', '.join(known)}."
            )


def train_step(
    model: keras.Model,
    metrics: Mapping[str, Metric],
    strategy: tf.distribute.Strategy,
    *,
    accumulate: int = 1,
    adversary: Adversary | None = None,
    attack: Attack | None = None,
) -> Any:
    """Returns one update of a compiled model, its optimizer built, as a function of (batch, stop).

    It returns `[loss, *metrics, 1]` summed over the sample weights, and how many workers are to stop.
    """
    variables = model.trainable_variables
    statistics = _statistics(model) if strategy.num_replicas_in_sync > 1 else []
    lazy = getattr(model.optimizer, "lazy", False)
    whole = accumulate == 1 and strategy.num_replicas_in_sync == 1
    sparse: set[int] = set()
    # The gradients are summed below, before they are clipped; Keras would add up the sums once more.
    model.optimizer._all_reduce_sum_gradients = lambda grads_and_variables: grads_and_variables

    def gradients(batch: Any, weight: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        if adversary is None:
            return plain_gradients(batch, weight)
        table = adversary.embedding.value
        (*grads, slope), sums = plain_gradients(batch, weight, [table])
        slope = tf.convert_to_tensor(slope)
        before = tf.identity(table)
        with tf.control_dependencies([before]):
            table.assign_add(adversary.epsilon * slope / tf.maximum(tf.norm(slope), 1e-12))
        more, _ = plain_gradients(batch, weight)
        with tf.control_dependencies([_values(g) for g in more]):
            table.assign(before)
        return [_add(a, b) for a, b in zip(grads, more, strict=True)], sums

    def plain_gradients(
        batch: Any, weight: tf.Tensor, others: Sequence[tf.Variable] = ()
    ) -> tuple[list[Any], tf.Tensor]:
        if attack:
            features, labels, *weights = batch
            batch = (tf.stop_gradient(attack(features, labels)), labels, *weights)
        with tf.GradientTape() as tape:
            tape.watch(others)  # a frozen one too
            loss, sums = _loss_and_sums(model, metrics, batch, training=True)
            loss /= weight
        grads = tape.gradient(loss, [*(v.value for v in variables), *others], unconnected_gradients="zero")
        if lazy:
            sparse.update(i for i, g in enumerate(grads) if isinstance(g, tf.IndexedSlices))
        if not (lazy and whole):
            # Dense: repeated rows of an embedding must be summed before anything squares them.
            grads = [tf.convert_to_tensor(g) for g in grads]
        return grads, sums

    def accumulated(batch: Any, weight: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        parts = tf.nest.map_structure(lambda x: tf.reshape(x, [accumulate, -1, *x.shape[1:]]), batch)

        def add(i: tf.Tensor, grads: list[tf.Tensor], sums: tf.Tensor) -> Any:
            more, partial = gradients(tf.nest.map_structure(lambda x: x[i], parts), weight)
            return i + 1, [a + b for a, b in zip(grads, more, strict=True)], sums + partial

        start = (0, [tf.zeros_like(v) for v in variables], tf.zeros([len(metrics) + 2]))
        _, grads, sums = tf.while_loop(lambda i, *_: i < accumulate, add, start)
        return grads, sums

    def replica(batch: Any, stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The weight of the whole global batch, known beforehand, spares a pass over all gradients.
        weight = _all_reduce(strategy, tf.reduce_sum(_weights(batch)))
        weight = tf.maximum(weight, 1e-9)
        grads, sums = (accumulated if accumulate > 1 else gradients)(batch, weight)
        # An argument has no device, and what is reduced must have one: tf.identity.
        *grads, sums, stops = _all_reduce(strategy, [*grads, sums, tf.identity(stop)])
        if statistics:
            sums_of = _all_reduce(strategy, [tf.identity(v.value) for v in statistics])
            for variable, total in zip(statistics, sums_of, strict=True):
                variable.value.assign(total / strategy.num_replicas_in_sync)
        if not whole:
            grads = [rows_with_gradient(g) if i in sparse else g for i, g in enumerate(grads)]
        # Every replica makes the same update of its own copy of the weights.
        model.optimizer.apply(grads, variables)
        return tf.cast(sums, tf.float64), stops

    @tf.function(autograph=False)
    def step(batch: Any, stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _any_replica(strategy, strategy.run(replica, args=(batch, stop)))

    return step if strategy.num_replicas_in_sync > 1 else _Traced(step)


class _Traced:
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


def _values(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        values, indices = tf.concat([a.values, b.values], 0), tf.concat([a.indices, b.indices], 0)
        return tf.IndexedSlices(values, indices, a.dense_shape)
    return a + b


def _all_reduce(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Sums tensors over the replicas; to be called in one."""
    if strategy.num_replicas_in_sync == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _any_replica(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Returns what one replica of this process holds, where all hold the same."""
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], values)


def _spread_seeds(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Gives each replica random numbers of its own; else all would drop the same activations.

    The first one keeps those that it has, and with them what a checkpoint holds.
    """
    seeds = [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]

    def replica() -> None:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        for seed in seeds:
            seed.value.assign(seed.value + tf.cast(tf.stack([number, 0]), seed.dtype))

    if strategy.num_replicas_in_sync > 1 and seeds:
        tf.function(lambda: strategy.run(replica), autograph=False)()


def _statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns what layers count as they go, e.g. batch normalization's moving averages."""
    return [
        variable
        for layer in model._flatten_layers()
        for variable in layer._non_trainable_variables
        if "float" in variable.dtype
    ]


class _Judge:
    """Evaluates a model over the same batches again and again."""

    def __init__(
        self,
        model: keras.Model,
        data: Batches,
        metrics: Mapping[str, Metric],
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.names = ["loss", *metrics]
        self._batches = _distribute(data, strategy, 0, data.steps_per_epoch)
        self._steps = data.steps_per_epoch

        def replica(batch: Any) -> tf.Tensor:
            _, sums = _loss_and_sums(model, metrics, batch, training=False)
            return tf.cast(_all_reduce(strategy, sums), tf.float64)

        @tf.function(autograph=False)
        def step(batch: Any) -> tf.Tensor:
            return _any_replica(strategy, strategy.run(replica, args=(batch,)))

        self._step = step

    def __call__(self) -> dict[str, float]:
        totals = np.zeros(len(self.names) + 1)
        for batch in islice(self._batches, self._steps):
            totals += self._step(batch).numpy()
        return _averages(self.names, totals)


def _averages(names: Sequence[str], sums: np.ndarray) -> dict[str, float]:
    *values, weight = sums.tolist()
    return {name: value / max(weight, 1e-9) for name, value in zip(names, values, strict=True)}


def _distribute(data: Batches, strategy: tf.distribute.Strategy, start: int, stop: int) -> Any:
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


@contextmanager
def _averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts the running average of the weights in their place, if the optimizer keeps one."""
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


# --- Watching -------------------------------------------------------------------------------------


class _Watch:
    """Stops a run whose loss is not a number or has grown away."""

    def __init__(self) -> None:
        self.start = float("inf")
        self.seen = 0
        self.high = 0
        self.stopped = False

    def check(self, loss: float, step: int) -> None:
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
        return dict(vars(self))

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class _Pace:
    """How long steps take, and so how long one that hangs may be waited for."""

    def __init__(self) -> None:
        self.steps = 0
        self._longest = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.steps += 1
        self._longest = max(self._longest, time.monotonic() - start)

    def patience(self) -> float:
        """Seconds after which a step is taken to wait for another worker that will not come."""
        return max(_PATIENCE, 2 * self._longest if self.steps > 1 else 0.0)


@contextmanager
def stop_signal(patience: Callable[[], float] | None = None) -> Iterator[threading.Event]:
    """Sets an event at the first Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once.

    Args:
        patience: how many seconds later the process ends whatever it does. A step that waits for another
            worker cannot be interrupted; without other workers it ends by itself.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step (Ctrl-C again: at once).", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    left = threading.Event()
    with ExitStack() as stack:
        if patience:
            stack.enter_context(_end_if_stuck(patience, left))
        try:
            yield event
        finally:
            left.set()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _end_if_stuck(patience: Callable[[], float], left: threading.Event) -> Iterator[None]:
    """Ends the process that many seconds after a signal, unless `left` is set by then.

    Python's own handlers wait for the main thread to come back from TensorFlow; the bytes that the
    interpreter writes to a socket for each signal do not.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        if ours.recv(1) and not left.wait(patience()):
            print(
                "Stopped while waiting for another worker; the last checkpoint is what there is.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(130)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        theirs.close()
        thread.join()
        ours.close()
