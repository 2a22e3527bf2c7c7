"""`search`: what halving saves, and KerasTuner's Hyperband on the same space with the same budget.

All try settings of `mnist-mlp`'s network on the embedded digits, 9 epochs at most, without changes of the
images; a fifth of them is held out for validation, and nothing else decides. Each is a process of its own,
one after the other.

* halving: 30 trials, compared after 1, 3 and 9 epochs.
* full: the same 30 trials, each for 9 epochs. `cheaper` is the processor time of the command over that of
  halving, the winner's two fresh seeds included in both; `cheaper_epochs` its epochs over halving's;
  `best_points` is what halving's best has more, in points.
* hyperband: KerasTuner with the same network, ranges and epochs, trained by Keras' `fit`. `hyperband_points`
  is what our best has more than its best.
* killed: the same searches, killed with SIGKILL after half of their trials, and gone on with. `kill_seconds`
  is how much longer that took than in one piece, `hyperband_kill_seconds` the same of KerasTuner.

    python benchmarks/search.py [--trials 30] [--epochs 9]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TUNER = ROOT / ".venv-keras-tuner"
SPACE = "learning_rate=log:1e-4:1e-1 units=64,128,256 dropout=0:0.5 batch_size=32,64,128"
PLAIN = ["--shift", "0", "--rotate", "0", "--scale", "0", "--shear", "0", "--validation_share", "0.2"]


def timed(command: list[str], *, kill_after: int = 0, marker: str = "") -> dict[str, Any]:
    """Runs a command; returns what it printed, its seconds and its processor time.

    With `kill_after` it is killed when so many lines of standard error begin with `marker`.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TUNER)]),
    }
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    )
    assert process.stderr and process.stdout
    seen = 0
    for line in process.stderr:
        seen += line.startswith(marker) if marker else 0
        print(line, end="", flush=True)
        if kill_after and seen >= kill_after:
            os.killpg(process.pid, signal.SIGKILL)
            break
    printed = process.stdout.read()
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command} failed")
    return {"seconds": time.perf_counter() - begin, "cpu": cpu, "printed": printed}


def ours(logs: Path, options: argparse.Namespace, *more: str, **kill: Any) -> dict[str, Any]:
    """Runs a search, and the winner's two fresh seeds."""
    words = ["--trials", str(options.trials), "--epochs", str(options.epochs), "--space", SPACE, *PLAIN]
    words += ["--winner_seeds", "2", "--logs", str(logs), "--json", *more]
    return timed([sys.executable, "-m", "karpa_tf", "search", "mnist-mlp", *words], **kill)


def resumed(logs: Path) -> dict[str, Any]:
    """Goes on with a search that was killed."""
    folder = logs / "searches" / "mnist-mlp-1"
    words = ["search", "mnist-mlp", "--resume", str(folder), "--logs", str(logs), "--json"]
    return timed([sys.executable, "-m", "karpa_tf", *words])


def result(done: dict[str, Any]) -> dict[str, Any]:
    """Returns what a search printed last."""
    return json.loads(done["printed"].strip().splitlines()[-1])


def hyperband(folder: Path, options: argparse.Namespace, **kill: Any) -> dict[str, Any]:
    """Runs KerasTuner."""
    script = str(ROOT / "benchmarks" / "peers" / "keras_tuner_hyperband.py")
    return timed([sys.executable, script, str(folder), str(options.epochs)], **kill)


def main() -> None:
    """Measures all of it, and prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="Tiny, without KerasTuner: whether it runs.")
    options = parser.parse_args()
    if options.smoke:
        options.trials, options.epochs = 3, 3
    elif not TUNER.exists():
        requirements = str(ROOT / "benchmarks" / "requirements-search.txt")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(TUNER)]
        subprocess.run([*pip, "-r", requirements], check=True)
    with tempfile.TemporaryDirectory() as temporary:
        aside = Path(temporary)
        halving = ours(aside / "halving", options)
        full = ours(aside / "full", options, "--rungs", "1")
        found, whole = result(halving), result(full)
        ratios = {
            "cheaper": full["cpu"] / halving["cpu"],
            "cheaper_epochs": whole["trained"] / found["trained"],
        }
        best = found["winner"]["search"]
        values: dict[str, Any] = {
            "trials": options.trials,
            "halving_seconds": halving["seconds"],
            "halving_cpu": halving["cpu"],
            "halving_epochs": found["trained"],
            "halving_best": best,
            "halving_fresh_seeds": found["winner"]["fresh_mean"],
            "halving_test": found["winner"]["metrics"]["accuracy"],
            "full_seconds": full["seconds"],
            "full_cpu": full["cpu"],
            "full_epochs": whole["trained"],
            "full_best": whole["winner"]["search"],
            "full_fresh_seeds": whole["winner"]["fresh_mean"],
            "best_points": 100 * (best - whole["winner"]["search"]),
        }
        if not options.smoke:
            peer = hyperband(aside / "hyperband", options)
            reached = json.loads(peer["printed"].strip().splitlines()[-1])
            values |= {
                "hyperband_seconds": peer["seconds"],
                "hyperband_epochs": reached["epochs"],
                "hyperband_best": reached["best"],
                "hyperband_points": 100 * (best - reached["best"]),
            }
            half = (len(found["trials"]) + 1) // 2
            first = ours(aside / "killed", options, kill_after=half, marker="trial ")
            second = resumed(aside / "killed")
            same = result(second)["winner"]["search"] == best
            values["same_winner_after_kill"] = same
            values["kill_seconds"] = first["seconds"] + second["seconds"] - halving["seconds"]
            stopped = hyperband(
                aside / "stopped", options, kill_after=reached["trials"] // 2, marker="trial "
            )
            again = hyperband(aside / "stopped", options)
            values["hyperband_kill_seconds"] = stopped["seconds"] + again["seconds"] - peer["seconds"]
            values["hyperband_best_after_kill"] = json.loads(again["printed"].strip().splitlines()[-1])[
                "best"
            ]
    print(json.dumps({"benchmark": "search", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
