"""Training throughput of the essay's masked language model, against its published loop and torch.

The model: an embedding of 30,000 words in 128 numbers, a bidirectional GRU of 512 units a
direction, and an untied softmax over the vocabulary; 32 sequences of 64 tokens, of which 10 each
are predicted (15 %). The sides, each in a process of its own, in turn, best of three:

* float32, mixed_bfloat16: `build_mlm_gru` in the essay's sizes, and the train step of karpa_tf's loop.
* essay: the loop as published: keras.layers.GRU, one-hot targets and a softmax at every position,
  `train_on_batch`.
* torch: the same model and gathered positions in PyTorch, in float32 and under bfloat16 autocast, with
  torch.optim.Adam as it comes and with `fused=True`; our bfloat16 is set against the faster of its two.

The last line of the output is one JSON object; a ratio above 1 means that karpa_tf is faster.
`bfloat16` sides are left out, and named so, where the CPU has no avx512_bf16.

* time to loss: the essay's loop trains for 90 seconds on the embedded text; then what karpa_tf ships by
  default, with 30,000 rows as well, until its validation loss is as low. Median of three.
* pipeline: the batches of the default settings alone, against the training that consumes them.

    python benchmarks/mlm_throughput.py [--rounds 3] [--threads 2] [--only throughput]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers"

SIZES = {
    "batch": 32,
    "length": 64,
    "vocabulary": 30_000,
    "embedding": 128,
    "units": 512,
    "predictions": 10,
    # Each repetition is timed as a whole, and the best counts.
    "warmup": 2,
    "steps": 4,
    "repetitions": 3,
    "learning_rate": 0.003,
    # How long the essay's loop may train before the loss it has reached is taken as the aim.
    "essay_seconds": 90,
}


# The same in seconds: whether everything runs.
SMOKE = {
    "batch": 4,
    "length": 8,
    "vocabulary": 300,
    "embedding": 8,
    "units": 8,
    "predictions": 2,
    "warmup": 1,
    "steps": 1,
    "repetitions": 1,
    "essay_seconds": 0.1,
}


def small_text() -> dict[str, Any]:
    """Settings of an `mlm-gru` that is tiny, and learns from a little of the embedded text."""
    from itertools import islice

    from karpa_tf.data.sources import embedded_documents

    path = Path(tempfile.gettempdir()) / "karpa_tf_smoke.txt"
    path.write_text("\n\n".join(islice(embedded_documents(), 30)), encoding="utf-8")
    return {
        "data": str(path),
        "units": 8,
        "embedding_size": 8,
        "vocabulary_size": 200,
        "sequence_length": 8,
        "batch_size": 4,
    }


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, and oneDNN may."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags and any(name in allowed for name in ("ALL", "DEFAULT", "AVX512", "AVX10"))


def flops_per_step(sizes: dict) -> float:
    """Floating-point operations of one train step's matmuls, backward pass included."""
    tokens = sizes["batch"] * sizes["length"]
    units = sizes["units"]
    gru = 2 * tokens * 2 * (sizes["embedding"] + units) * 3 * units
    head = 2 * sizes["batch"] * sizes["predictions"] * 2 * units * sizes["vocabulary"]
    return 3.0 * (gru + head)


def best_seconds(step: Callable[[], object], sizes: dict) -> float:
    """Seconds of one step, in the best repetition."""
    for _ in range(sizes["warmup"]):
        step()
    best = float("inf")
    for _ in range(sizes["repetitions"]):
        start = time.perf_counter()
        for _ in range(sizes["steps"]):
            step()
        best = min(best, (time.perf_counter() - start) / sizes["steps"])
    return best


def matmul_peak(dtype: str, sizes: dict) -> float:
    """Floating-point operations per second of a large square matmul in TensorFlow."""
    import tensorflow as tf

    size = 2048
    a = tf.cast(tf.random.normal((size, size)), dtype)
    b = tf.cast(tf.random.normal((size, size)), dtype)
    return 2.0 * size**3 / best_seconds(lambda: tf.matmul(a, b)[0, 0].numpy(), sizes)


def random_batch(sizes: dict):
    """Tokens (batch, length) and the predicted positions (batch, predictions), NumPy int32."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(1, sizes["vocabulary"], (sizes["batch"], sizes["length"]))
    positions = np.stack([rng.permutation(sizes["length"])[: sizes["predictions"]] for _ in tokens])
    return tokens.astype("int32"), positions.astype("int32")


def configure(threads: int) -> None:
    """Sets TensorFlow's threads."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def ours(sizes: dict, objective: str, dtype: str, **size):
    """karpa_tf's model, compiled, and the train step of its loop."""
    import keras

    from karpa_tf.models import build_mlm_gru
    from karpa_tf.training.losses import SparseCrossEntropy
    from karpa_tf.training.optimizers import AdamW
    from karpa_tf.training.supervised import SupervisedStep

    keras.utils.set_random_seed(0)
    model = build_mlm_gru(sizes["vocabulary"], objective=objective, dtype=dtype, **size)
    model.compile(AdamW(sizes["learning_rate"], weight_decay=0.0), SparseCrossEntropy())
    step = SupervisedStep(model)
    return model, lambda batch: dict(step(batch))  # waits for the device


