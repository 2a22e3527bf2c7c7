"""The steps of the opinion monitor that are no verb of karpa-tf: sentences, a stream, a test of the rule.

Each is a command: `python examples/opinion-monitor/steps.py prepare opinions` and so on; run.py runs them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import read_table, write_table

# What the simulated customers of a shop write about: who or what it is, and by polarity what is said of it.
_SHOP: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "delivery": (
        ["the parcel", "my order", "the delivery", "the box", "the second parcel"],
        {
            "positive": ["came a day early", "was at the door in no time", "arrived without a scratch"],
            "negative": [
                "came a week late",
                "was left in the rain",
                "never arrived",
                "went to a wrong street",
            ],
            "neutral": ["is on its way", "comes with the post", "is to come on Monday"],
        },
    ),
    "price": (
        ["the price", "what I paid", "the bill", "the sum at the end", "the price for two"],
        {
            "positive": ["is lower than elsewhere", "is more than fair", "was a pleasant surprise"],
            "negative": ["is far too high", "went up again", "has hidden fees in it", "is plain robbery"],
            "neutral": ["is the one in the catalogue", "has the tax in it", "is given in euros"],
        },
    ),
    "quality": (
        ["the jacket", "the lamp", "the kettle", "the chair", "the blue jacket"],
        {
            "positive": ["looks better than in the picture", "is made to last", "is a joy to use"],
            "negative": ["fell apart after a day", "smells of glue", "broke at once", "looks cheap"],
            "neutral": ["is made of wood and steel", "weighs two kilos", "is the one from last year"],
        },
    ),
    "service": (
        ["the hotline", "the clerk", "the woman in the chat", "the help desk", "the man on the phone"],
        {
            "positive": ["solved it within minutes", "was patient and kind", "called back as promised"],
            "negative": ["hung up on me", "had no idea", "let me wait for an hour", "was rude"],
            "neutral": ["asked for the number of the order", "works until six", "speaks two languages"],
        },
    ),
    "app": (
        ["the app", "the web page", "the new version", "the login", "the search"],
        {
            "positive": ["works like a charm", "is quick and clear", "found it at the first try"],
            "negative": ["crashes all the time", "is slow and confusing", "forgot my basket", "shows errors"],
            "neutral": ["has a green button now", "asks for a language first", "was changed in May"],
        },
    ),
}
_BEGIN = ["", "honestly, ", "this time ", "for the record, ", "well, ", "as of today "]
_END = ["", " again", ", as far as I can tell", ", my sister says", ", just so you know"]
# Sentences in all; of ten, those that say something else first.
_SENTENCES, _MIXED = 4_000, 3
# Texts of the stream before the shift and after it, and of ten after it those that are new.
BEFORE, AFTER, _NEW = 1_200, 600, 3


def sentences(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Makes sentences up, each once, from parts: `text`, `topic`, `polarity`.

    Three of ten say something of another topic and polarity first, and then `but` what counts.
    """
    random = np.random.default_rng(seed)

    def pick(values: Sequence[str]) -> str:
        return values[random.integers(len(values))]

    topics, polarities, found = list(_SHOP), ["positive", "negative", "neutral"], dict[str, dict[str, str]]()

    def clause(topic: str, polarity: str) -> str:
        return f"{pick(_SHOP[topic][0])} {pick(_SHOP[topic][1][polarity])}"

    while len(found) < count:
        topic, polarity = pick(topics), pick(polarities)
        text = clause(topic, polarity)
        if random.integers(10) < _MIXED:
            other, way = (
                pick([t for t in topics if t != topic]),
                pick([p for p in polarities if p != polarity]),
            )
            text = f"{clause(other, way)}, but {text}"
        text = f"{pick(_BEGIN)}{text}{pick(_END)}."
        found[text] = {"text": text[0].upper() + text[1:], "topic": topic, "polarity": polarity}
    return list(found.values())


