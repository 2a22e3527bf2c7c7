"""How soon `karpa-tf watch` finds that opinions have changed, how often it is wrong, and river's detectors.

A table holds what a classifier said of held-out sentences: `domain,split,label,positive` (the probability).
`--run` makes it of a run of bert-classifier on films and newspapers, whose sentences come from the source
package of vaderSentiment (docs/watch.md):

    python benchmarks/watch.py --run logs/bert-classifier/1 --film film.csv --table table.csv
    python benchmarks/watch.py --table table.csv [--base 0.5] [--simulations 200] [--threshold 12]

A simulation draws sentences, with replacement, from those of a domain: 1,000 for the baseline and 200 more
with the same share of positive ones, then 1,000 with a share that is 15 points (`--shift`) away. Found: an
alarm within 200 texts after the change. False alarms are counted in streams of 10,000 texts without a change.
Validation rows are the reference, and streams are drawn from the test rows alone. `labels` is fed with the
sentences' true labels, which no classifier can be better than. river's detectors get the predicted labels:
ADWIN and Page-Hinkley as they come, and Page-Hinkley with `--threshold`; `--ours` leaves them out. The last
line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.judging.reference import Reference, make_reference
from karpa_tf.watching.alarms import InputAlarm, ShareAlarm, cell_of, count_places
from karpa_tf.watching.shares import cell_distributions

ROOT = Path(__file__).resolve().parents[1]
BASELINE, BEFORE, AFTER, WITHIN, SHIFT = 1000, 200, 1000, 200, 0.15
# Baselines whose bounds are simulated; the others take their mean, which they hardly differ from.
BOUNDS = 3


def make_table(run: str, film: str, path: str) -> None:
    """Writes what a run says of its validation and test rows."""
    from karpa_tf.recipe import recipe_of
    from karpa_tf.training.evaluation import Outputs
    from karpa_tf.training.run_folder import open_run

    folder = open_run(run)
    recipe: Any = recipe_of(folder).load()
    task, model = recipe.open_model(folder)
    data = recipe.open_data(task.config)
    with open(film, encoding="utf-8", newline="") as file:
        films = {row["text"].strip() for row in csv.DictReader(file)}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("domain", "split", "label", "positive"))
        for split in ("validation", "test"):
            part = data.splits[split]
            texts = recipe.batch(task, part)
            found = texts.probabilities(Outputs(model, texts.batches))[:, task.names.index("positive")]
            for text, label, share in zip(part.texts, part.labels, found, strict=True):
                domain = "film" if text.strip() in films else "news"
                writer.writerow((domain, split, label, f"{share:.6f}"))


class Domain:
    """The test rows of a domain: true labels, cells, predicted labels, and what a draw of them is."""

    def __init__(self, reference: Reference, true: np.ndarray, positive: np.ndarray) -> None:
        self.true, self.predicted = true, (positive > 0.5).astype(np.int64)
        self.places = reference.places(self.predicted, np.minimum(positive, 1 - positive))
        self.cells = reference.cells_of(self.predicted, self.places)
        self.by_label = [np.flatnonzero(true == label) for label in (0, 1)]

    def draw(self, share: float, count: int, random: np.random.Generator) -> np.ndarray:
        """Returns the places of rows, a share of which are positive."""
        labels = (random.random(count) < share).astype(int)
        chosen = [random.choice(of, count) for of in self.by_label]
        return np.where(labels, chosen[1], chosen[0])


def alarms_of(alarm: ShareAlarm, cells: np.ndarray) -> list[int]:
    """Returns the places of alarms; the sums begin again at 0 after each."""
    found, sums, by_cell = [], np.zeros(len(alarm.names)), alarm.increments.T
    for place, cell in enumerate(cells):
        sums = np.maximum(sums + by_cell[cell], 0)
        if sums.max() >= alarm.bound:
            found.append(place)
            sums[:] = 0
    return found


def summary(found: list[list[int]], clean: list[list[int]], texts: int) -> dict[str, float]:
    """Returns the share found in time, the median delay in texts, and false alarms in 10,000 texts."""
    delays = []
    for places in found:
        after = [place - BEFORE + 1 for place in places if place >= BEFORE]
        delays.append(after[0] if after else AFTER)
    early = sum(place < BEFORE for places in found for place in places)
    false, every = sum(map(len, clean)) + early, texts + BEFORE * len(found)
    return {
        "found": float(np.mean(np.array(delays) <= WITHIN)),
        "median_delay": float(np.median(delays)),
        "false_alarms": 1e4 * false / every,
    }


def ours(
    kind: str,
    domain: Domain,
    reference: Reference,
    baselines: list[Any],
    streams: list[Any],
    clean: list[Any],
    false_alarms: int,
) -> dict[str, float]:
    cells = {"watch": domain.cells, "labels": domain.true}[kind]
    known = cell_distributions(reference.cells) if kind == "watch" else None
    count = reference.cells.shape[1] if kind == "watch" else 2
    bounds: list[float] = []

    def alarm(rows: np.ndarray, seed: int) -> ShareAlarm:
        counts = np.bincount(cells[rows], minlength=count)
        bound = 0.0 if len(bounds) < BOUNDS else float(np.mean(bounds))
        made = ShareAlarm(counts, known, shift=SHIFT, false_alarms=false_alarms, seed=seed, bound=bound)
        if not bound:
            bounds.append(made.bound)
        return made

    every = [alarm(rows, seed) for seed, rows in enumerate(baselines)]
    found = [alarms_of(one, cells[rows]) for one, rows in zip(every, streams, strict=True)]
    none = [alarms_of(one, cells[rows]) for one, rows in zip(every, clean, strict=False)]
    return summary(found, none, sum(map(len, clean)))


def input_alarms(domain: Domain, baselines: list[Any], streams: list[Any]) -> dict[str, float]:
    """Returns alarms on input in 10,000 texts, and the share of streams that have one."""
    every = np.array([cell_of(place) for place in domain.places])
    alarms = [InputAlarm(count_places(domain.places[rows])) for rows in baselines[:BOUNDS]]
    found = [alarms_of(alarms[i % BOUNDS], every[rows]) for i, rows in enumerate(streams)]
    texts = sum(map(len, streams))
    return {"in_10000": 1e4 * sum(map(len, found)) / texts, "found": float(np.mean([bool(x) for x in found]))}


def river(
    name: str,
    options: dict[str, float],
    domain: Domain,
    baselines: list[Any],
    streams: list[Any],
    clean: list[Any],
) -> dict[str, float]:
    """The same for a detector of river, which learns from the baseline's texts as it goes."""

    def alarms(rows: list[np.ndarray]) -> list[list[int]]:
        labels = np.stack(
            [domain.predicted[np.concatenate(pair)] for pair in zip(baselines, rows, strict=False)]
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "streams.npz"
            np.savez(path, streams=labels)
            script = ROOT / "benchmarks" / "peers" / "river_alarms.py"
            command = [river_python(), str(script), str(path), name, json.dumps(options)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [[p - BASELINE for p in places if p >= BASELINE] for places in json.loads(done.stdout)]

    return summary(alarms(streams), alarms(clean), sum(map(len, clean)))


def river_python() -> str:
    """The interpreter of an environment with river, made on the first call."""
    folder = ROOT / ".venv-river"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        requirements = ROOT / "benchmarks" / "requirements-watch.txt"
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
    return str(python)


def made_table() -> list[dict[str, str]]:
    """Returns rows of a classifier that is right in 85 of 100, for `--smoke`."""
    random, rows = np.random.default_rng(0), []
    for number in range(1200):
        label = number % 2
        logit = random.normal(1.5 if label else -1.5, 1.5)
        split = "validation" if number < 600 else "test"
        rows.append(
            {
                "domain": "made",
                "split": split,
                "label": ("negative", "positive")[label],
                "positive": str(1 / (1 + np.exp(-2 * logit))),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="")
    parser.add_argument("--film", default="")
    parser.add_argument("--table", default="")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--clean", type=int, default=40, help="Streams of 10,000 texts without a change.")
    parser.add_argument(
        "--base", type=float, default=0.5, help="Share of positive sentences before the change."
    )
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--false_alarms", type=int, default=10_000)
    parser.add_argument("--ours", action="store_true", help="Without river's.")
    parser.add_argument("--threshold", type=float, default=0.0, help="Page-Hinkley's; 0: as it comes alone.")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.run:
        make_table(arguments.run, arguments.film, arguments.table)
        return
    if arguments.smoke:
        rows, arguments.simulations, arguments.clean = made_table(), 4, 1
    else:
        with open(arguments.table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    values: dict[str, float] = {}
    true = np.array([row["label"] == "positive" for row in rows]).astype(int)
    positive = np.array([float(row["positive"]) for row in rows])
    test = np.array([row["split"] == "test" for row in rows])
    domains = np.array([row["domain"] for row in rows])
    ratios = {}
    for name in sorted(set(domains)):
        held, own = ~test & (domains == name), test & (domains == name)
        scores = np.minimum(positive, 1 - positive)
        predicted = (positive > 0.5).astype(int)
        reference = make_reference(["negative", "positive"], true[held], predicted[held], scores[held])
        domain = Domain(reference, true[own], positive[own])
        accuracy = float((domain.predicted == domain.true).mean())
        print(f"{name}: {held.sum():,} validation and {own.sum():,} test rows, accuracy {accuracy:.3f}")
        random = np.random.default_rng(0)
        baselines = [domain.draw(arguments.base, BASELINE, random) for _ in range(arguments.simulations)]
        streams = []
        for number in range(arguments.simulations):
            to = arguments.base + (
                arguments.shift if number % 2 and arguments.base + arguments.shift <= 1 else -arguments.shift
            )
            before = domain.draw(arguments.base, BEFORE, random)
            streams.append(np.concatenate([before, domain.draw(to, AFTER, random)]))
        clean = [domain.draw(arguments.base, 10_000, random) for _ in range(arguments.clean)]
        given = (domain, baselines, streams, clean)
        results = {
            "watch": ours("watch", domain, reference, baselines, streams, clean, arguments.false_alarms),
            "labels": ours("labels", domain, reference, baselines, streams, clean, arguments.false_alarms),
        }
        if not (arguments.smoke or arguments.ours):
            results["adwin"] = river("adwin", {}, *given)
            results["page_hinkley"] = river("page_hinkley", {}, *given)
            if arguments.threshold:
                tuned = {"threshold": arguments.threshold, "delta": SHIFT / 4, "min_instances": 30}
                results["page_hinkley_tuned"] = river("page_hinkley", tuned, *given)
        for kind, result in results.items():
            print(
                f"  {kind:20} found within {WITHIN}: {result['found']:.1%}  "
                f"median delay {result['median_delay']:.0f}"
                f"  false alarms in 10,000: {result['false_alarms']:.2f}"
            )
            values |= {f"{name}_{kind}_{key}": round(value, 4) for key, value in result.items()}
        for kind, rows in (("moved", streams), ("clean", clean)):
            of_input = input_alarms(domain, baselines, rows)
            print(f"  alarms on input, {kind} shares: {of_input['in_10000']:.2f} in 10,000")
            values[f"{name}_input_{kind}"] = round(of_input["in_10000"], 4)
        for drift in (0.1, 0.2):
            # A part of the texts is replaced by what the classifier is unsure of.
            unsure = np.argsort(-domain.places)[: len(domain.places) // 4]
            other = [
                np.where(random.random(500) < drift, random.choice(unsure, 500), rows[:500]) for rows in clean
            ]
            of_input = input_alarms(domain, baselines, other)
            print(f"  alarms on input, {drift:.0%} of 500 texts unsure: {of_input['found']:.1%} found")
            values[f"{name}_input_found_{drift:g}"] = of_input["found"]
        values[f"{name}_accuracy"] = round(accuracy, 4)
        ratios[f"{name}_found"] = round(results["watch"]["found"] / 0.95, 4)
        ratios[f"{name}_false_alarms"] = round(1 / max(results["watch"]["false_alarms"], 0.1), 4)
    print(json.dumps({"benchmark": "watch", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
