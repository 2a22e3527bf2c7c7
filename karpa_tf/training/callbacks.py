"""The best weights of a training, with early stopping, and files of trained weights alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf.errors import writing
from karpa_tf.lines import InALine


class BestWeights(InALine, keras.callbacks.Callback):
    """Keeps the weights of the best epoch in a file, and stops when no better one comes.

    The file is written when the checkpoint is (`get_state`), so that both are always of the same step,
    and at the end.

    Args:
        path: a `.weights.h5` file; it is there whole or not at all.
        monitor: the figure that decides, e.g. `val_loss`.
        mode: whether it should be small (`min`) or large (`max`).
        patience: epochs without a better one before training stops; 0 never stops.
        last: keep the last epoch's weights instead, whatever their figure.
        after: epochs at the beginning that do not count, whatever their figure.
        trained_only: write the trained weights alone, not the frozen ones; `load_trained` reads them.
        writes: whether this process writes the file: the chief alone.
    """

    # `fit` takes it without validation as well.
    monitors_if_there = True

    def __init__(
        self,
        path: str | Path,
        monitor: str = "val_loss",
        *,
        mode: str = "min",
        patience: int = 0,
        last: bool = False,
        after: int = 0,
        trained_only: bool = False,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.trained_only = trained_only
        self.monitor = monitor
        self.sign = -1.0 if mode == "max" else 1.0
        self.patience = patience
        self.last = last
        self.after = after
        self.writes = writes
        self.best: float | None = None
        self.best_loss = float("inf")
        self.best_epoch = 0
        self.wait = 0
        self._weights: list[np.ndarray] | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        value = (logs or {}).get(self.monitor)
        if value is None or epoch < self.after:
            return
        loss = (logs or {}).get("val_loss", float("inf"))
        # Of equal figures, as accuracies often are, the one of the smaller loss is the better.
        rank = (value * self.sign, loss)
        # Any figure is better than one that is not a number.
        if (
            self.last
            or self.best is None
            or math.isnan(self.best)
            or rank < (self.best * self.sign, self.best_loss)
        ):
            self.best, self.best_loss, self.best_epoch, self.wait = value, loss, epoch + 1, 0
            self._weights = self.model.get_weights()
            return
        self.wait += 1
        if self.patience and self.wait >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._write()

    def early_stop(self, made: int, epochs: int) -> str:
        """Returns a line on why training has stopped after `made` of its epochs; "" where it has not."""
        if made >= epochs or self.best is None:
            return ""
        waited = "1 epoch" if self.wait == 1 else f"{self.wait} epochs"
        return (
            f"Stopped early, after epoch {made} of {epochs}: for {waited} no {self.monitor} was better than "
            f"{self.best:.4f}, that of epoch {self.best_epoch}, whose weights are kept (--patience "
            f"{self.patience})."
        )

    def load_into(self, model: keras.Model) -> None:
        """Puts the weights of the best epoch into a model.

        Args:
            model: the one that was trained, or another one of the same layers.
        """
        if self.trained_only:
            load_trained(model, self.path)
        else:
            _bare(model).load_weights(self.path)

    def get_state(self) -> dict[str, Any]:
        """Writes the file, and returns which epoch was the best, for a checkpoint."""
        self._write()
        return {
            "best": self.best,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "wait": self.wait,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from the `state` of a checkpoint."""
        self.best, self.best_epoch, self.wait = state["best"], state["best_epoch"], state["wait"]
        self.best_loss = state.get("best_loss", float("inf"))

    def on_resume(self, step: int | None) -> None:
        """Removes the file of a run that begins anew: `step` is None where there is no checkpoint."""
        if step is None:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if not self.writes:
            self._weights = None
        if self._weights is None:
            # Stopped before the first epoch was evaluated: what there is, is the best there is.
            if self.best is None and self.writes:
                self._save()
            return
        now = self.model.get_weights()
        self.model.set_weights(self._weights)
        try:
            self._save()
        finally:
            self.model.set_weights(now)
        self._weights = None

    def _save(self) -> None:
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        with writing(self.path):
            try:
                if self.trained_only:
                    save_trained(self.model, temporary)
                else:
                    _bare(self.model).save_weights(temporary)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)


def _bare(model: keras.Model) -> keras.Model:
    """Returns the model without its optimizer, which a compiled one saves and asks for.

    A subclass has no inputs to make another model of, and stays as it is.
    """
    return keras.Model(model.inputs, model.outputs) if getattr(model, "inputs", None) else model


def save_trained(model: keras.Model, path: str | Path) -> None:
    """Writes the trainable variables of a model, by path, to an HDF5 file."""
    import h5py

    with h5py.File(path, "w") as file:
        for variable in model.trainable_variables:
            file[variable.path] = np.asarray(variable)


def load_trained(model: keras.Model, path: str | Path) -> None:
    """Puts what `save_trained` wrote into a model whose trainable variables are the same.

    Raises:
        ValueError: they are not the same.
        OSError: the file cannot be read.
    """
    import h5py

    with h5py.File(path) as file:
        found: dict[str, Any] = {}
        file.visititems(
            lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {})
        )
    variables = {variable.path: variable for variable in model.trainable_variables}
    # Before anything is changed.
    odd = set(found) ^ set(variables)
    odd |= {name for name in set(found) & set(variables) if found[name].shape != variables[name].shape}
    if odd:
        raise ValueError(f"it holds other variables than the model trains, e.g. {min(odd)}")
    for name, variable in variables.items():
        variable.assign(found[name])