def run_ours(sizes: dict, dtype: str) -> dict[str, float]:
    """The essay's architecture as karpa_tf trains it."""
    import numpy as np
    import tensorflow as tf

    _, step = ours(sizes, "masked", dtype, embedding_size=sizes["embedding"], units=sizes["units"])
    tokens, positions = random_batch(sizes)
    features = {
        "token_ids": tokens,
        "padding_mask": np.ones(tokens.shape, bool),
        "masked_positions": positions,
    }
    labels = np.take_along_axis(tokens, positions, axis=1)
    batch = tf.nest.map_structure(tf.constant, (features, labels, np.ones(labels.shape, np.float32)))
    start = time.perf_counter()
    step(batch)
    first = time.perf_counter() - start
    seconds = best_seconds(lambda: step(batch), sizes)
    # The peak right after the step, under the same load of the machine.
    peak = matmul_peak("bfloat16" if "bfloat16" in dtype else "float32", sizes)
    return {
        "tokens_per_second": sizes["batch"] * sizes["length"] / seconds,
        "matmul_peak_gflops": peak / 1e9,
        "share_of_peak": flops_per_step(sizes) / seconds / peak,
        "first_step_seconds": first,
    }


def essay(sizes: dict):
    """The essay's model and loop as published, as a function of (inputs, tokens, positions)."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    vocabulary = sizes["vocabulary"]
    inputs = keras.Input((sizes["length"],), dtype="int32")
    x = keras.layers.Embedding(vocabulary, sizes["embedding"])(inputs)
    x = keras.layers.Bidirectional(keras.layers.GRU(sizes["units"], return_sequences=True))(x)
    model = keras.Model(inputs, keras.layers.Dense(vocabulary, activation="softmax")(x))
    model.compile("adam", "categorical_crossentropy")

    def train(masked, tokens, positions):
        # Only the masked positions count, by their sample weight.
        weights = np.zeros(tokens.shape, "float32")
        np.put_along_axis(weights, positions, 1.0, axis=1)
        targets = keras.utils.to_categorical(tokens, vocabulary)
        model.train_on_batch(masked, targets, sample_weight=weights)

    return model, train


def run_essay(sizes: dict) -> dict[str, float]:
    """The throughput of the essay's loop."""
    _, train = essay(sizes)
    tokens, positions = random_batch(sizes)

    def step():
        train(tokens, tokens, positions)

    seconds = best_seconds(step, {**sizes, "warmup": 1, "steps": 1})
    return {"tokens_per_second": sizes["batch"] * sizes["length"] / seconds}


