"""Seconds of a meta-iteration of MAML, second order, against the same in PyTorch with torch.func.

An iteration is the inner steps on every task of a meta-batch, the gradient through them, and Adam's update.
Both sides have the same network, the same sizes and two threads, and get the same batch again and again: each
in a process of its own, in turn; of each the best of the rounds, which are medians.

* torch_sinusoid: the network of 40 and 40 units on the default settings' tasks.
* torch_conv: four convolutions of 64 filters on images of 28 x 28, 5 ways and 1 shot, as for Omniglot.

The last line of the output is one JSON object; a ratio above 1 means that karpa_tf is faster.

    python benchmarks/meta.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from mlm_throughput import ROOT, configure, peer_python, run_process

SIZES: dict[str, dict[str, Any]] = {
    "sinusoid": {"tasks": 25, "rows": 10, "queries": 10, "inner_rate": 0.01, "steps": 200},
    "conv": {"tasks": 16, "rows": 5, "queries": 25, "ways": 5, "filters": 64, "inner_rate": 0.4, "steps": 15},
}
SHARED = {"inner_steps": 1, "threads": 2}
SMOKE = {"tasks": 2, "steps": 1}


def run_ours(kind: str, sizes: dict[str, Any]) -> dict[str, float]:
    """Seconds of the median iteration, and of the first one, which is traced."""
    import keras
    import numpy as np
    import tensorflow as tf

    from karpa_tf.meta.maml import MAML
    from karpa_tf.meta.step import MetaStep
    from karpa_tf.meta.tasks import TaskBatch
    from karpa_tf.models import build_few_shot_cnn, build_sinusoid_mlp
    from karpa_tf.training import AdamW

    configure(sizes["threads"])
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    tasks, rows, total = sizes["tasks"], sizes["rows"], sizes["rows"] + sizes["queries"]
    if kind == "conv":
        model = build_few_shot_cnn((28, 28, 1), sizes["ways"], filters=sizes["filters"])
        x = rng.random((tasks, total, 28, 28, 1), np.float32)
        y = np.tile(np.arange(total, dtype=np.int32) % sizes["ways"], (tasks, 1))
    else:
        model = build_sinusoid_mlp()
        x = rng.random((tasks, total, 1), np.float32)
        y = np.sin(x)
    maml = MAML(model, inner_rate=sizes["inner_rate"], inner_steps=sizes["inner_steps"])
    step = MetaStep(maml, AdamW(1e-3, weight_decay=0.0))
    batch = TaskBatch(*map(tf.constant, (x[:, :rows], y[:, :rows], x[:, rows:], y[:, rows:])))
    times = []
    for _ in range(sizes["steps"] + 2):
        begin = time.perf_counter()
        dict(step(batch))  # waits for the device
        times.append(time.perf_counter() - begin)
    return {"seconds": float(np.median(times[2:])), "first_seconds": times[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="Times that each side is measured.")
    parser.add_argument("--side", choices=list(SIZES), help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="Tiny, without PyTorch: whether it runs.")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_ours(arguments.side, SHARED | SIZES[arguments.side])))
        return
    if arguments.smoke:
        values = {kind: run_ours(kind, SHARED | SIZES[kind] | SMOKE)["seconds"] for kind in SIZES}
        print(json.dumps({"benchmark": "meta", "ratios": {}, "values": values}))
        return
    peer = [peer_python(), str(ROOT / "benchmarks" / "peers" / "torch_meta.py")]
    commands = {kind: [sys.executable, __file__, "--side", kind] for kind in SIZES}
    for kind, sizes in SIZES.items():
        commands[f"torch_{kind}"] = [*peer, json.dumps(SHARED | sizes | {"kind": kind})]
    values = {}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            for key, value in run_process(command).items():
                short = f"{name}_{key}"
                values[short] = min(values.get(short, value), value)
            print(f"round {number + 1}: {name} {1000 * values[f'{name}_seconds']:.2f} ms", flush=True)
    ratios = {f"torch_{kind}": values[f"torch_{kind}_seconds"] / values[f"{kind}_seconds"] for kind in SIZES}
    print(json.dumps({"benchmark": "meta", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
