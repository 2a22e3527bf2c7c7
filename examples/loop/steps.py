"""The steps of the loop that are no verb of karpa-tf: data, traffic, and what a person is asked.

Each is a command: `python examples/loop/steps.py prepare loop` and so on; run.py runs them in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import read_table, write_table

# What version 1 knows, and what people ask all the same.
KNOWN = [
    *("HassCancelTimer", "HassIncreaseTimer", "HassLightSet", "HassMediaSearchAndPlay"),
    *("HassSetVolume", "HassStartTimer", "HassTurnOff", "HassTurnOn"),
]
NEW = "HassGetWeather"
# Clients that the traffic comes from; requests before the first of the new intent; requests after these, a
# quarter of them of it. The others of it are among the rest of the traffic.
_CLIENTS, _BEFORE, _RUSH = 400, 250, 250


def prepare(folder: Path) -> None:
    """Writes data and traffic, from the sentences that karpa_tf brings.

    Version 1 learns from every second sentence of the eight intents that it knows. The others are the
    traffic, in an order of seed 0. After 250 of them people begin to ask what is of a ninth intent.

    Args:
        folder: that it goes to: first/ for version 1, held_known.csv and held_new.csv to compare with,
            traffic.jsonl, and answers.csv, in which the simulated person looks labels up.
    """
    from karpa_tf.data.intents import embedded_intents

    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    rush, new = [], []
    for sentence in embedded_intents():
        row = (" ".join(sentence.words), sentence.intent)
        if sentence.intent == NEW:
            (new if sentence.split == "test" else rush).append(row)
        elif sentence.intent in KNOWN:
            splits[sentence.split].append(row)
    asked = splits["train"][1::2]
    splits["train"] = splits["train"][::2]
    for split, rows in splits.items():
        write_table(folder / "first" / f"{split}.csv", ["text", "label"], rows)
    write_table(folder / "held_known.csv", ["text", "label"], splits["test"])
    write_table(folder / "held_new.csv", ["text", "label"], new)
    random = np.random.default_rng(0)
    known, ninth = ([rows[place] for place in random.permutation(len(rows))] for rows in (asked, rush))
    parts, share = [(known[:_BEFORE], [])], _RUSH // 4
    rest = _BEFORE + _RUSH - share
    parts += [(known[_BEFORE:rest], ninth[:share]), (known[rest:], ninth[share:])]
    traffic = []
    for old, other in parts:
        both = old + other
        traffic += [both[place] for place in random.permutation(len(both))]
    write_table(folder / "answers.csv", ["text", "label"], traffic)
    with (folder / "traffic.jsonl").open("w", encoding="utf-8") as file:
        for text, _ in traffic:
            client = f"client-{random.integers(_CLIENTS)}"
            file.write(json.dumps({"client": client, "text": text}) + "\n")
    print(
        f"{len(splits['train'])} rows to learn from; {len(traffic)} requests, {len(ninth)} of them of {NEW}"
    )


def send(url: str, traffic: Path, first: int, last: int) -> Counter[str]:
    """Sends recorded requests, each with its client's name, and returns how often each label came.

    Args:
        url: of the model, as http://127.0.0.1:8501/v1/models/bert-classifier.
        traffic: the file.
        first: of the requests, from 0.
        last: the one after the last; 0: all.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    found, requests = Counter[str](), traffic.read_text(encoding="utf-8").splitlines()[first : last or None]
    for line in requests:
        request = json.loads(line)
        body = json.dumps({"instances": [request["text"]]})
        connection.request("POST", f"{parts.path}:predict", body, {"X-Client-Id": request["client"]})
        response = connection.getresponse()
        answer = json.loads(response.read())
        row = answer["predictions"][0] if response.status == 200 else {"label": f"{response.status}"}
        found.update(value for name, value in row.items() if name.endswith("label"))
    connection.close()
    print(
        f"{len(requests)} requests: " + ", ".join(f"{label} {count}" for label, count in found.most_common())
    )
    return found


def texts(log: Path, output: Path) -> None:
    """Writes the texts of a server's request log, each once.

    Args:
        log: the server's --request_log.
        output: table with the column `text`.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = dict.fromkeys(text for line in lines for text in line["inputs"]["text"])
    write_table(output, ["text"], [[text] for text in found])
    print(f"{len(found)} texts of {len(lines)} requests")


def unsureness(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Returns how little a model knows of a row, by what it answers; to compare rows with.

    Args:
        row: of `karpa-tf predict --output FILE.jsonl`.

    Returns:
        Whether it is unknown (`known`), and `unknown_score`; of a model without these False, and one less
        `confidence`.
    """
    return not row.get("known", True), float(row.get("unknown_score", 1 - float(row["confidence"])))


def unsure(answers: Path, output: Path, most: int) -> None:
    """Writes the texts that a model knows least of, for a person: `text`, and the `label` that it gave.

    Args:
        answers: what `karpa-tf predict` wrote, as .jsonl.
        output: table for the person.
        most: rows.
    """
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    chosen = sorted(rows, key=unsureness, reverse=True)[:most]
    write_table(output, ["text", "label"], [(row["text"], row["label"]) for row in chosen])
    by = next(name for name in ("unknown_score", "confidence") if name in rows[0])
    print(f"{len(chosen)} of {len(rows)} texts for a person, by {by}; the first: {chosen[0]['text']}")


def label(asked: Path, answers: Path, output: Path) -> None:
    """Stands for the person: gives texts their right labels, from a file. In earnest it is somebody's work.

    Args:
        asked: table with texts.
        answers: table with texts and their labels.
        output: table of the texts and the right labels.
    """
    right = {row["text"]: row["label"] for row in read_table(answers)}
    rows = [(row["text"], right[row["text"]]) for row in read_table(asked) if row["text"] in right]
    write_table(output, ["text", "label"], rows)
    counts = Counter(name for _, name in rows)
    print(f"{len(rows)} labels: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))


def main() -> None:
    """Runs a step."""
    parser = argparse.ArgumentParser(description="The steps of the loop that are no verb of karpa-tf.")
    steps = parser.add_subparsers(dest="step", required=True)
    for name, words in (
        ("prepare", ["folder"]),
        ("send", ["url", "traffic"]),
        ("texts", ["log", "output"]),
        ("unsure", ["answers", "output"]),
        ("label", ["asked", "answers", "output"]),
    ):
        step = steps.add_parser(name)
        for word in words:
            step.add_argument(word, type=str if word == "url" else Path)
        if name == "send":
            step.add_argument("--first", type=int, default=0)
            step.add_argument("--last", type=int, default=0)
        if name == "unsure":
            step.add_argument("--most", type=int, default=100)
    given = vars(parser.parse_args())
    {"prepare": prepare, "send": send, "texts": texts, "unsure": unsure, "label": label}[given.pop("step")](
        **given
    )


if __name__ == "__main__":
    main()
