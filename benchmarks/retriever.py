"""How long a lone request of `retriever` takes among 10,000 entries, and how often its first answer is right.

The data is a folder of train.csv and test.csv with columns text and label, as banking77. A text's label is
its answer. Training rows are the entries, and the test split is evaluated on once. Then 10,000 rows of the
training file are exported as entries, validation rows too, and `karpa-tf load-test` asks `karpa-tf serve` for
texts of the test split, one after the other. Bounds: 30 ms (the median), and 0.80 of the first answers right.

    python benchmarks/retriever.py --preset FOLDER --data FOLDER [--method full] [--seconds 20]

The last line of the output is one JSON object; a ratio above 1 means that a figure is within its bound.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BOUND_MS, BOUND_RECALL, ENTRIES = 30.0, 0.8, 10_000
TINY = [*("--layers", 1, "--heads", 2, "--width", 32, "--epochs", 1, "--precision", "float32")]


def karpa(*words: Any) -> dict[str, Any]:
    """Runs a command and returns its JSON object."""
    command = [sys.executable, "-m", "karpa_tf", *map(str, words), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def read(path: Path) -> list[dict[str, str]]:
    """Reads a table with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes a table of rows with the same columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_data(folder: Path) -> Path:
    """Writes texts in which one word tells the label, for --smoke; returns their folder."""
    rng, words = random.Random(0), [f"word{number}" for number in range(40)]
    for split, count in (("train", 200), ("test", 40)):
        labels = [rng.choice("abcd") for _ in range(count)]
        rows = [{"text": f"{' '.join(rng.choices(words, k=6))} {x * 3}", "label": x} for x in labels]
        write(folder / f"{split}.csv", rows)
    return folder


def lone_request(models: Path, texts: Path, seconds: float) -> dict[str, Any]:
    """Serves a folder of models, and returns what `load-test` says of one client of `retriever`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", models, "--port", 0, "--rest_api_port", port, "--access_log", "", "--json"]
    words = [sys.executable, "-m", "karpa_tf", *map(str, command)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert server.stdout
        server.stdout.readline()  # it is ready
        url = f"http://127.0.0.1:{port}/v1/models/retriever"
        return karpa("load-test", url, "--input", texts, "--clients", 1, "--seconds", seconds)
    finally:
        server.terminate()
        server.wait()


def measure(data: Path, folder: Path, options: list[Any], seconds: float) -> dict[str, Any]:
    """Trains, evaluates, exports and asks; returns the values."""
    logs = ["--logs", folder / "logs"]
    run = karpa("train", "retriever", "--data", data, "--answer", "label", *options, *logs)["run"]
    found = karpa("evaluate", run)
    rows = read(data / "train.csv")[:ENTRIES]
    write(folder / "entries.csv", [{"entry": str(n), **row} for n, row in enumerate(rows)])
    write(folder / "texts.csv", [{"text": row["text"]} for row in read(data / "test.csv")])
    karpa("export", run, "--entries", folder / "entries.csv", "--to", folder / "models", "--force")
    load = lone_request(folder / "models", folder / "texts.csv", seconds)
    assert load["failed"] == 0, load
    served = {found["facts"]["ranking"]: found["metrics"], **found["baselines"]}
    return {
        "entries": len(rows),
        "requests": load["requests"],
        **{f"{name}_ms": load["latency_ms"][name] for name in ("p50", "p90", "p99")},
        "weight_of_dense": found["facts"]["weight of dense in both"],
        "test": served,
    }


def main() -> None:
    """Prints the values, and all of it as JSON in the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--preset", default="")
    parser.add_argument("--method", default="none")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if not args.smoke and not (args.data and args.preset):
        parser.error("--data and --preset are needed, or --smoke.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.smoke:
            values = measure(make_data(folder / "data"), folder, TINY, 1.0)
        else:
            options = ["--preset", args.preset, "--method", args.method]
            values = measure(args.data, folder, options, args.seconds)
    for key, value in values.items():
        print(f"{key}: {value}")
    ratios = {
        "lone_request": BOUND_MS / values["p50_ms"],
        "recall_at_1": values["test"]["both"]["recall_at_1"] / BOUND_RECALL,
    }
    print(json.dumps({"benchmark": "retriever", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
