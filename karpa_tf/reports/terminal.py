"""What people read in the terminal as a training goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import keras

from karpa_tf.lines import InALine

# Seconds between two states of the progress bar.
_REFRESH_SECONDS = 0.2


class Progress(InALine, keras.callbacks.Callback):
    """A progress bar on standard error: loss, accuracy, speed and the time that is left.

    Where standard error is a file, a line an epoch.

    Args:
        total: steps of the whole training, or stage; None: those that `fit` makes.
        units_per_step: what a step counts for the speed, e.g. tokens.
        unit: its name.
        shown: figures beside the loss.
        period: the first word of a line; `epoch` counts epochs, another word the steps of the stage.
        every: epochs between two lines.
        begin: steps of the stages before.
    """

    # The steps of the run so far; the loop sets it.
    clock = 0

    def __init__(
        self,
        total: int | None = None,
        *,
        units_per_step: int = 1,
        unit: str = "steps",
        shown: tuple[str, ...] = (),
        period: str = "epoch",
        every: int = 1,
        begin: int = 0,
    ) -> None:
        super().__init__()
        self.total = total or 0
        self.units_per_step = units_per_step
        self.unit = unit
        self.shown = ("loss", *shown)
        self.period = period
        self.every = every
        self.begin = begin
        self._bar: Any = None
        self._line: tuple[int, dict[str, float]] | None = None

    @property
    def _done(self) -> int:
        """Steps of the stage, those before a resume included."""
        return self.clock - self.begin

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        from tqdm import tqdm

        self.total = self.total or self.params["epochs"] * self.params["steps"]
        self._terminal = sys.stderr.isatty()
        self._start, self._time = self._done, time.monotonic()
        self._shown = 0.0
        self._bar = tqdm(
            total=self.total * self.units_per_step,
            initial=self._start * self.units_per_step,
            unit=f" {self.unit}",
            unit_scale=True,
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}, {rate_fmt}]",
            leave=False,
        )

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        # Figures lie on the device, and to read them is to wait for it: no more often than people read.
        if self._terminal and time.monotonic() - self._shown > _REFRESH_SECONDS:
            self._shown = time.monotonic()
            figures = "  ".join(_figure(name, logs[name], 3) for name in self.shown if logs and name in logs)
            self._bar.set_description_str(figures, refresh=False)
            self._bar.update(self._done * self.units_per_step - self._bar.n)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._line = (epoch, dict(logs or {}))
        if (epoch + 1) % self.every == 0 or self._done >= self.total:
            self._write_line()

    def _write_line(self) -> None:
        epoch, logs = self._line or (0, {})
        self._line = None
        seconds = time.monotonic() - self._time
        made = self._done - self._start
        speed = made * self.units_per_step / max(seconds, 1e-9)
        # An environment may overshoot by a few steps.
        left = max(self.total - self._done, 0) * seconds / max(made, 1)
        figures = "  ".join(
            _figure(name, value, 4) for name, value in logs.items() if name.removeprefix("val_") in self.shown
        )
        number = epoch + 1 if self.period == "epoch" else self._done
        self._bar.write(
            f"{self.period} {number}  {figures}  {speed:,.0f} {self.unit}/s  {_clock(left)} left",
            file=sys.stderr,
        )

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._line:  # stopped between two lines
            self._write_line()
        if self._bar is not None:
            self._bar.close()


def _figure(name: str, value: float, digits: int) -> str:
    """Returns `name value`; a whole number, such as a count, without decimals."""
    return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.{digits}f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
