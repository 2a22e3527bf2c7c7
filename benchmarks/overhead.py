"""What the loop costs beside the step: callbacks, checkpoints and TensorBoard at default settings.

Trains `mlm-gru` at its default settings for some steps twice in one process, in turn: a bare `tf.function`
step over the same batches, and `karpa_tf.training.loop.fit` with everything that a run has. The epochs'
ends (validation, histograms) are part of training and not counted; checkpoints are, at the rate of one every
`checkpoint_seconds`.

    python benchmarks/overhead.py [--rounds 3] [--steps 60]

The last line is one JSON object. `overhead` is the bare step's time over the loop's: 0.97 and above means
under 3 %. `deterministic` is the speed with `--deterministic` over that without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def measure(steps: int, rounds: int, deterministic: bool) -> dict[str, float]:
    """Seconds of a step, bare and in the loop, the best of the rounds; and of one checkpoint."""
    import dataclasses

    import tensorflow as tf

    from karpa_tf.configs import MlmGruConfig, find_recipe, read_settings
    from karpa_tf.data.batches import Batches
    from karpa_tf.recipes import mlm_gru
    from karpa_tf.training import loop, runtime
    from karpa_tf.training.callbacks import BestWeights, Progress
    from karpa_tf.training.checkpoint import Checkpoints
    from karpa_tf.training.tensorboard import TensorBoard

    config = MlmGruConfig(**read_settings(find_recipe("mlm-gru"), "default"))
    config.deterministic = deterministic
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

    bare_model = compiled()
    strategy = tf.distribute.get_strategy()
    step = loop._train_step(bare_model, mlm_gru.TRAINING_METRICS, 1, strategy)
    batches = iter(data.train.dataset(0, 10**6))
    going = tf.constant(0.0)
    step(next(batches), going)

    class Clock(BestWeights):
        """Stops the run after so many steps, and keeps the time of those after the first."""

        seconds = 0.0

        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                self.start = time.perf_counter()
            if batch == steps:
                self.seconds = time.perf_counter() - self.start
                self.model.stop_training = True

    best = {"bare": float("inf"), "loop": float("inf"), "checkpoint": float("inf")}
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            step(next(batches), going)[0].numpy()
        best["bare"] = min(best["bare"], (time.perf_counter() - start) / steps)
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock(Path(folder) / "best.weights.h5")
            checkpoints = Checkpoints(Path(folder) / "checkpoints", seconds=10**9)
            model = compiled()
            loop.fit(
                model,
                Batches(endless.load, endless.steps_per_epoch, endless.batch_size),
                metrics=mlm_gru.TRAINING_METRICS,
                callbacks=[
                    clock,
                    TensorBoard(folder, units_per_step=tokens, unit="tokens"),
                    Progress(steps, units_per_step=tokens, unit="tokens", shown=("top1_accuracy",)),
                ],
                checkpoints=checkpoints,
            )
            best["loop"] = min(best["loop"], clock.seconds / steps)
            start = time.perf_counter()
            checkpoints.save(1, [*model.variables, *model.optimizer.variables], {})
            best["checkpoint"] = min(best["checkpoint"], time.perf_counter() - start)
    share = best["checkpoint"] / config.checkpoint_seconds
    return {
        "bare_step_seconds": best["bare"],
        "loop_step_seconds": best["loop"] * (1 + share),
        "checkpoint_seconds": best["checkpoint"],
        "tokens_per_second": tokens / best["loop"],
    }


def side(steps: int, rounds: int, deterministic: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--steps", str(steps), "--rounds", str(rounds), "--side"]
    command.append("deterministic" if deterministic else "plain")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", choices=["plain", "deterministic"])
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.steps, arguments.rounds, arguments.side == "deterministic")))
        return
    plain = side(arguments.steps, arguments.rounds, False)
    deterministic = side(arguments.steps, arguments.rounds, True)
    for name, value in plain.items():
        print(f"{name:<24}{value:>12.4f}   deterministic {deterministic[name]:>12.4f}")
    ratios = {
        "overhead": plain["bare_step_seconds"] / plain["loop_step_seconds"],
        "deterministic": deterministic["tokens_per_second"] / plain["tokens_per_second"],
    }
    print(json.dumps({"benchmark": "overhead", "ratios": ratios, "values": plain}))


if __name__ == "__main__":
    main()
