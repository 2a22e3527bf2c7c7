"""The loop: what it computes, how it stops, and that a killed run ends as if it never was."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.batches import Batches, EpochOrder, slice_part
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.loop import Diverged, evaluate, fit
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.tensorboard import TensorBoard

METRICS = {"accuracy": keras.metrics.sparse_categorical_accuracy}


def make_batches(seed: int | None = 0, batch_size: int = 8) -> Batches:
    """Rows of 6 ids; the label of a place is the id before it; random weights of 0 and 1."""
    rng = np.random.default_rng(7)
    rows = rng.integers(0, 10, (45, 6)).astype(np.int32)
    labels = np.roll(rows, 1, axis=1)
    weights = rng.integers(0, 2, rows.shape).astype(np.float32)
    order = EpochOrder(len(rows), batch_size, seed=seed or 0, shuffle=seed is not None)

    def read(step):
        index = order.rows(int(step))
        return rows[index], labels[index], weights[index] * (index >= 0)[:, None].astype(np.float32)

    def load(step, part, parts):
        batch = tf.numpy_function(read, [step], [tf.int32, tf.int32, tf.float32])
        batch = [tf.ensure_shape(x, [batch_size, 6]) for x in batch]
        return tuple(slice_part(x, part, parts) for x in batch)

    return Batches(load, order.steps_per_epoch, batch_size)


def make_model(seed: int = 1, dropout: float = 0.0, learning_rate: float = 0.01, steps: int = 100):
    keras.utils.clear_session()  # the same names of layers each time
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(10, 8)(inputs)
    x = keras.layers.Dropout(dropout)(x)
    x = keras.layers.GRU(8, return_sequences=True)(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(AdamW(WarmupThenDecay(learning_rate, steps), global_clipnorm=1.0), loss)
    return model


def assert_same_weights(one, other, exact: bool = True) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, atol=2e-6)


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


def read_events(folder: Path) -> dict[tuple[str, str, int], list[bytes]]:
    from tensorflow.core.util import event_pb2

    events: dict[tuple[str, str, int], list[bytes]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                if not value.tag.startswith("speed/") and not value.tag.startswith("_hparams_"):
                    key = (path.parent.name, value.tag, event.step)
                    events.setdefault(key, []).append(value.tensor.SerializeToString())
    return events


def run(
    folder: Path, *, resume: bool = False, kill: int | None = None, patience: int = 0, rate=0.05, accumulate=1
):
    model = make_model(dropout=0.2, learning_rate=rate, steps=48)
    best = BestWeights(folder / "best.weights.h5", patience=patience)
    callbacks = [best, TensorBoard(folder, hparams={"a": 1})]
    if kill:
        callbacks.append(Kill(kill))
    history = fit(
        model,
        make_batches(),
        validation=make_batches(seed=None),
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
    _, history, _ = run(tmp_path / "whole", patience=1, rate=0.8)
    assert len(history) < 8, "the test wants a run that stops early"
    with pytest.raises(_Killed):
        run(tmp_path / "cut", patience=1, rate=0.8, kill=6 * len(history) - 1)
    assert run(tmp_path / "cut", patience=1, rate=0.8, resume=True)[1] == history
    # Resumed once more it is still over.
    assert run(tmp_path / "cut", patience=1, rate=0.8, resume=True)[1] == history


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
        f"step-{step:010d}.npz" for step in (5, 6, 7)
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
