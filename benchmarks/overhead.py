"""What the loop costs beside the step: callbacks, checkpoints and TensorBoard at default settings.

Trains `mlm-gru` at its default settings in one process in blocks of ten steps, in turn: a bare `tf.function`
step over the same batches, and `karpa_tf.training.fit` with everything that a run has. The ends of epochs
(validation, histograms) are part of training and not counted; checkpoints are, at the rate of one every
`checkpoint_seconds`.

    python benchmarks/overhead.py [--rounds 12]

The last line is one JSON object. `overhead` is the bare step's time over the loop's: 0.97 and above means
under 3 %. `deterministic` is the speed with `--deterministic` over that without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlm_throughput import small_text

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 10


def measure(rounds: int, deterministic: bool, smoke: bool) -> dict[str, float]:
    """Seconds of a step, bare and in the loop, the medians of blocks in turn; and of one checkpoint."""
    import dataclasses

    import keras

    from karpa_tf.data.batches import Batches
    from karpa_tf.recipes.mlm_gru import MlmGruSettings
    from karpa_tf.recipes.mlm_gru import recipe as mlm_gru
    from karpa_tf.reports.tensorboard import TensorBoard
    from karpa_tf.reports.terminal import Progress
    from karpa_tf.training import fit, runtime
    from karpa_tf.training.callbacks import BestWeights
    from karpa_tf.training.checkpoint import Checkpoints
    from karpa_tf.training.supervised import SupervisedStep

    config = MlmGruSettings(deterministic=deterministic, **(small_text() if smoke else {}))
    runtime.prepare(config)
    data = mlm_gru.load_data(config)
    # An epoch without an end: what happens there is not the loop's cost.
    endless = dataclasses.replace(data.train, steps_per_epoch=10**9)
    tokens = config.batch_size * config.sequence_length

    def compiled():
        model = mlm_gru.build_model(config, len(data.wordpiece))
        model.compile(mlm_gru.make_optimizer(config, 10_000), mlm_gru.SparseCrossEntropy())
        model.optimizer.build(model.trainable_variables)
        return model

    step = SupervisedStep(compiled(), mlm_gru.TRAINING_METRICS)
    batches = iter(data.train.dataset(0, 10**6))
    dict(step(next(batches)))

    class Clock(keras.callbacks.Callback):
        """The last callback: after each block of the loop's steps it makes as many bare ones."""

        def __init__(self) -> None:
            super().__init__()
            self.loop: list[float] = []
            self.bare: list[float] = []

        def on_train_batch_end(self, batch, logs=None):
            now = time.perf_counter()
            if batch % BLOCK:
                return
            if batch:  # the first step traces
                self.loop.append((now - self.start) / BLOCK)
                now = time.perf_counter()
                for _ in range(BLOCK):
                    dict(step(next(batches)))  # waits for the device
                self.bare.append((time.perf_counter() - now) / BLOCK)
                self.model.stop_training = len(self.loop) == rounds
            self.start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        checkpoints = Checkpoints(Path(folder) / "checkpoints", seconds=10**9)
        model = compiled()
        fit(
            model,
            Batches(endless.load, endless.steps_per_epoch, endless.batch_size),
            metrics=mlm_gru.TRAINING_METRICS,
            callbacks=[
                BestWeights(Path(folder) / "best.weights.h5"),
                TensorBoard(folder, units_per_step=tokens, unit="tokens"),
                Progress(10_000, units_per_step=tokens, unit="tokens", shown=("top1_accuracy",)),
                clock,
            ],
            checkpoints=checkpoints,
        )
        start = time.perf_counter()
        checkpoints.save(1, [*model.variables, *model.optimizer.variables], {})
        checkpoint = time.perf_counter() - start
    bare, with_loop = statistics.median(clock.bare), statistics.median(clock.loop)
    return {
        "bare_step_seconds": bare,
        "loop_step_seconds": with_loop * (1 + checkpoint / config.checkpoint_seconds),
        "checkpoint_write_seconds": checkpoint,
        "tokens_per_second": tokens / min(clock.loop),
    }


def side(rounds: int, deterministic: bool, smoke: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--rounds", str(rounds), "--side"]
    command += ["deterministic" if deterministic else "plain", *(["--smoke"] if smoke else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="Blocks of ten steps of each kind.")
    parser.add_argument("--side", choices=["plain", "deterministic"])
    parser.add_argument("--smoke", action="store_true", help="Tiny and once: whether it runs, not how fast.")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds = 1
    if arguments.side:
        print(json.dumps(measure(arguments.rounds, arguments.side == "deterministic", arguments.smoke)))
        return
    plain = side(arguments.rounds, False, arguments.smoke)
    deterministic = plain if arguments.smoke else side(arguments.rounds, True, False)
    for name, value in plain.items():
        print(f"{name:<24}{value:>12.4f}   deterministic {deterministic[name]:>12.4f}")
    ratios = {
        "overhead": plain["bare_step_seconds"] / plain["loop_step_seconds"],
        "deterministic": deterministic["tokens_per_second"] / plain["tokens_per_second"],
    }
    print(json.dumps({"benchmark": "overhead", "ratios": ratios, "values": plain}))


if __name__ == "__main__":
    main()
