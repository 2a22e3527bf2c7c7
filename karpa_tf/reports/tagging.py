"""What a terminal and TensorBoard show of a tagger of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.judging.classification import confusion
from karpa_tf.judging.tagging import checked, entities
from karpa_tf.reports.classification import (
    event_writer,
    format_class_table,
    markdown,
    write_confusion,
    write_pr_curves,
    write_text,
)

_ERRORS = 20
# What a row of the table of errors shows of a sentence: words on each side of a wrong one, and in all.
_CONTEXT = 8
_WORDS = 120


def format_type_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the aligned lines of a `type_table`, the first one the heading."""
    return format_class_table(rows, key="type")


def write_tagging(
    folder: str | Path,
    step: int,
    words: Sequence[Sequence[str]],
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    scores: Sequence[np.ndarray] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Writes the tags' confusion matrix, a table of the worst sentences, and curves if there are scores.

    Args:
        folder: of the event files.
        step: of the optimizer.
        words: a sequence a sentence.
        true: their IOB2 tags.
        predicted: the same.
        scores: float (words, tags) a sentence: the probability of every tag; or None for no curves.
        names: of the tags, as `scores` has them. `O` gets no curve.
    """
    true, predicted = checked(true, predicted)
    left, right = [tag for tags in true for tag in tags], [tag for tags in predicted for tag in tags]
    tags = sorted({*left, *right, *(names or ())}, key=_by_type)
    number = {tag: i for i, tag in enumerate(tags)}
    with event_writer(folder):
        if scores is not None and names is not None and left:
            kept = [i for i, name in enumerate(names) if name != "O"]
            kinds = [names[i] for i in kept]
            truth, found = (np.array(of)[:, None] == np.array(kinds, str) for of in (left, right))
            probabilities = np.concatenate([np.asarray(s).reshape(-1, len(names)) for s in scores])
            write_pr_curves(step, truth, found, probabilities[:, kept], kinds)
        if left:
            counts = confusion([number[t] for t in left], [number[t] for t in right], len(tags))
            write_confusion(step, counts, tags)
        write_text(step, "errors", _errors(words, true, predicted))


def _by_type(tag: str) -> tuple[bool, str, str]:
    prefix, _, kind = tag.partition("-")
    return tag != "O", kind, prefix


def _errors(words: Sequence[Sequence[str]], true: list[list[str]], predicted: list[list[str]]) -> str:
    wrong = []
    for number, (left, right) in enumerate(zip(true, predicted, strict=True)):
        if left != right:
            count = len(set(entities(left)) ^ set(entities(right)))
            wrong.append((-count, -sum(a != b for a, b in zip(left, right, strict=True)), number))
    if not wrong:
        return "No errors: every tag is right."
    lines = [
        f"{len(wrong):,} of {len(true):,} sentences {'has' if len(wrong) == 1 else 'have'} a wrong tag; "
        "those with the most wrong entities "
        "come first (#: missed and invented ones). A wrong word is **word**/predicted (true).",
        "",
        "| # | sentence |",
        "|---|---|",
    ]
    for count, _, number in sorted(wrong)[:_ERRORS]:
        lines.append(f"| {-count} | {_marked(words[number], true[number], predicted[number])} |")
    return "\n".join(lines)


def _marked(words: Sequence[str], true: Sequence[str], predicted: Sequence[str]) -> str:
    """A sentence with its wrong words marked; long stretches of right ones become `…`."""
    wrong = np.array(true) != np.array(predicted)
    near = np.convolve(wrong, np.ones(2 * _CONTEXT + 1), "full")[_CONTEXT : _CONTEXT + len(wrong)] > 0
    parts: list[str] = []
    shown = 0
    for i, word in enumerate(words):
        if not near[i] or shown == _WORDS:
            if parts[-1:] != ["…"]:
                parts.append("…")
            continue
        shown += 1
        text = markdown(word, longest=60)
        if wrong[i]:
            text = f"**{text}**/{markdown(predicted[i])} ({markdown(true[i])})"
        parts.append(text)
    return " ".join(parts)
