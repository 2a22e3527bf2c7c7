"""`fit`: trains a compiled Keras model, on batches or a `tf.data.Dataset`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from karpa_tf import private
from karpa_tf.data.batches import Batches, from_dataset
from karpa_tf.errors import UserError
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.evaluation import Evaluator, check_metrics
from karpa_tf.training.loop import History, Stage, releasing_checkpoints, train
from karpa_tf.training.supervised import Adversary, Attack, Metric, SupervisedStep, check_model


@releasing_checkpoints
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
    checkpoints: Checkpoints | str | Path | None = None,
    resume: bool = False,
) -> History:
    """Trains a compiled model.

    Losses, metrics and gradients are averages over the sample weights of the whole global batch, for
    any number of workers or parts: twice the workers is the same training. Batch normalization is the
    exception: each replica normalizes by its own part of the batch, and the moving averages are the means
    over the replicas (`keras.layers.BatchNormalization(synchronized=True)` normalizes by all of it).

    Args:
        model: any Keras model that is compiled with an optimizer and a loss, made under the strategy's
            scope if there is one. The metrics of `compile` are not read: see `metrics`.
        data: the training batches. A `tf.data.Dataset` of (features, labels) or (features, labels, sample
            weights) will do on one worker; it does not resume at the same batch.
        validation: batches to evaluate the model on after each epoch, or a function that evaluates it and
            returns figures; they get the prefix `val_`. A function is called once before the first step as
            well, and of several workers by the chief alone. If the optimizer keeps a running average of the
            weights (`use_ema`), that is what is evaluated and what callbacks see at the end of an epoch.
        epochs: passes over `data`, those before a resume included.
        metrics: functions of (labels, outputs) that give a value per label, by name.
        callbacks: Keras callbacks. One that has `get_state()` and `set_state(state)` keeps its state
            through a resume; one that has `on_resume(step)` gets the step where the run goes on.
        accumulate: compute each batch in so many parts, one after the other, to save memory.
        adversary: train on each batch a second time, with an embedding moved to where the loss rises.
        attack: train on features that it has changed, instead of those of the batch.
        checkpoints: where to save the state of the run; of a folder's name, at the default times.
        resume: go on from the newest checkpoint, if there is one.

    Returns:
        The figures of each epoch: `loss`, the metrics, and the same with `val_`.

    Raises:
        Diverged: the loss is not a number or has grown away from where it started.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step was finished and a checkpoint written; at all
            workers if one got it.
        UserError: the model is not compiled, or does what this loop cannot do (a `train_step` of its own, a
            loss that is a sum); a callback monitors a figure that there is not; another worker is gone.
    """
    check_model(model)
    _check_arguments(epochs, accumulate)
    check_metrics(metrics)
    if isinstance(checkpoints, (str, Path)):
        checkpoints = Checkpoints(checkpoints)
    if resume and checkpoints is None:
        raise UserError("resume=True goes with checkpoints=FOLDER, those of the run to go on with.")
    if isinstance(data, tf.data.Dataset) and checkpoints:
        warnings.warn(
            "A tf.data.Dataset does not say which batch is the n-th: a run that is resumed sees other "
            "batches than one that was not stopped. karpa_tf.data.batches.Batches resumes exactly.",
            stacklevel=2,
        )
    strategy = private.strategy_of(model.optimizer)
    data = _as_batches(data, "data", accumulate * strategy.num_replicas_in_sync)
    with strategy.scope():
        # A model without an input shape has no variables before it has seen one.
        if not model.built:
            model(next(iter(data.dataset(0, 1)))[0], training=False)
    step = SupervisedStep(model, metrics, accumulate=accumulate, adversary=adversary, attack=attack)
    evaluation: Any = validation
    if validation is not None and not callable(validation):
        parts = strategy.num_replicas_in_sync
        evaluation = Evaluator(model, _as_batches(validation, "validation", parts), metrics, strategy)
    stage = Stage(step, data, epochs, validation=evaluation)
    return train(stage, callbacks=callbacks, checkpoints=checkpoints, resume=resume)


def _check_arguments(epochs: Any, accumulate: Any) -> None:
    """Raises a UserError for arguments of `fit` that make no sense."""
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1. Received: {value!r}.")


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
