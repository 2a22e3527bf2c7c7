"""Training on images, against the essays' loops and the same network in PyTorch.

Images per second of training steps, on random images of the right shape (speed does not depend on what they
show), each side in a process of its own, in turn, best of three:

* cifar10_essay: `cifar10-cnn --config essay` against PyTorch's tutorial loop for the same network: batches
  of 4 from two loading workers.
* mnist_essay: `mnist-mlp --config essay` against Keras' `fit` on arrays, batches of 32.
* cifar10_torch: `cifar10-cnn` with its default settings against the same network, batch size and optimizer in
  PyTorch, channels last, the faster of float32 and autocast to bfloat16.
* pipeline: what the default settings' tf.data pipeline gives on its own, against what training takes.

Ours is the whole recipe's step: its pipeline with the changes of the images, the loop, the progress of the
run; tracing, which comes once a run, is left out on our side as the first steps are on PyTorch's.
`share_of_peak` in the values is what the default network's multiplications take of the fastest convolution
measured in the same run; those for places that no pooling reads, which our side leaves out, do not count.

The last line of the output is one JSON object; a ratio above 1 means that karpa_tf is faster. Where the CPU
has no avx512_bf16 both sides are in float32.

    python benchmarks/vision.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mlm_throughput import ROOT, has_bfloat16, peer_python, run_process

PEERS = ROOT / "benchmarks" / "peers"
# Images: as many as give each side some seconds.
COUNTS = {"cifar10_default": 4096, "cifar10_essay": 16_384, "mnist_essay": 60_000}


def train_ours(side: str, count: int) -> dict[str, float]:
    """Images per second of the second epoch of a recipe's own settings, over so many images."""
    import keras

    from karpa_tf.data.augmentation import image_batches
    from karpa_tf.recipe import find_recipe
    from karpa_tf.recipes.families import images as vision
    from karpa_tf.training import SparseCrossEntropy, fit, runtime

    dataset, settings = side.split("_")
    found = find_recipe({"cifar10": "cifar10-cnn", "mnist": "mnist-mlp"}[dataset])
    config: Any = found.about.settings(**found.read_settings(settings))
    recipe: Any = found.load()
    runtime.prepare(config)
    x, y = random_images(count, config.image_size, recipe.channels)
    data = image_batches(
        x,
        y.astype(np.int32),
        batch_size=config.batch_size,
        seed=0,
        augmentation=vision.augmentation(config),
    )
    mean, deviation = vision.measure(x)
    standard = {"mean": mean, "deviation": deviation, "dtype": config.precision}
    model = recipe.build(config, x.shape[1:], 10, **standard)
    epochs = 3
    optimizer = vision.make_optimizer(config, model, epochs * data.steps_per_epoch)
    model.compile(optimizer, SparseCrossEntropy(label_smoothing=config.label_smoothing))

    class Clock(keras.callbacks.Callback):
        seconds: list[float] = []  # noqa: RUF012

        def on_epoch_begin(self, epoch, logs=None):  # type: ignore[no-untyped-def]
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):  # type: ignore[no-untyped-def]
            self.seconds.append(time.perf_counter() - self.start)

    clock = Clock()
    fit(model, data, epochs=epochs, metrics=vision.TRAINING_METRICS, callbacks=[clock])
    result = {"images_per_second": len(x) / min(clock.seconds[1:])}
    if side == "cifar10_default":
        begin, seen = 0.0, 0
        for number, (images, _, _) in enumerate(data.dataset(0, 60 if count > 1000 else 13)):
            if number == 10:
                begin = time.perf_counter()
            seen += images.shape[0] if number > 10 else 0
        result["pipeline"] = seen / (time.perf_counter() - begin)
        peak = peak_convolution(config.precision == "mixed_bfloat16")
        result["peak_gflops"] = peak
        result["gflops"] = result["images_per_second"] * gflop_per_image(model)
    return result


