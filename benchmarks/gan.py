"""Images per second of a training step of `gan` against the same networks in PyTorch.

A step is one update of generator and discriminator from so many real images and as many generated ones, with
Adam and the running average of the generator's weights; the default settings' networks and batch size. Both
sides have two threads (`--threads 1` where others compute beside them) and get the same batch again and
again: each in a process of its own, in turn; of each the best of the rounds, which are medians. `cpu_ms` in
the values is the mean CPU time of a step.

* torch: PyTorch as its DCGAN example does it, channels last, the faster of float32 and autocast to bfloat16.
  karpa_tf makes both updates from one pass over the discriminator, which is part of what is compared.
* torch_together: PyTorch with both updates from the same weights, too.

The last line of the output is one JSON object; a ratio above 1 means that karpa_tf is faster. Where the CPU
has no avx512_bf16 both sides are in float32.

    python benchmarks/gan.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from mlm_throughput import ROOT, configure, has_bfloat16, peer_python, run_process

SIZES: dict[str, Any] = {"size": 28, "channels": 1, "classes": 10, "latent": 64, "filters": 32, "units": 128}
SHARED = {"batch": 64, "steps": 60, "threads": 2}
SMOKE = {"batch": 4, "steps": 1}


def run_ours(sizes: dict[str, Any]) -> dict[str, float]:
    """Images per second of the median step, and seconds of the first one, which is traced."""
    import numpy as np
    import tensorflow as tf

    from karpa_tf.recipes.gan import GanSettings
    from karpa_tf.recipes.gan.networks import make_step

    configure(sizes["threads"])
    precision = "mixed_bfloat16" if has_bfloat16() else "float32"
    config = GanSettings(precision=precision, latent=sizes["latent"], filters=sizes["filters"])
    step = make_step(config, sizes["classes"], 1_000)
    batch, size, channels = (sizes[name] for name in ("batch", "size", "channels"))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, channels), np.uint8)
    labels = np.arange(batch, dtype=np.int32) % sizes["classes"]
    given = tuple(map(tf.constant, (pixels, labels, np.ones(batch, np.float32))))
    times, cpu = [], 0.0
    for number in range(sizes["steps"] + 5):
        if number == 5:
            cpu = time.process_time()
        begin = time.perf_counter()
        dict(step(given))  # waits for the device
        times.append(time.perf_counter() - begin)
    return {
        "images_per_second": batch / float(np.median(times[5:])),
        "cpu_ms": 1000 * (time.process_time() - cpu) / sizes["steps"],
        "first_seconds": times[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="Times that each side is measured.")
    parser.add_argument("--threads", type=int, default=2, help="Of each side.")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="Tiny, without PyTorch: whether it runs.")
    arguments = parser.parse_args()
    sizes = SIZES | SHARED | {"threads": arguments.threads}
    if arguments.side:
        print(json.dumps(run_ours(sizes)))
        return
    if arguments.smoke:
        print(json.dumps({"benchmark": "gan", "ratios": {}, "values": run_ours(sizes | SMOKE)}))
        return
    commands = {"karpa_tf": [sys.executable, __file__, "--side", "--threads", str(arguments.threads)]}
    for together in (False, True):
        for bf16 in (False, True)[: 1 + has_bfloat16()]:
            given = sizes | {"bf16": bf16, "together": together}
            name = f"torch{'_together' * together}{'_bf16' * bf16}"
            commands[name] = [peer_python(), str(ROOT / "benchmarks/peers/torch_gan.py"), json.dumps(given)]
    values: dict[str, float] = {}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            for key, value in run_process(command).items():
                short, pick = f"{name}_{key}", max if key == "images_per_second" else min
                values[short] = pick(values.get(short, value), value)
            print(
                f"round {number + 1}: {name} {values[f'{name}_images_per_second']:,.0f} images/s", flush=True
            )
    ratios = {}
    for peer in ("torch", "torch_together"):
        best = max(values.get(f"{peer}{kind}_images_per_second", 0.0) for kind in ("", "_bf16"))
        ratios[peer] = values["karpa_tf_images_per_second"] / best
    print(json.dumps({"benchmark": "gan", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
