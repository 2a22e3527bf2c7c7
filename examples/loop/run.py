"""The whole loop: serve, collect, ask a person, learn, compare, roll out. docs/loop.md explains it.

`python examples/loop/run.py` prints each command as it runs it, and needs about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

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


def say(title: str) -> None:
    """Prints what comes next."""
    print(f"\n# {title}", flush=True)


def run(*words: Any) -> str:
    """Prints a command, runs it, prints what it prints, and returns that; ends everything if it fails."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)}", flush=True)
    names = {"karpa-tf": [sys.executable, "-m", "karpa_tf"], "python": [sys.executable]}
    done = subprocess.run([*names[command[0]], *command[1:]], stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"it ended with status {done.returncode}")
    return done.stdout


@contextmanager
def serving(*words: Any) -> Iterator[str]:
    """Serves while the block runs; yields the model's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", *map(str, words), "--port", "0", "--rest_api_port", str(port)]
    print(f"$ karpa-tf {shlex.join(command)} &", flush=True)
    server = subprocess.Popen([sys.executable, "-m", "karpa_tf", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        for line in server.stdout:
            print(line, end="", flush=True)
            if line.startswith("REST"):
                break
        else:
            sys.exit("the server did not start")
        yield f"http://127.0.0.1:{port}/v1/models/{MODEL}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def wait_for(url: str, version: int, state: str) -> None:
    """Waits until a version is in a state, since a server follows its file in a second or two."""
    for _ in range(600):
        with urlopen(url) as answer:
            states = {row["version"]: row["state"] for row in json.load(answer)["model_version_status"]}
        if states.get(str(version)) == state:
            return
        time.sleep(0.2)
    sys.exit(f"version {version} did not become {state}")


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
    with serving("--model_config_file", config, *follow, "--request_log", log, *quiet) as url:
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
