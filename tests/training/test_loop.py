"""The loop: what it computes, how it stops, and that a killed run ends as if it never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.batches import slice_part
from karpa_tf.reports.tensorboard import TensorBoard
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.evaluation import Outputs, evaluate
from karpa_tf.training.fitting import fit
from karpa_tf.training.loop import Diverged, History
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.supervised import Adversary
from tests.training.helpers import (
    USED,
    WORDS,
    assert_same_weights,
    make_batches,
    make_lookahead,
    make_model,
    make_wide_batches,
    make_wide_model,
    read_events,
)

METRICS = {"accuracy": keras.metrics.sparse_categorical_accuracy}


def test_it_trains_as_keras_fit_does() -> None:
    batches = make_batches()
    ours, theirs = make_model(), make_model()
    history = fit(ours, batches, epochs=3, metrics=METRICS)
    theirs.fit(
        batches.dataset(0, 3 * batches.steps_per_epoch),
        epochs=3,
        steps_per_epoch=batches.steps_per_epoch,
        verbose=0,
    )
    assert_same_weights(ours, theirs, exact=False)
    assert history[-1]["loss"] < history[0]["loss"]


def test_figures_are_averages_over_the_true_weights() -> None:
    model, batches = make_model(), make_batches(seed=None)
    figures = evaluate(model, batches, METRICS)
    logits, labels, weights = [], [], []
    for x, y, w in batches.dataset():
        logits.append(model(x).numpy())
        labels.append(y.numpy())
        weights.append(w.numpy())
    logits, labels, weights = (np.concatenate(x) for x in (logits, labels, weights))
    log_p = tf.nn.log_softmax(logits).numpy()
    each = -np.take_along_axis(log_p, labels[..., None], axis=2)[..., 0]
    assert figures["loss"] == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-5)
    hit = (logits.argmax(-1) == labels) * weights
    assert figures["accuracy"] == pytest.approx(hit.sum() / weights.sum(), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_same_update(parts: int) -> None:
    whole, cut = make_model(), make_model()
    fit(whole, make_batches(), epochs=3)
    fit(cut, make_batches(), epochs=3, accumulate=parts)
    assert_same_weights(whole, cut, exact=False)


def test_two_runs_of_one_seed_are_identical_and_of_two_seeds_not() -> None:
    runs = []
    for seed in (1, 1, 2):
        model = make_model(seed, dropout=0.2)
        fit(model, make_batches(seed), epochs=2)
        runs.append(model)
    assert_same_weights(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_same_weights(runs[0], runs[2])


class Kill(keras.callbacks.Callback):
    """Ends the training in the middle, as SIGKILL would: nothing is written any more."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise _Killed


class _Killed(BaseException):
    pass


