"""What do people write about, and is it good or bad? A monitor that says when that moves.

`python examples/opinion-monitor/run.py` prints each command as it runs it, and needs some minutes on two
cores. docs/opinion-monitor.md explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import free_port, run, say, serving

HERE = Path(os.path.relpath(Path(__file__).parent))
MODEL, TASKS = "multi-task", ("topic", "polarity")
# A small BERT, from nothing.
SIZES = ["--layers", 2, "--width", 128, "--heads", 2, "--batch_size", 16, "--validation_share", 0.2]
WINDOWS = ["--baseline", 800, "--window", 300, "--every", 100, "--samples", 2]
# Requests of the stream that stand for a minute.
MINUTE = 100


@contextlib.contextmanager
def watching(url: str, log: Path, task: str, reference: Path) -> Iterator[str]:
    """Watches a task of the model in the background while the block runs; yields the address of its page."""
    port, said = free_port(), log.with_name(f"{task}.txt")
    command = ["watch", url, log, "--signature", task, "--reference", reference, *WINDOWS]
    command += ["--metrics_port", port, "--state", log.with_name(f"{task}.json")]
    words = list(map(str, command))
    print(f"$ karpa-tf {shlex.join(words)} > {said} &", flush=True)
    with said.open("w", encoding="utf-8") as output:
        watcher = subprocess.Popen([sys.executable, "-m", "karpa_tf", *words], stdout=output)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            watcher.terminate()
            watcher.wait()


def figures(page: str) -> dict[str, float]:
    """Returns a watcher's metrics by name and labels; none while it starts."""
    with contextlib.suppress(OSError), urlopen(f"{page}/metrics") as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if line[:1] != "#"]
        return {name: float(value) for name, _, value in lines}
    return {}


def wait_for(page: str, texts: int) -> dict[str, float]:
    """Waits until a watcher has read so many texts; returns its metrics."""
    for _ in range(1200):
        found = figures(page)
        if any(name.startswith("karpa_tf_watch_texts_total") and n >= texts for name, n in found.items()):
            return found
        time.sleep(0.1)
    sys.exit(f"the watcher of {page} did not read {texts} texts")


def monitor(folder: Path, epochs: int, own: list[Any]) -> None:
    """Runs the monitor once."""
    models, logs, log = folder / "savedmodels", ["--logs", folder / "logs"], folder / "requests.jsonl"
    stream, steps, sender = folder / "stream.jsonl", HERE / "steps.py", HERE.parent / "loop" / "steps.py"

    say("Sentences with a topic and a polarity, and a stream of others, which shifts.")
    run("python", steps, "prepare", folder, *own)

    say("One model answers both questions.")
    data = " ".join(f"{task}={shlex.quote(str(folder / f'{task}.csv'))}" for task in TASKS)
    run("karpa-tf", "train", MODEL, "--data", data, *SIZES, "--epochs", epochs, *logs)
    run("karpa-tf", "export", f"{MODEL}/1", "--to", models, *logs)
    log.touch()

    say("It is served, with a log of what it is asked. A watcher for each task reads the log.")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(models, "--request_log", log, "--access_log", ""))
        url, reference = f"{server}/v1/models/{MODEL}", models / MODEL / "1"
        pages = {task: stack.enter_context(watching(url, log, task, reference)) for task in TASKS}

        say(f"The stream is replayed, {MINUTE} requests for a minute of Prometheus' time.")
        alarms: list[dict[str, float]] = []
        for last in range(MINUTE, len(stream.read_text(encoding="utf-8").splitlines()) + 1, MINUTE):
            run("python", sender, "send", url, stream, "--first", last - MINUTE, "--last", last)
            minute = {}
            for page in pages.values():
                for name, value in wait_for(page, last).items():
                    if found := re.fullmatch(r'karpa_tf_watch_alarm\{kind="shares",model="(.*)"\}', name):
                        minute[found[1]] = value
            alarms.append(minute)
        for task, page in pages.items():
            with urlopen(page) as answer:
                (folder / f"{task}.html").write_bytes(answer.read())
    (folder / "alarms.json").write_text(json.dumps(alarms), encoding="utf-8")

    say("What the watchers said, and their pages.")
    for task in TASKS:
        for line in (folder / f"{task}.txt").read_text(encoding="utf-8").splitlines():
            if not line.startswith("text ") or " over " in line:
                print(f"{task}: {line}")
        print(f"{task}: {folder / f'{task}.html'}", flush=True)

    say("The rule of Prometheus on what they measured.")
    run("python", steps, "rule", folder, HERE.parents[1] / "deploy" / "watch" / "alerts.yml")


def main() -> None:
    """Runs the monitor in a folder."""
    parser = argparse.ArgumentParser(description="Topics and polarities of a stream, watched.")
    parser.add_argument(
        "--folder", type=Path, default=Path("opinions"), help="A new folder for all that it writes."
    )
    parser.add_argument("--epochs", type=int, default=4, help="Epochs of the training.")
    parser.add_argument("--data", type=Path, help="Your table, with the columns text, topic, polarity.")
    parser.add_argument("--topic", default="delivery", help="Topic of what becomes more.")
    parser.add_argument("--polarity", default="negative", help="Its polarity.")
    given = parser.parse_args()
    if given.folder.exists():
        sys.exit(f"{given.folder} is there already: take it away, or name another one with --folder.")
    begin = time.monotonic()
    own = ["--topic", given.topic, "--polarity", given.polarity]
    monitor(given.folder, given.epochs, own + (["--data", given.data] if given.data else []))
    print(f"\nThe monitor took {time.monotonic() - begin:.0f} seconds.")


if __name__ == "__main__":
    main()
