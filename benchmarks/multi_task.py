"""One encoder for several tasks against a run of `bert-classifier` or `bert-tagger` for each of them.

All runs have the same settings and data. Every training is a process of its own, and what it takes does not
count imports; the figures are those of `evaluate --beside`, on the same held-out rows. Then the exported
models answer the same texts: the joint one all tasks in one pass, the others one after the other, the two
sides in turn; of each the best of the rounds. CPU seconds stand beside the seconds, for cores that others
use as well.

* figures: points (hundredths) by which each task's figure is above its own run's; a value, no ratio.
* training: time of all single-task runs over that of the joint run; `training_cpu`: CPU time.
* serving, serving_1: texts a second, 64 in a call and one, over those of the single-task models.

The last line of the output is one JSON object; a ratio above 1 means that the joint run is better.

    python benchmarks/multi_task.py [--seed 0] [--data "a=train.csv b=train.conll"] [--preset FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlm_throughput import run_process

# Figures of each kind of task that are compared.
FIGURES = ("accuracy", "f1_strict")
SMOKE = ["--layers", "1", "--heads", "2", "--width", "32", "--vocabulary_size", "400", "--epochs", "1"]


def call(words: list[str]) -> dict[str, Any]:
    """Runs a command in this process and returns its JSON object."""
    from karpa_tf.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([*words, "--json"])
    if status:
        raise SystemExit(status)
    return json.loads(out.getvalue())


def run_training(recipe: str, words: list[str]) -> dict[str, Any]:
    """Trains a run in this process; returns it, and the seconds that it took, on the clock and of the CPU."""
    from karpa_tf.recipe import find_recipe

    find_recipe(recipe).load()
    begin, cpu = time.perf_counter(), time.process_time()
    report = call(["train", recipe, *words])
    return {
        "run": report["run"],
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }


def run_serving(paths: list[list[str]], texts: list[str], rounds: int) -> dict[str, float]:
    """Returns texts a second of several lists of models, each called one after the other."""
    import tensorflow_text  # noqa: F401

    from karpa_tf.export.loader import load_signature

    sides = [[load_signature(path) for path in side] for side in paths]
    values: dict[str, float] = {}
    for size, calls in ((64, 8), (1, 64)):
        batches = [
            {"text": [texts[(i * size + j) % len(texts)].encode() for j in range(size)]} for i in range(calls)
        ]
        for number in range(rounds + 1):
            for side, models in zip(("joint", "single"), sides, strict=True):
                begin, cpu = time.perf_counter(), time.process_time()
                for batch in batches:
                    for model in models:
                        model(batch)
                seconds, used = time.perf_counter() - begin, time.process_time() - cpu
                if number:  # the first is a warm-up
                    for name, value in (("per_second", seconds), ("per_cpu_second", used)):
                        key = f"{side}_{size}_{name}"
                        values[key] = max(values.get(key, 0.0), size * calls / value)
    return values


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Trains all runs, compares and exports them, and measures what they serve."""
    from karpa_tf.data.tables import Columns
    from karpa_tf.recipes.multi_task import MultiTaskSettings
    from karpa_tf.recipes.multi_task.data import kind_of

    logs = options.logs or tempfile.mkdtemp()
    words = ["--logs", logs, "--seed", str(options.seed), "--preset", options.preset]
    words += SMOKE if options.smoke else options.more
    runs: dict[str, dict[str, Any]] = {}
    for name, source in MultiTaskSettings(data=options.data).sources().items():
        kind = kind_of(name, source, Columns())
        recipe = "bert-classifier" if kind == "texts" else "bert-tagger"
        runs[name] = run_process([sys.executable, __file__, "--train", recipe, "--data", source, *words])
        print(f"{name}: {runs[name]}", flush=True)
    joint = run_process([sys.executable, __file__, "--train", "multi-task", "--data", options.data, *words])
    print(f"joint: {joint}", flush=True)
    beside = " ".join(f"{name}={run['run']}" for name, run in runs.items())
    found = call(["evaluate", joint["run"], "--beside", beside])
    single = found["baselines"]["single-task runs"]
    values: dict[str, float] = {"joint_seconds": joint["seconds"], "joint_cpu_seconds": joint["cpu_seconds"]}
    for name, run in runs.items():
        values[f"{name}_seconds"], values[f"{name}_cpu_seconds"] = run["seconds"], run["cpu_seconds"]
        for figure in FIGURES:
            if (key := f"{name}_{figure}") in single and (figure != "accuracy" or f"{name}_f1" not in single):
                values |= {f"joint_{key}": found["metrics"][key], f"single_{key}": single[key]}
                values[f"{name}_points"] = 100 * (found["metrics"][key] - single[key])
    for side, figures in (("joint", found["metrics"]), ("single", single)):
        if "exact_rows" in figures:
            values[f"{side}_exact_rows"] = figures["exact_rows"]
    folder = tempfile.mkdtemp()
    exported = [
        call(["export", run["run"], "--to", folder, "--force"])["savedmodel"]
        for run in (joint, *runs.values())
    ]
    texts = [line for line in _texts(Path(joint["run"])) if line.strip()]
    values |= run_serving([exported[:1], exported[1:]], texts, 1 if options.smoke else options.rounds)
    total = {kind: sum(run[kind] for run in runs.values()) for kind in ("seconds", "cpu_seconds")}
    ratios = {
        "training": total["seconds"] / joint["seconds"],
        "training_cpu": total["cpu_seconds"] / joint["cpu_seconds"],
        "serving": values["joint_64_per_second"] / values["single_64_per_second"],
        "serving_1": values["joint_1_per_second"] / values["single_1_per_second"],
    }
    return {"benchmark": "multi_task", "ratios": ratios, "values": values}


def _texts(run: Path) -> list[str]:
    """Returns held-out texts of a run."""
    from karpa_tf.recipe import find_recipe
    from karpa_tf.training.run_folder import open_run

    rows = find_recipe("multi-task").load().served_rows(open_run(run), 512)
    return [text.decode() for text in rows["text"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded", help="As for multi-task.")
    parser.add_argument("--preset", default="scratch", help="Of all runs.")
    parser.add_argument("--seed", type=int, default=0, help="Of all runs.")
    parser.add_argument("--rounds", type=int, default=5, help="Times that each side answers.")
    parser.add_argument("--logs", default="", help="Where the runs are kept; else nowhere.")
    parser.add_argument("--smoke", action="store_true", help="Tiny: whether it runs.")
    parser.add_argument("--train", default="", help=argparse.SUPPRESS)
    options, options.more = parser.parse_known_args()
    if options.train:
        words = sys.argv[sys.argv.index(options.train) + 1 :]
        print(json.dumps(run_training(options.train, words)))
        return
    print(json.dumps(compare(options)))


if __name__ == "__main__":
    main()
