"""What the examples share: commands that are printed as they run, servers, and tables."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

# How the first word of a command is run.
_NAMES = {"karpa-tf": [sys.executable, "-m", "karpa_tf"], "python": [sys.executable]}


def say(title: str) -> None:
    """Prints what comes next."""
    print(f"\n# {title}", flush=True)


def run(*words: Any) -> str:
    """Prints a command, runs it, prints what it prints, and returns that; ends everything if it fails."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run([*_NAMES[command[0]], *command[1:]], stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"it ended with status {done.returncode}")
    return done.stdout


@contextmanager
def serving(*words: Any) -> Iterator[str]:
    """Serves models while the block runs; yields the server's address."""
    port = free_port()
    command = ["karpa-tf", "serve", *words, "--port", 0, "--rest_api_port", port]
    with running(*command, ready="REST"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running(*words: Any, ready: str) -> Iterator[None]:
    """Runs a command while the block runs, which begins when the command prints a line that begins so."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)} &", flush=True)
    process = subprocess.Popen([*_NAMES[command[0]], *command[1:]], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith(ready):
                break
        else:
            sys.exit("it did not start")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, version: int, state: str) -> None:
    """Waits until a version is in a state, since a server follows its file in a second or two."""
    for _ in range(600):
        with urlopen(url) as answer:
            states = {row["version"]: row["state"] for row in json.load(answer)["model_version_status"]}
        if states.get(str(version)) == state:
            return
        time.sleep(0.2)
    sys.exit(f"version {version} did not become {state}")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_table(path: Path) -> list[dict[str, str]]:
    """Reads a table with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
