"""The essay's MNIST network as the essay trains it: Keras' `fit` on float32 arrays, batches of 32.

784-64-10, adam, sparse cross-entropy. Uses nothing of karpa_tf. The last line is one JSON object.

    python essay_mnist.py IMAGES.npz
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    arguments = parser.parse_args()
    with np.load(arguments.images) as file:
        x, y = file["x"].astype("float32") / 255.0, file["y"]
    model = keras.Sequential(
        [
            keras.layers.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:320], y[:320], verbose=0)  # traces
    begin = time.perf_counter()
    model.fit(x, y, epochs=1, verbose=0)
    print(json.dumps({"images_per_second": len(x) / (time.perf_counter() - begin)}))


if __name__ == "__main__":
    main()