def random_images(count: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return pixels, rng.integers(0, 10, count)


def gflop_per_image(model) -> float:  # type: ignore[no-untyped-def]
    """Multiplications and additions of a training step: forward, and twice as many backward."""
    total = 0.0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            places = np.prod(layer.output.shape[1:-1]) if len(layer.output.shape) == 4 else 1
            times = 1 if layer.name == "whitened_patches" else 3
            total += times * 2 * float(np.prod(layer.kernel.shape)) * float(places)
    return total / 1e9


def peak_convolution(bfloat16: bool) -> float:
    """GFLOP/s of a convolution 3 x 3 of 256 channels over 15 x 15 places."""
    import tensorflow as tf

    kind = tf.bfloat16 if bfloat16 else tf.float32
    x = tf.cast(tf.random.normal([64, 15, 15, 256]), kind)
    kernel = tf.cast(tf.random.normal([3, 3, 256, 256]), kind)
    run = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME")[:, 0, 0, 0]), autograph=False)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        run().numpy()
        times.append(time.perf_counter() - begin)
    return 2 * 64 * 15 * 15 * 9 * 256 * 256 / min(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=3, help="Times that each side is measured; the best counts."
    )
    parser.add_argument("--side", choices=list(COUNTS), help=argparse.SUPPRESS)
    parser.add_argument(
        "--smoke", action="store_true", help="Few images, without PyTorch: whether it runs, not how fast."
    )
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(train_ours(arguments.side, COUNTS[arguments.side])))
        return
    if arguments.smoke:
        values = {side: train_ours(side, 256) for side in COUNTS}
        print(json.dumps({"benchmark": "vision", "ratios": {}, "values": values}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        files = {}
        for name, shape in (("cifar10", (32, 3)), ("mnist", (28, 1))):
            x, y = random_images(50_000 if name == "cifar10" else 60_000, *shape)
            files[name] = str(Path(temporary) / f"{name}.npz")
            np.savez(files[name], x=x if shape[1] == 3 else x[..., 0], y=y)
        values = measure(arguments.rounds, files)
    peers = [v for name, v in values.items() if name.startswith("torch_airbench")]
    ratios = {
        "cifar10_essay": values["cifar10_essay"] / values["essay_cifar"],
        "mnist_essay": values["mnist_essay"] / values["essay_mnist"],
        "cifar10_torch": values["cifar10_default"] / max(peers),
        "pipeline": values["cifar10_default_pipeline"] / values["cifar10_default"],
    }
    values["share_of_peak"] = values["cifar10_default_gflops"] / values["cifar10_default_peak_gflops"]
    print(json.dumps({"benchmark": "vision", "ratios": ratios, "values": values}))


def measure(rounds: int, files: dict[str, str]) -> dict[str, float]:
    """The best figures of each side, in images per second, and what else it says of itself."""
    from karpa_tf.recipe import find_recipe

    settings = find_recipe("cifar10-cnn").read_settings("default")
    peer = [peer_python(), str(PEERS / "torch_airbench.py"), files["cifar10"]]
    for flag in ("batch_size", "widths", "activation"):
        if flag in settings:
            peer += [f"--{flag.replace('_', '-')}", str(settings[flag])]
    commands = {side: [sys.executable, __file__, "--side", side] for side in COUNTS} | {
        "essay_cifar": [peer_python(), str(PEERS / "essay_cifar.py"), files["cifar10"]],
        "essay_mnist": [sys.executable, str(PEERS / "essay_mnist.py"), files["mnist"]],
        "torch_airbench_float32": peer,
    }
    if has_bfloat16():
        commands["torch_airbench_bfloat16"] = [*peer, "--bf16"]
    values: dict[str, float] = {}
    for number in range(rounds):
        for name, command in commands.items():
            for key, value in run_process(command).items():
                short = name if key == "images_per_second" else f"{name}_{key}"
                values[short] = max(values.get(short, 0.0), value)
            print(f"round {number + 1}: {name} {values[name]:,.0f} images/s", flush=True)
    return values


if __name__ == "__main__":
    main()
