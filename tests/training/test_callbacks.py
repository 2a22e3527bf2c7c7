"""The best weights: which epoch they are of, and what of them is written."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest

from karpa_tf.training.callbacks import BestWeights, load_trained


def make_model() -> keras.Model:
    keras.utils.clear_session()  # the same names of layers each time
    inputs = keras.Input([2])
    hidden = keras.layers.Dense(3, name="frozen", trainable=False)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="trained")(hidden))


def epochs(best: BestWeights, *figures: dict[str, float], first: int = 1) -> keras.Model:
    """Shows a callback so many epochs; after each every weight is its number."""
    model = make_model()
    best.set_model(model)
    model.stop_training = False
    for epoch, logs in enumerate(figures, start=first):
        model.set_weights([np.full(w.shape, epoch) for w in model.weights])
        best.on_epoch_end(epoch - 1, logs)
        if model.stop_training:
            break
    return model


def kept(path) -> float:
    """The epoch whose weights a file holds."""
    model = make_model()
    model.load_weights(path)
    values = {float(x) for w in model.get_weights() for x in w.ravel()}
    assert len(values) == 1
    return values.pop()


def figures(name: str, *values: float) -> list[dict[str, float]]:
    return [{name: value} for value in values]


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 3)])
def test_the_best_epoch_is_kept(mode, epoch, tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode=mode)
    model = epochs(best, *figures("val_f1", 0.5, 0.8, 0.1, 0.7))
    assert not list(tmp_path.iterdir()), "written at the end, or with a checkpoint"
    best.on_train_end()
    assert [p.name for p in tmp_path.iterdir()] == ["best.weights.h5"]
    assert kept(tmp_path / "best.weights.h5") == best.best_epoch == epoch
    assert best.best == {2: 0.8, 3: 0.1}[epoch]
    assert {float(w.min()) for w in model.get_weights()} == {4.0}, "the model goes on from where it was"


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("trained_only", [False, True])
def test_the_best_weights_go_back_into_a_compiled_model(trained_only, tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode="max", trained_only=trained_only)
    model = epochs(best, *figures("val_f1", 0.5, 0.8, 0.1))
    model.compile("adam", "mse")
    best.on_train_end()
    best.load_into(model)
    found = {layer.name: {float(w.max()) for w in layer.get_weights()} for layer in model.layers[1:]}
    assert found == {"frozen": {3.0 if trained_only else 2.0}, "trained": {2.0}}


def test_of_equal_figures_the_smaller_loss_decides(tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_accuracy", mode="max")
    pairs = [(0.7, 0.1), (0.9, 0.5), (0.9, 0.4), (0.9, 0.6), (0.9, 0.4), (0.8, 0.01)]
    epochs(best, *({"val_accuracy": accuracy, "val_loss": loss} for accuracy, loss in pairs))
    assert (best.best_epoch, best.best, best.best_loss, best.wait) == (3, 0.9, 0.4, 3)
    without = BestWeights(tmp_path / "other.weights.h5", "val_accuracy", mode="max")
    epochs(without, *figures("val_accuracy", 0.7, 0.9, 0.9))
    assert without.best_epoch == 2, "of no loss, the first"


def test_patience_counts_epochs_without_a_better_one(tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode="max", patience=2)
    model = epochs(best, *figures("val_f1", 0.1, 0.05, 0.2, 0.2, 0.1, 0.9))
    assert model.stop_training and best.best_epoch == 3 and float(model.get_weights()[0].max()) == 5


def test_the_last_epoch_is_kept_on_demand(tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_accuracy", mode="max", last=True)
    epochs(best, *figures("val_accuracy", 0.5, 0.9, 0.8))
    best.on_train_end()
    assert kept(best.path) == best.best_epoch == 3 and best.best == 0.8


def test_any_figure_is_better_than_none(tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode="max")
    epochs(best, *figures("val_f1", float("nan"), 0.2, float("nan"), 0.1), {"loss": 1.0})
    assert best.best_epoch == 2 and best.best == 0.2


def test_the_state_goes_through_a_resume(tmp_path) -> None:
    path = tmp_path / "best.weights.h5"
    first = BestWeights(path, "val_accuracy", mode="max", patience=3)
    pairs = [(0.9, 0.5), (0.8, 0.1)]
    epochs(first, *({"val_accuracy": accuracy, "val_loss": loss} for accuracy, loss in pairs))
    state = first.get_state()
    assert kept(path) == 1, "the file is of the same moment"
    second = BestWeights(path, "val_accuracy", mode="max", patience=3)
    second.set_state(state)
    second.on_resume(2)
    epochs(second, {"val_accuracy": 0.9, "val_loss": 0.6}, first=3)
    second.on_train_end()
    assert kept(path) == 1 and second.wait == 2
    epochs(second, {"val_accuracy": 0.9, "val_loss": 0.4}, first=4)
    second.on_train_end()
    assert kept(path) == 4
    second.on_resume(None)
    assert not path.exists(), "a run that starts again keeps nothing of the one before"


def test_without_a_judged_epoch_the_last_weights_are_kept(tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode="max")
    epochs(best, {"loss": 1.0}, {"loss": 0.5})
    best.on_train_end()
    assert kept(tmp_path / "best.weights.h5") == 2


def test_only_the_chief_writes(tmp_path) -> None:
    best = BestWeights(tmp_path / "best.weights.h5", "val_f1", mode="max", writes=False)
    epochs(best, *figures("val_f1", 0.1, 0.2))
    best.get_state()
    best.on_train_end()
    assert best.best_epoch == 2 and not list(tmp_path.iterdir())


def test_a_file_of_the_trained_weights_alone(tmp_path) -> None:
    path = tmp_path / "best.weights.h5"
    best = BestWeights(path, "val_f1", mode="max", trained_only=True)
    model = epochs(best, *figures("val_f1", 0.1, 0.6, 0.2))
    best.on_train_end()
    assert {float(w.min()) for w in model.get_weights()} == {3.0}
    again = make_model()
    frozen = again.get_layer("frozen").get_weights()
    load_trained(again, path)
    assert {float(w.max()) for w in again.get_layer("trained").get_weights()} == {2.0}
    for value, expected in zip(again.get_layer("frozen").get_weights(), frozen, strict=True):
        np.testing.assert_array_equal(value, expected)
    with h5py.File(path) as file:
        assert sorted(file) == ["trained"] and sorted(file["trained"]) == ["bias", "kernel"]


def stopped(figures: list[float], epochs: int, patience: int) -> str:
    best = BestWeights("unused.weights.h5", "val_accuracy", mode="max", patience=patience)
    best.best, best.best_epoch = max(figures), figures.index(max(figures)) + 1
    best.wait = len(figures) - best.best_epoch
    return best.early_stop(len(figures), epochs)


def test_a_run_that_stops_early_says_so_and_why() -> None:
    assert stopped([0.5, 0.75, 0.7, 0.6], 12, 2) == (
        "Stopped early, after epoch 4 of 12: for 2 epochs no val_accuracy was better than 0.7500, that of "
        "epoch 2, whose weights are kept (--patience 2)."
    )
    assert "for 1 epoch no" in stopped([0.5, 0.4], 3, 1)
    assert stopped([0.5, 0.75, 0.7], 3, 2) == ""