def peer_python() -> str:
    """The peers' interpreter, in an environment made on the first call, and again for new requirements."""
    python = PEERS / "bin" / "python"
    requirements, installed = ROOT / "benchmarks" / "requirements-peers.txt", PEERS / "requirements.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        print(f"making {PEERS.name} (once) ...", flush=True)
        if not python.exists():
            venv.create(PEERS, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        installed.write_text(requirements.read_text())
    return str(python)


def run_process(command: list[str]) -> dict[str, float]:
    """The JSON object on the last line which the command prints."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_throughput(rounds: int, sizes: dict) -> tuple[dict, dict, list[str]]:
    """Runs all sides in turn; returns the ratios, the values and the names left out."""
    script = [sys.executable, str(Path(__file__).resolve()), "--threads", str(sizes["threads"])]
    torch_command = [
        peer_python(),
        str(ROOT / "benchmarks" / "peers" / "torch_mlm.py"),
        json.dumps(sizes),
    ]
    commands = {
        "float32": [*script, "--side", "float32"],
        "torch": torch_command,
        "mixed_bfloat16": [*script, "--side", "mixed_bfloat16"],
        "essay": [*script, "--side", "essay"],
    }
    if not sizes["bfloat16"]:
        del commands["mixed_bfloat16"]

    best: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        for side, command in commands.items():
            result = run_process(command)
            print(f"round {number + 1}, {side}: {json.dumps(result)}", flush=True)
            for name, value in result.items():
                pick = min if name == "first_step_seconds" else max
                kept = best.setdefault(side, {})
                kept[name] = pick(kept.get(name, value), value)

    ours = best["float32"]["tokens_per_second"]
    by_adam = best["torch"]
    values = {
        **{f"ours_float32_{name}": value for name, value in best["float32"].items()},
        "essay_tokens_per_second": best["essay"]["tokens_per_second"],
        **{f"torch_{name}_tokens_per_second": value for name, value in by_adam.items()},
    }
    # torch.optim.Adam as it comes, and with fused=True, which few scripts ask for.
    plain, fused = by_adam["float32"], by_adam["float32_fused_adam"]
    ratios = {
        "essay_float32": ours / best["essay"]["tokens_per_second"],
        "torch_float32": ours / plain,
        "torch_float32_fused_adam": ours / fused,
    }
    left_out = []
    if sizes["bfloat16"]:
        low = best["mixed_bfloat16"]
        values |= {f"ours_mixed_bfloat16_{name}": value for name, value in low.items()}
        speed = low["tokens_per_second"]
        ratios["torch_bfloat16"] = speed / max(plain, by_adam["bfloat16"])
        ratios["torch_bfloat16_fused_adam"] = speed / max(fused, by_adam["bfloat16_fused_adam"])
    else:
        left_out += ["torch_bfloat16", "torch_bfloat16_fused_adam"]
    return ratios, values, left_out


# --- Time to the same loss ------------------------------------------------------------------------


def text_batches(sizes: dict, objective: str):
    """The embedded text, and the validation batches that both sides are judged by."""
    from karpa_tf.data.text import load_text

    return load_text(
        small_text()["data"] if sizes["smoke"] else "embedded",
        vocabulary_size=sizes["vocabulary"],
        sequence_length=sizes["length"],
        batch_size=sizes["batch"],
        objective=objective,
    )


def run_essay_to_loss(sizes: dict) -> dict[str, float]:
    """Trains the essay's loop for a while; returns the seconds and the validation loss it reached."""
    import numpy as np

    data = text_batches(sizes, "masked")
    model, train = essay(sizes)
    batches = data.train.dataset(0, 10**6).as_numpy_iterator()
    seconds = 0.0
    while seconds < sizes["essay_seconds"]:
        features, labels, _ = next(batches)
        tokens = features["token_ids"].copy()
        positions = features["masked_positions"]
        np.put_along_axis(tokens, positions, labels, axis=1)
        start = time.perf_counter()
        train(features["token_ids"], tokens, positions)
        seconds += time.perf_counter() - start
    total = weight = 0.0
    for features, labels, weights in data.validation.dataset().as_numpy_iterator():
        probabilities = model.predict_on_batch(features["token_ids"])
        at = np.take_along_axis(probabilities, features["masked_positions"][..., None], axis=1)
        p = np.take_along_axis(at, labels[..., None], axis=2)[..., 0]
        total -= float((np.log(np.maximum(p, 1e-12)) * weights).sum())
        weight += float(weights.sum())
    return {"seconds": seconds, "validation_loss": total / weight}


def run_ours_to_loss(sizes: dict, target: float) -> dict[str, float]:
    """Trains what karpa_tf ships by default until the validation loss is as low."""
    from karpa_tf.training.evaluation import evaluate

    data = text_batches(sizes, "every")
    frequencies = data.splits["train"].counts(sizes["vocabulary"])
    dtype = "mixed_bfloat16" if sizes["bfloat16"] else "float32"
    model, step = ours(sizes, "every", dtype, dropout=0.2, frequencies=frequencies)
    batches = iter(data.train.dataset(0, 10**6))
    seconds, steps, loss = 0.0, 0, float("inf")
    while loss > target and seconds < 10 * sizes["essay_seconds"]:
        for _ in range(5):
            batch = next(batches)
            start = time.perf_counter()
            step(batch)
            seconds += time.perf_counter() - start
            steps += 1
        loss = evaluate(model, data.validation)["loss"]
    return {"seconds": seconds, "validation_loss": loss, "steps": steps}


def measure_time_to_loss(rounds: int, sizes: dict) -> tuple[dict, dict, list[str]]:
    """Seconds in training steps, tracing included, until the same validation loss is reached."""
    script = [sys.executable, str(Path(__file__).resolve()), "--threads", str(sizes["threads"])]
    runs = []
    for number in range(rounds):
        theirs = run_process([*script, "--side", "essay_to_loss"])
        mine = run_process([*script, "--side", "ours_to_loss", "--target", str(theirs["validation_loss"])])
        print(f"round {number + 1}, to the same loss: essay {theirs}, ours {mine}", flush=True)
        runs.append((theirs["seconds"] / mine["seconds"], theirs, mine))
    ratio, theirs, mine = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    values = {
        "essay_seconds": theirs["seconds"],
        "ours_seconds_to_the_same_loss": mine["seconds"],
        "loss_of_both": theirs["validation_loss"],
    }
    return {"essay_time_to_loss": ratio}, values, []


# --- The pipeline alone ---------------------------------------------------------------------------


def run_pipeline(sizes: dict) -> dict[str, float]:
    """Tokens per second of the batches alone, and of the default settings' training on them."""

    from karpa_tf.recipes.mlm_gru import MlmGruSettings
    from karpa_tf.recipes.mlm_gru import recipe as mlm_gru
    from karpa_tf.training import runtime
    from karpa_tf.training.supervised import SupervisedStep

    config = MlmGruSettings(**(small_text() if sizes["smoke"] else {}))
    runtime.prepare(config)
    data = mlm_gru.load_data(config)
    tokens = config.batch_size * config.sequence_length
    batches = iter(data.train.dataset(0, 10**6))
    alone = best_seconds(lambda: next(batches), {**sizes, "steps": 200})
    model = mlm_gru.build_model(config, len(data.wordpiece))
    model.compile(mlm_gru.make_optimizer(config, 1000), mlm_gru.SparseCrossEntropy())
    step = SupervisedStep(model, mlm_gru.TRAINING_METRICS)
    training = best_seconds(lambda: dict(step(next(batches))), sizes)  # waits for the device
    return {"pipeline_tokens_per_second": tokens / alone, "default_tokens_per_second": tokens / training}


def measure_pipeline(rounds: int, sizes: dict) -> tuple[dict, dict, list[str]]:
    """How much faster the pipeline is than what it feeds."""
    script = [sys.executable, str(Path(__file__).resolve()), "--threads", str(sizes["threads"])]
    values = max(
        (run_process([*script, "--side", "pipeline"]) for _ in range(rounds)),
        key=lambda run: run["default_tokens_per_second"],
    )
    ratio = values["pipeline_tokens_per_second"] / values["default_tokens_per_second"]
    return {"pipeline": ratio}, values, []


MEASUREMENTS = {
    "throughput": measure_throughput,
    "time_to_loss": measure_time_to_loss,
    "pipeline": measure_pipeline,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=list(MEASUREMENTS), help="Run one measurement.")
    parser.add_argument("--side", help="Run one side and print its figures (used by this script itself).")
    parser.add_argument("--target", type=float, default=0.0, help="Loss to reach, for --side ours_to_loss.")
    parser.add_argument(
        "--smoke", action="store_true", help="Tiny, once, without PyTorch: whether it runs, not how fast."
    )
    arguments = parser.parse_args()
    sizes = {
        **(SMOKE | {"learning_rate": 0.003} if arguments.smoke else SIZES),
        "smoke": arguments.smoke,
        "threads": arguments.threads,
        "bfloat16": has_bfloat16(),
    }
    sides = {
        "float32": lambda: run_ours(sizes, "float32"),
        "mixed_bfloat16": lambda: run_ours(sizes, "mixed_bfloat16"),
        "essay": lambda: run_essay(sizes),
        "essay_to_loss": lambda: run_essay_to_loss(sizes),
        "ours_to_loss": lambda: run_ours_to_loss(sizes, arguments.target),
        "pipeline": lambda: run_pipeline(sizes),
    }
    if arguments.side:
        configure(arguments.threads)
        print(json.dumps(sides[arguments.side]()))
        return
    if arguments.smoke:
        values = {side: run() for side, run in sides.items() if sizes["bfloat16"] or "bfloat16" not in side}
        print(json.dumps({"benchmark": "mlm_throughput", "ratios": {}, "values": values}))
        return

    ratios: dict[str, float] = {}
    values: dict[str, float] = {}
    left_out: list[str] = []
    for name, measurement in MEASUREMENTS.items():
        if arguments.only not in (None, name):
            continue
        more_ratios, more_values, more_left_out = measurement(arguments.rounds, sizes)
        ratios |= more_ratios
        values |= more_values
        left_out += more_left_out

    print(f"\n{'value':<48}{'best':>12}")
    for name, value in values.items():
        print(f"{name:<48}{value:>12,.2f}")
    print(f"\n{'ratio (above 1: karpa_tf is better)':<48}")
    for name, value in ratios.items():
        print(f"{name:<48}{value:>12.2f}")
    for name in left_out:
        print(f"{name:<48}{'left out':>12}  (no avx512_bf16)")
    result = {"benchmark": "mlm_throughput", "ratios": ratios, "values": values}
    if left_out:
        result["left_out"] = left_out
    print(json.dumps(result))


if __name__ == "__main__":
    main()
