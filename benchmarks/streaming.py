"""A text of 1 GB trains within 3 GB of memory.

Writes a text of the asked size (the embedded text, with its words shuffled within each line so that no two
copies are alike), trains a small `mlm-gru` on it for one hundred steps, and reads the process' peak memory.

    python benchmarks/streaming.py [--megabytes 1000]

The last line is one JSON object; `peak_memory` is 3 GB over the peak: above 1 is within the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlm_throughput import small_text

ROOT = Path(__file__).resolve().parent.parent
BOUND = 3 * 10**9


def write_text(path: Path, size: int) -> None:
    from karpa_tf.data.sources import embedded_documents

    rng = random.Random(0)
    lines = [line for text in embedded_documents() for line in text.splitlines()]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for line in lines:
                words = line.split()
                rng.shuffle(words)
                written += file.write(" ".join(words) + "\n")


def train(path: str, smoke: bool) -> None:
    """Trains for a hundred steps and prints the peak memory in bytes."""
    import keras

    from karpa_tf.data.text import load_text
    from karpa_tf.recipes.mlm_gru import MlmGruSettings
    from karpa_tf.recipes.mlm_gru import recipe as mlm_gru
    from karpa_tf.training import runtime
    from karpa_tf.training.fitting import fit

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch >= (1 if smoke else 99)

    config = MlmGruSettings(**(small_text() if smoke else {"data": path}))
    runtime.prepare(config)
    start = time.perf_counter()
    data = load_text(config.data, vocabulary_size=config.vocabulary_size, batch_size=config.batch_size)
    prepared = time.perf_counter() - start
    frequencies = data.splits["train"].counts(len(data.wordpiece))
    model = mlm_gru.build_model(config, len(data.wordpiece), frequencies=frequencies)
    model.compile(mlm_gru.make_optimizer(config, 1000), mlm_gru.SparseCrossEntropy())
    fit(model, data.train, callbacks=[Stop()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pieces = sum(split.size for split in data.splits.values())
    print(json.dumps({"peak_bytes": peak, "prepare_seconds": prepared, "pieces": pieces}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--side", help="Train on this file (used by this script itself).")
    parser.add_argument("--smoke", action="store_true", help="A small text: whether it runs, no more.")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.megabytes = 1
    if arguments.side:
        train(arguments.side, arguments.smoke)
        return
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(path, arguments.megabytes * 10**6)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KARPA_TF_CACHE": str(Path(folder) / "cache"),
        }
        command = [sys.executable, __file__, "--side", str(path), *(["--smoke"] if arguments.smoke else [])]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        values = json.loads(done.stdout.strip().splitlines()[-1])
        values["text_bytes"] = path.stat().st_size
    for name, value in values.items():
        print(f"{name:<20}{value:>18,.0f}")
    ratios = {"peak_memory": BOUND / values["peak_bytes"]}
    print(json.dumps({"benchmark": "streaming", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
