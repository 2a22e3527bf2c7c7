"""A watcher that labels by words, in a process of its own where it is to be killed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from karpa_tf.judging.reference import Reference, make_reference
from karpa_tf.watching import watch
from karpa_tf.watching.models import Local
from karpa_tf.watching.options import WatchOptions

# A small watcher, whose bounds are simulated in a moment.
SMALL = {"window": 60, "baseline": 80, "every": 20, "false_alarms": 300, "samples": 3}


def predict(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Says "good" of a text that has the word in it; the less sure, the longer it is."""
    found: list[dict[str, Any]] = []
    for row in rows:
        good, score = "good" in row["text"], min(len(row["text"]) / 100, 0.49)
        found.append({"label": "good" if good else "bad", "probabilities": [score, 1 - score]})
    return found


def model() -> Local:
    return Local({"text": True}, ["bad", "good"], predict)


def reference(rows: int = 400, right: float = 0.9) -> Reference:
    """Of held-out rows, nine in ten of which are labelled rightly, with the lengths of `texts`."""
    random = np.random.default_rng(5)
    true = random.integers(0, 2, rows)
    predicted = np.where(random.random(rows) < right, true, 1 - true)
    lengths = [len(text) for text in texts(rows, 0.5, seed=6)]
    return make_reference(["bad", "good"], true, predicted, [min(n / 100, 0.49) for n in lengths])


def texts(count: int, share: float, seed: int = 0, longer: int = 0) -> list[str]:
    """Texts, a share of which are good."""
    random = np.random.default_rng(seed)
    return [
        f"{'good' if random.random() < share else 'poor'} {'x' * (random.integers(1, 30) + longer)}"
        for _ in range(count)
    ]


if __name__ == "__main__":
    source, state = sys.argv[1:]
    watch.run(
        model(),
        "words",
        source,
        WatchOptions(**SMALL, follow=False, state=state),  # type: ignore[arg-type]
        lambda event: print(orjson.dumps(event).decode(), flush=True),
        reference=reference(),
    )
