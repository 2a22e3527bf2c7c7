"""The whole loop: serve, collect, ask a person, learn, compare, roll out. docs/loop.md explains it.

`python examples/loop/run.py` prints each command as it runs it, and needs about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import run, say, serving, wait_for

HERE = Path(os.path.relpath(Path(__file__).parent))
MODEL = "bert-classifier"
# A small BERT, from nothing.
SIZES = ["--layers", "2", "--width", "128", "--heads", "2", "--batch_size", "16"]
# It says what it does not know.
UNKNOWN = ["--unknown_rate", "0.05"]
# Requests of the recorded traffic before the canary.
BEFORE = 500
# Version 2 may score this much less on what version 1 knows.
LOSS = 0.02


def metrics(url: str, start: str) -> dict[str, float]:
    """Prints the server's metrics that begin so, and returns them."""
    address = f"{url.partition('/v1/')[0]}/monitoring/prometheus/metrics"
    print(f"$ curl -s {address} | grep ^{start}")
    with urlopen(address) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith(start)]
    print("\n".join(lines), flush=True)
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def accuracy(folder: Path, version: int, data: Path) -> float:
    """Returns a run's accuracy on held-out rows."""
    words = [f"{MODEL}/{version}", "--data", data, "--logs", folder / "logs", "--json"]
    print(f"$ karpa-tf evaluate {shlex.join(map(str, words))}", flush=True)
    command = [sys.executable, "-m", "karpa_tf", "evaluate", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found = float(json.loads(done.stdout)["metrics"]["accuracy"])
    print(f"version {version} on {data.name}: accuracy {found:.4f}", flush=True)
    return found


def loop(folder: Path, epochs: int) -> None:
    """Runs the loop once."""
    models, logs = folder / "savedmodels", ["--logs", folder / "logs"]
    steps, config, log = HERE / "steps.py", models / "models.config", folder / "requests.jsonl"

    say("Version 1 learns eight intents. The traffic has a ninth one.")
    run("python", steps, "prepare", folder)
    run("karpa-tf", "train", MODEL, "--data", folder / "first", *SIZES, *UNKNOWN, "--epochs", epochs, *logs)
    run("karpa-tf", "export", f"{MODEL}/1", "--to", models, *logs)
    run("karpa-tf", "rollout", models / MODEL, "--stable", 1)

    say("It is served, with a log of what it is asked.")
    follow = [
        "--model_config_file_poll_wait_seconds",
        1,
        "--allow_version_labels_for_unavailable_models",
        "true",
    ]
    # The new label is new to version 1: shares of labels move by what it takes.
    quiet = ["--access_log", "", "--canary_tolerance", 0.3]
    with serving("--model_config_file", config, *follow, "--request_log", log, *quiet) as server:
        url = f"{server}/v1/models/{MODEL}"
        run("python", steps, "send", url, folder / "traffic.jsonl", "--last", BEFORE)

        say("A watcher reads the log. Are labels as frequent as they were, and texts of the same kind?")
        windows = ["--baseline", 250, "--window", 100, "--every", 250, "--follow", "false"]
        run("karpa-tf", "watch", models / MODEL / "1", log, *windows)

        say("What it knows least of goes to a person, whom a file of labels stands for.")
        run("python", steps, "texts", log, folder / "texts.csv")
        answers = folder / "predicted.jsonl"
        run("karpa-tf", "predict", models / MODEL / "1", "--input", folder / "texts.csv", "--output", answers)
        run("python", steps, "unsure", answers, folder / "to_label.csv", "--most", 150)
        learned = folder / "labelled.csv"
        run("python", steps, "label", folder / "to_label.csv", folder / "answers.csv", learned)

        say("Version 2 begins with version 1, and learns from the person's rows and half of the old ones.")
        begin = ["--init", f"{MODEL}/1", "--rehearse", 0.5]
        run(
            "karpa-tf",
            "train",
            MODEL,
            "--data",
            learned,
            *begin,
            *SIZES,
            *UNKNOWN,
            "--epochs",
            epochs,
            *logs,
        )

        say("Is it as good on what version 1 knows, and does it know more? Rows that neither has seen.")
        first, second = (accuracy(folder, version, folder / "held_known.csv") for version in (1, 2))
        accuracy(folder, 2, folder / "held_new.csv")
        if second < first - LOSS:
            sys.exit(f"Version 2 is worse by {first - second:.4f}; it is not rolled out.")

        say("It answers a fifth of the clients.")
        run("karpa-tf", "export", f"{MODEL}/2", "--to", models, *logs)
        run("karpa-tf", "rollout", models / MODEL, "--canary", 2, "--share", "20%")
        wait_for(url, 2, "AVAILABLE")
        run("python", steps, "send", url, folder / "traffic.jsonl", "--first", BEFORE)
        metrics(url, "karpa_tf_version_requests_total")
        if any(metrics(url, "karpa_tf_canary_stopped{").values()):
            run("karpa-tf", "rollout", models / MODEL, "--rollback")
            sys.exit("The server stopped the canary; version 1 goes on.")

        say("It becomes the stable version.")
        run("karpa-tf", "rollout", models / MODEL, "--promote")
        wait_for(url, 1, "END")
        run("python", steps, "send", url, folder / "traffic.jsonl", "--first", BEFORE)


def main() -> None:
    """Runs the loop in a folder."""
    parser = argparse.ArgumentParser(description="Serve, collect, label, learn, compare, roll out.")
    parser.add_argument(
        "--folder", type=Path, default=Path("loop"), help="A new folder for all that it writes."
    )
    parser.add_argument("--epochs", type=int, default=6, help="Epochs of each training.")
    given = parser.parse_args()
    if given.folder.exists():
        sys.exit(f"{given.folder} is there already: take it away, or name another one with --folder.")
    begin = time.monotonic()
    loop(given.folder, given.epochs)
    print(f"\nThe loop took {time.monotonic() - begin:.0f} seconds.")


if __name__ == "__main__":
    main()