def prepare(folder: Path, data: Path | None, topic: str, polarity: str) -> None:
    """Writes what to learn from, and a stream that shifts.

    Half of the sentences, in an order of seed 0, are to learn from. The stream draws from the others: first
    as they come, then three of ten are of one topic and polarity.

    Args:
        folder: that it goes to: topic.csv and polarity.csv, tables of the same texts, and stream.jsonl.
        data: table with the columns `text`, `topic` and `polarity`; None: made-up sentences.
        topic: of the sentences that become more.
        polarity: of these.
    """
    if data and not data.is_file():
        sys.exit(f"--data: there is no file {data}.")
    rows = read_table(data) if data else sentences(_SENTENCES)
    if not rows or not {"text", "topic", "polarity"} <= set(rows[0]):
        sys.exit(f"--data takes a table with the columns text, topic, polarity. Received: {data}.")
    random = np.random.default_rng(0)
    order = random.permutation(len(rows))
    learned, asked = ([rows[place] for place in part] for part in np.array_split(order, 2))
    more = [row for row in asked if (row["topic"], row["polarity"]) == (topic, polarity)]
    if not more:
        known = sorted({f"{row['topic']} {row['polarity']}" for row in rows})
        sys.exit(f"No sentence is of {topic} {polarity}: --topic and --polarity are of {', '.join(known)}.")
    for task in ("topic", "polarity"):
        write_table(folder / f"{task}.csv", ["text", "label"], [(row["text"], row[task]) for row in learned])
    stream = [asked[place] for place in random.integers(len(asked), size=BEFORE)]
    for _ in range(AFTER):
        some = more if random.integers(10) < _NEW else asked
        stream.append(some[random.integers(len(some))])
    with (folder / "stream.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(stream):
            file.write(json.dumps({"client": f"client-{number % 50}", "text": row["text"]}) + "\n")
    print(f"{len(learned)} sentences to learn from; a stream of {len(stream)}, its true shares:")
    for task in ("topic", "polarity"):
        before, after = (Counter(row[task] for row in part) for part in (stream[:BEFORE], stream[BEFORE:]))
        said = (f"{name} {before[name] / BEFORE:.0%} -> {after[name] / AFTER:.0%}" for name in sorted(before))
        print(f"  {task}, before and after: {', '.join(said)}")


# --- The rule ---------------------------------------------------------------------------------------


def rule_test(rules: Path, series: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns a test for promtool: what the rules make of alarms that watchers had, one point a minute.

    WatchSharesMoved is to fire for each watcher in the first minute in which its alarm is on, and for none in
    the minute before the first of all.

    Args:
        rules: file of the rules.
        series: by minute and watcher whether the alarm on shares is on; a watcher is not there while it takes
            its baseline.

    Raises:
        ValueError: no watcher had one.
    """
    (rule,) = (
        rule
        for rule in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"][0]["rules"]
        if rule["alert"] == "WatchSharesMoved"
    )
    models = sorted({model for minute in series for model in minute})
    first = {m: next((n for n, minute in enumerate(series) if minute.get(m)), -1) for m in models}
    moments = sorted({minute for minute in first.values() if minute >= 0})
    if not moments:
        raise ValueError("There was no alarm.")

    def alerts(minute: int) -> list[dict[str, Any]]:
        on = [model for model in models if series[minute].get(model)]
        return [
            {
                "exp_labels": {**rule["labels"], "kind": "shares", "model": model},
                "exp_annotations": {
                    name: text.replace("{{ $labels.model }}", model)
                    for name, text in rule["annotations"].items()
                },
            }
            for model in on
        ]

    return {
        "rule_files": [str(rules.resolve())],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {
                        "series": f'karpa_tf_watch_alarm{{kind="shares",model="{model}"}}',
                        "values": " ".join(
                            f"{minute[model]:g}" if model in minute else "_" for minute in series
                        ),
                    }
                    for model in models
                ],
                "alert_rule_test": [
                    {"eval_time": f"{minute}m", "alertname": "WatchSharesMoved", "exp_alerts": alerts(minute)}
                    for minute in (max(moments[0] - 1, 0), *moments)
                ],
            }
        ],
    }


def rule(folder: Path, rules: Path) -> None:
    """Has promtool say whether the rule fires; writes alerts_test.yml for it.

    Args:
        folder: with alarms.json, the alarms by minute and watcher.
        rules: file of the rules.
    """
    series = json.loads((folder / "alarms.json").read_text(encoding="utf-8"))
    path = folder / "alerts_test.yml"
    path.write_text(yaml.safe_dump(rule_test(rules, series), sort_keys=False), encoding="utf-8")
    fires = [test["eval_time"] for test in _cases(path) if test["exp_alerts"]]
    if not (promtool := shutil.which("promtool")):
        print(f"{path}: not tested, there is no promtool (Debian has it in prometheus)")
        return
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    print(f"promtool: WatchSharesMoved fires in minute {', '.join(fires)}, and not in the one before")


def _cases(path: Path) -> Iterator[dict[str, Any]]:
    tests = yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
    return itertools.chain.from_iterable(test["alert_rule_test"] for test in tests)


def main() -> None:
    """Runs a step."""
    parser = argparse.ArgumentParser(
        description="The steps of the opinion monitor that are no verb of karpa-tf."
    )
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("prepare")
    step.add_argument("folder", type=Path)
    step.add_argument("--data", type=Path)
    step.add_argument("--topic", default="delivery")
    step.add_argument("--polarity", default="negative")
    step = steps.add_parser("rule")
    step.add_argument("folder", type=Path)
    step.add_argument("rules", type=Path)
    given = vars(parser.parse_args())
    {"prepare": prepare, "rule": rule}[given.pop("step")](**given)


if __name__ == "__main__":
    main()
