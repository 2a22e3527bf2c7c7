"""Training throughput of the essay's masked language model, against its published loop and torch.

The model: an embedding of 30,000 words in 128 numbers, a bidirectional GRU of 512 units a
direction, and an untied softmax over the vocabulary; 32 sequences of 64 tokens, of which 10 each
are predicted (15 %). The sides, each in a process of its own, in turn, best of three:

* float32, mixed_bfloat16: karpa_tf's layers, gathered positions and its optimizer, in one
  tf.function.
* essay: the loop as published: keras.layers.GRU, one-hot targets and a softmax at every position,
  `train_on_batch`.
* torch: the same model and gathered positions in PyTorch, in float32 and under bfloat16 autocast,
  with the plain and the fused Adam; the faster of the two Adams counts.

The last line of the output is one JSON object; a ratio above 1 means that karpa_tf is faster.
`bfloat16` sides are left out, and named so, where the CPU has no avx512_bf16.

    python benchmarks/mlm_throughput.py [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

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
}


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


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


def run_ours(sizes: dict, policy: str) -> dict[str, float]:
    """The train step made of karpa_tf's parts."""
    import keras
    import tensorflow as tf

    from karpa_tf.models.bidirectional_gru import BidirectionalGRU
    from karpa_tf.training.optimizers import AdamW

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    units = sizes["units"]
    embedding = keras.layers.Embedding(sizes["vocabulary"], sizes["embedding"])
    gru = BidirectionalGRU(units)
    head = keras.layers.Dense(sizes["vocabulary"])
    embedding.build()
    gru.build((None, None, sizes["embedding"]))
    head.build((None, 2 * units))
    variables = [v for layer in (embedding, gru, head) for v in layer.trainable_variables]
    optimizer = AdamW(1e-3, weight_decay=0.0)
    optimizer.build(variables)
    tokens, positions = map(tf.constant, random_batch(sizes))
    labels = tf.gather(tokens, positions, batch_dims=1)

    @tf.function
    def train_step(tokens, positions, labels):
        with tf.GradientTape() as tape:
            hidden = tf.concat(gru(embedding(tokens), training=True), axis=-1)
            hidden = tf.gather(hidden, positions, batch_dims=1)
            logits = head(tf.reshape(hidden, (-1, 2 * units)))
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    tf.reshape(labels, (-1,)), tf.cast(logits, tf.float32)
                )
            )
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    start = time.perf_counter()
    train_step(tokens, positions, labels)
    first = time.perf_counter() - start
    seconds = best_seconds(lambda: train_step(tokens, positions, labels).numpy(), sizes)
    # The peak right after the step, under the same load of the machine.
    peak = matmul_peak("bfloat16" if "bfloat16" in policy else "float32", sizes)
    return {
        "tokens_per_second": sizes["batch"] * sizes["length"] / seconds,
        "matmul_peak_gflops": peak / 1e9,
        "share_of_peak": flops_per_step(sizes) / seconds / peak,
        "first_step_seconds": first,
    }


def run_essay(sizes: dict) -> dict[str, float]:
    """The loop as the essay published it."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    vocabulary = sizes["vocabulary"]
    inputs = keras.Input((sizes["length"],), dtype="int32")
    x = keras.layers.Embedding(vocabulary, sizes["embedding"])(inputs)
    x = keras.layers.Bidirectional(keras.layers.GRU(sizes["units"], return_sequences=True))(x)
    model = keras.Model(inputs, keras.layers.Dense(vocabulary, activation="softmax")(x))
    model.compile("adam", "categorical_crossentropy")
    tokens, positions = random_batch(sizes)
    # Only the masked positions count, by their sample weight.
    weights = np.zeros(tokens.shape, "float32")
    np.put_along_axis(weights, positions, 1.0, axis=1)

    def step():
        targets = keras.utils.to_categorical(tokens, vocabulary)
        model.train_on_batch(tokens, targets, sample_weight=weights)

    seconds = best_seconds(step, {**sizes, "warmup": 1, "steps": 1})
    return {"tokens_per_second": sizes["batch"] * sizes["length"] / seconds}


def peer_python() -> str:
    """The interpreter with torch, in an environment made on the first call."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        print(f"making {PEERS.name} (once) ...", flush=True)
        venv.create(PEERS, with_pip=True)
        requirements = str(ROOT / "benchmarks" / "requirements-peers.txt")
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
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
    torch_best = {
        dtype: max(v for name, v in by_adam.items() if name.startswith(dtype))
        for dtype in ("float32", "bfloat16")
        if dtype in by_adam
    }
    values = {
        **{f"ours_float32_{name}": value for name, value in best["float32"].items()},
        "essay_tokens_per_second": best["essay"]["tokens_per_second"],
        **{f"torch_{name}_tokens_per_second": value for name, value in by_adam.items()},
    }
    ratios = {
        "essay_float32": ours / best["essay"]["tokens_per_second"],
        "torch_float32": ours / torch_best["float32"],
    }
    left_out = []
    if sizes["bfloat16"]:
        low = best["mixed_bfloat16"]
        values |= {f"ours_mixed_bfloat16_{name}": value for name, value in low.items()}
        ratios["torch_bfloat16"] = low["tokens_per_second"] / max(torch_best.values())
    else:
        left_out.append("torch_bfloat16")
    return ratios, values, left_out


# ---- Further measurements: each returns its ratios, its values and the names left out. ----------
# Add `essay_time_to_loss` and `pipeline` here as functions of (rounds, sizes), and list them below.

MEASUREMENTS: list[Callable[[int, dict], tuple[dict, dict, list[str]]]] = [measure_throughput]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=["float32", "mixed_bfloat16", "essay"])
    arguments = parser.parse_args()
    sizes = {**SIZES, "threads": arguments.threads, "bfloat16": has_bfloat16()}

    if arguments.side:
        configure(arguments.threads)
        if arguments.side == "essay":
            result = run_essay(sizes)
        else:
            result = run_ours(sizes, arguments.side)
        print(json.dumps(result))
        return

    ratios: dict[str, float] = {}
    values: dict[str, float] = {}
    left_out: list[str] = []
    for measurement in MEASUREMENTS:
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