def run(
    folder: Path,
    *,
    resume: bool = False,
    kill: int | None = None,
    patience: int = 0,
    accumulate=1,
    losses: list[float] | None = None,
):
    """Trains 8 epochs of 6 steps; `losses`: what validation says after so many epochs, whatever is true."""
    model = make_model(dropout=0.2, learning_rate=0.05, steps=48)
    validation: Any = make_batches(seed=None)
    if losses:
        validation = lambda: {"loss": losses[int(model.optimizer.iterations) // 6]}  # noqa: E731
    best = BestWeights(folder / "best.weights.h5", patience=patience)
    callbacks = [best, TensorBoard(folder, hparams={"a": 1})]
    if kill:
        callbacks.append(Kill(kill))
    history = fit(
        model,
        make_batches(),
        validation=validation,
        epochs=8,
        metrics=METRICS,
        callbacks=callbacks,
        accumulate=accumulate,
        checkpoints=Checkpoints(folder / "checkpoints", seconds=0),
        resume=resume,
    )
    best_weights = make_model()
    best_weights.load_weights(folder / "best.weights.h5")
    return model, history, best_weights


def test_a_run_killed_at_any_step_ends_as_if_it_never_was(tmp_path) -> None:
    whole, history, best = run(tmp_path / "whole")
    steps = 8 * 6
    for step in (1, 5, 6, 7, 29, steps):  # in an epoch, at its end, just after, at the very end
        folder = tmp_path / str(step)
        with pytest.raises(_Killed):
            run(folder, kill=step)
        resumed, again, best_again = run(folder, resume=True)
        assert_same_weights(whole, resumed)
        assert_same_weights(best, best_again)
        assert again == history
        assert read_events(folder) == read_events(tmp_path / "whole")


def test_early_stopping_survives_a_kill(tmp_path) -> None:
    stops = {"patience": 2, "losses": [9.0, 1.0, 0.5, 0.7, 0.6, 0.1, 0.1, 0.1, 0.1]}
    _, history, best = run(tmp_path / "whole", **stops)
    assert [logs["val_loss"] for logs in history] == [1.0, 0.5, 0.7, 0.6]
    with pytest.raises(_Killed):
        run(tmp_path / "cut", **stops, kill=6 * len(history) - 1)
    for _ in range(2):  # resumed once more it is still over
        _, again, best_again = run(tmp_path / "cut", **stops, resume=True)
        assert again == history
        assert_same_weights(best, best_again)


def test_accumulation_is_exact_under_resume(tmp_path) -> None:
    whole, history, _ = run(tmp_path / "whole", accumulate=2)
    with pytest.raises(_Killed):
        run(tmp_path / "cut", accumulate=2, kill=9)
    resumed, again, _ = run(tmp_path / "cut", accumulate=2, resume=True)
    assert_same_weights(whole, resumed)
    assert again == history


def test_without_a_checkpoint_a_resumed_run_starts_again(tmp_path) -> None:
    whole, history, _ = run(tmp_path / "whole")
    with pytest.raises(_Killed):
        run(tmp_path / "cut", kill=9)
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        path.unlink()
    resumed, again, _ = run(tmp_path / "cut", resume=True)
    assert_same_weights(whole, resumed)
    assert again == history
    assert read_events(tmp_path / "cut") == read_events(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage) -> None:
    whole, history, _ = run(tmp_path / "whole")
    with pytest.raises(_Killed):
        run(tmp_path / "cut", kill=20)
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
    else:
        data.clear()
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged"):
        resumed, again, _ = run(tmp_path / "cut", resume=True)
    assert_same_weights(whole, resumed)
    assert again == history


def test_a_checkpoint_of_another_model_is_refused(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_model().variables, {})
    other = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    with pytest.raises(Exception, match="belongs to another model"):
        checkpoints.restore(other.variables)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch) -> None:
    with pytest.raises(_Killed):
        run(tmp_path, kill=9)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(Exception, match="No space left on device"):
        run(tmp_path, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def test_only_the_last_checkpoints_stay(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    variables = make_model().variables
    for step in range(1, 8):
        checkpoints.save(step, variables, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        ".lock",
        *(f"step-{step:010d}.npz" for step in (5, 6, 7)),
    ]


def test_a_loss_that_is_not_a_number_stops_in_one_sentence() -> None:
    model = make_model()
    model.layers[-1].kernel.assign(model.layers[-1].kernel * np.nan)
    with pytest.raises(Diverged, match="The loss is nan at step 1"):
        fit(model, make_batches(), epochs=1)


def test_a_loss_that_grows_away_stops() -> None:
    model = make_model(learning_rate=50.0)
    model.optimizer.global_clipnorm = None
    with pytest.raises(Diverged, match="has diverged"):
        fit(model, make_batches(), epochs=50)


def test_ctrl_c_stops_after_the_step_and_saves(tmp_path) -> None:
    class Press(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 4:
                os.kill(os.getpid(), signal.SIGINT)

    model = make_model()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            make_batches(),
            epochs=3,
            callbacks=[BestWeights(tmp_path / "best.weights.h5"), Press()],
            checkpoints=Checkpoints(tmp_path, seconds=1e9),
        )
    assert int(model.optimizer.iterations) == 4
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-0000000004.npz"]
    assert (tmp_path / "best.weights.h5").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(Exception, match="batch_size must be a multiple of 3"):
        fit(make_model(), make_batches(), accumulate=3)


def test_checkpoint_state_is_plain_json(tmp_path) -> None:
    run(tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    with np.load(newest, allow_pickle=False) as file:
        state = json.loads(file["state"].tobytes())
    assert state["step"] == 48 and len(state["history"]) == 8


# --- Batches of several widths, and rows of an embedding that a batch does not use ----------------


@pytest.fixture(scope="module")
def wide() -> tuple[keras.Model, History]:
    """Two epochs of batches of three widths; tests only read the model."""
    model = make_wide_model()
    return model, fit(model, make_wide_batches(), epochs=2)


def test_a_step_is_traced_once_for_each_width(wide) -> None:
    assert wide[1].graph_traces == 3
    assert fit(make_wide_model(), make_wide_batches((6, 6)), epochs=2).graph_traces == 1


def test_outputs_of_several_widths_are_traced_once() -> None:
    model, batches = make_wide_model(), make_wide_batches()
    traces = []

    def traced(features, training):
        traces.append(features)
        return model(features, training=training)

    outputs = Outputs(traced, batches)
    for _ in range(2):
        count = 0
        for (logits, labels, weights), (x, y, w) in zip(outputs, batches.dataset(), strict=True):
            assert isinstance(logits, np.ndarray)
            np.testing.assert_allclose(logits, model(x), atol=1e-6)
            np.testing.assert_array_equal(labels, y)
            np.testing.assert_array_equal(weights, w)
            count += 1
        assert count == 4
    assert len(traces) == 1
    # It is the model as it is now.
    model.get_layer("head").bias.assign_add(tf.ones([WORDS]))
    (first, _, _), *_ = outputs
    np.testing.assert_allclose(first, model(next(iter(batches.dataset()))[0]), atol=1e-6)


def test_validation_may_be_a_function(tmp_path) -> None:
    model = make_wide_model()
    seen = []

    class Listen(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            seen.append(dict(logs))

    def judge() -> dict[str, float]:
        return {"f1": float(model.optimizer.iterations), "loss": 1.0}

    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode="max")
    history = fit(model, make_wide_batches(), validation=judge, epochs=3, callbacks=[Listen(), best])
    assert [(logs["val_f1"], logs["val_loss"]) for logs in history] == [(4, 1), (8, 1), (12, 1)]
    assert seen == [{"f1": 4.0, "loss": 1.0}, {"f1": 8.0, "loss": 1.0}, {"f1": 12.0, "loss": 1.0}]
    assert best.best == 12 and all(logs["loss"] > 0 for logs in history)


def test_a_lazy_optimizer_touches_the_rows_of_each_batch_alone(wide) -> None:
    before = make_wide_model().get_layer("embedding").embeddings.numpy()
    changed = (wide[0].get_layer("embedding").embeddings.numpy() != before).any(axis=1)
    seen = {int(i) for x, _, w in make_wide_batches().dataset() for i in x.numpy()[w.numpy() > 0]}
    assert set(np.flatnonzero(changed)) == seen and len(seen) < USED


def test_a_lazy_optimizer_gives_the_same_in_parts(wide) -> None:
    whole, cut = wide[0], make_wide_model()
    assert fit(cut, make_wide_batches(), epochs=2, accumulate=2).graph_traces == 3
    assert_same_weights(whole, cut, exact=False)
    for one, other in zip(whole.optimizer.variables, cut.optimizer.variables, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_two_replicas_give_the_same_and_have_no_adversary(wide, tmp_path) -> None:
    """In a process of its own, as this one has but one device."""
    script = Path(__file__).with_name("replicas.py")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "weights.npz")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads(result.stdout.splitlines()[-1])
    alone, history = wide
    assert said["replicas"] == 2 and said["graph_traces"] == history.graph_traces == 3
    assert said["loss"] == pytest.approx([logs["loss"] for logs in history], rel=1e-5)
    follower = make_wide_model(make_lookahead())
    fit(follower, make_wide_batches(), epochs=2)
    with np.load(tmp_path / "weights.npz") as file:
        every = [*alone.get_weights(), *follower.get_weights()]
        for name, expected in zip(file.files, every, strict=True):
            np.testing.assert_allclose(file[name], expected, atol=2e-6)
    assert said["refused"].startswith("Adversarial training moves one copy of the embedding")


# --- The fast gradient method ---------------------------------------------------------------------


def adversarial_gradients(model: keras.Model, parts: list, epsilon: float) -> tuple[float, list[np.ndarray]]:
    """A batch's loss, and its gradients where the embedding is and where the loss rises, by the book."""
    table = model.get_layer("embedding").embeddings.value
    weight = sum(float(tf.reduce_sum(weights)) for _, _, weights in parts)
    losses, total = [], [np.zeros(v.shape) for v in model.trainable_variables]

    def gradients(part, sources):
        features, labels, weights = part
        with tf.GradientTape() as tape:
            tape.watch(table)
            loss = model.compute_loss(features, labels, model(features, training=True), weights)
        share = tf.reduce_sum(weights) / weight
        losses.append(float(loss * share))
        return [tf.convert_to_tensor(g) * share for g in tape.gradient(loss, sources)]

    variables = [v.value for v in model.trainable_variables]
    for part in parts:
        before = table.numpy()
        (slope,) = gradients(part, [table])
        first = gradients(part, variables)
        table.assign_add(epsilon * slope / tf.norm(slope))
        second = gradients(part, variables)
        table.assign(before)
        total = [t + a.numpy() + b.numpy() for t, a, b in zip(total, first, second, strict=True)]
    return sum(losses[::3]), total


@pytest.mark.parametrize(
    ("epsilon", "accumulate", "frozen"), [(0.0, 1, False), (2.0, 1, False), (2.0, 2, False), (2.0, 1, True)]
)
def test_a_step_with_an_adversary(epsilon: float, accumulate: int, frozen: bool) -> None:
    model, batches = make_wide_model(keras.optimizers.SGD(1.0)), make_wide_batches((5,))
    embedding = model.get_layer("embedding")
    embedding.trainable = not frozen
    (batch,) = batches.dataset()
    parts = [tuple(slice_part(x, part, accumulate) for x in batch) for part in range(accumulate)]
    loss, expected = adversarial_gradients(model, parts, epsilon)
    doubled = adversarial_gradients(model, [batch], 0.0)[1]
    before = [v.numpy() for v in model.trainable_variables]
    table = embedding.embeddings.numpy()
    adversary = Adversary(embedding.embeddings, epsilon)
    history = fit(model, batches, accumulate=accumulate, adversary=adversary)
    assert len(before) == (2 if frozen else 3)
    for start, variable, gradient, other in zip(
        before, model.trainable_variables, expected, doubled, strict=True
    ):
        np.testing.assert_allclose(start - variable.numpy(), gradient, atol=1e-6)
        assert np.allclose(gradient, other, atol=1e-5) == (epsilon == 0), "the move is seen in every gradient"
    if frozen:
        np.testing.assert_array_equal(embedding.embeddings.numpy(), table)
    assert history[0]["loss"] == pytest.approx(loss, rel=1e-6), "that of the embedding as it is"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_adversary_puts_the_embedding_back_exactly(accumulate: int) -> None:
    model = make_wide_model(keras.optimizers.SGD(0.0))
    before = model.get_weights()
    adversary = Adversary(model.get_layer("embedding").embeddings, 3.3)
    fit(model, make_wide_batches((5, 5)), adversary=adversary, accumulate=accumulate)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_an_adversary_beside_a_lazy_optimizer() -> None:
    # In the first step, and without decay, a row without a gradient stays as it is with any Adam.
    models = [make_wide_model(AdamW(0.05, weight_decay=0, lazy=lazy)) for lazy in (True, False)]
    for model in models:
        fit(model, make_wide_batches((5,)), adversary=Adversary(model.get_layer("embedding").embeddings, 2.0))
    assert_same_weights(*models, exact=False)
