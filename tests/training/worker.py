"""One training process of `test_distribute.py`: records every step's loss and the final weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.training import run


class Record(keras.callbacks.Callback):
    """Appends a line a step: the loss, as exactly as Python has it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(dict(logs or {})) + "\n")

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        np.savez(self.path.with_suffix(".npz"), *self.model.get_weights())


def main(out: str, devices: str, *words: str) -> int:
    """Runs `karpa-tf WORDS`; losses go to `out`. `devices` is how many CPUs TensorFlow shall see."""
    from karpa_tf.cli import main as karpa

    if int(devices) > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices)
        )
    train = run.train
    record = Record(Path(out))
    run.train = lambda *args, callbacks, **kwargs: train(*args, callbacks=[*callbacks, record], **kwargs)
    return karpa(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
