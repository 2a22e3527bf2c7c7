"""KerasTuner's Hyperband on the network and the digits of `mnist-mlp`, for benchmarks/search.py.

    python keras_tuner_hyperband.py FOLDER EPOCHS

Trains with Keras' own `fit`. A second call goes on in the same folder. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import keras
import keras_tuner
import numpy as np

from karpa_tf.data.images import open_images
from karpa_tf.models import build_image_mlp


def main() -> None:
    folder, epochs = sys.argv[1], int(sys.argv[2])
    keras.utils.set_random_seed(0)
    data = open_images("embedded", size=28, channels=1, validation_share=0.2, test_share=0.05)
    names = data.labels
    parts = {
        split: (images.pixels.astype(np.float32), np.array([names.index(label) for label in images.labels]))
        for split, images in data.splits.items()
    }
    seen = {"trials": 0, "epochs": 0}
    pixels = parts["train"][0]
    mean, deviation = [float(pixels.mean())], [float(pixels.std())]

    def build(hp: Any) -> keras.Model:
        units = [hp.Choice("units", [64, 128, 256])]
        model = build_image_mlp(
            (28, 28, 1),
            10,
            units=units,
            dropout=hp.Float("dropout", 0.0, 0.5),
            batch_normalization=True,
            mean=mean,
            deviation=deviation,
        )
        rate = hp.Float("learning_rate", 1e-4, 1e-1, sampling="log")
        model.compile(
            keras.optimizers.AdamW(rate, weight_decay=0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return model

    class Trials(keras_tuner.Hyperband):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["batch_size"] = trial.hyperparameters.Choice("batch_size", [32, 64, 128])
            found = super().run_trial(trial, *args, **kwargs)
            values = trial.hyperparameters.values
            seen["trials"] += 1
            seen["epochs"] += values["tuner/epochs"] - values["tuner/initial_epoch"]
            print(f"trial {seen['trials']}", file=sys.stderr, flush=True)
            return found

    tuner = Trials(
        build,
        objective="val_accuracy",
        max_epochs=epochs,
        factor=3,
        seed=0,
        directory=folder,
        project_name="digits",
        overwrite=False,
    )
    tuner.search(*parts["train"], validation_data=parts["validation"], verbose=0)
    best = tuner.oracle.get_best_trials(1)[0].score
    print(json.dumps({"best": best, **seen}))


if __name__ == "__main__":
    main()
