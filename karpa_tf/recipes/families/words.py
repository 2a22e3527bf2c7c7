"""`karpa-tf explain` of the text recipes: what each word adds to what a run says of its text.

A word's part is how much less sure the run is without it (leaving one out; Li et al. 2016,
https://arxiv.org/abs/1612.08220). It asks nothing of the model but its signature.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from karpa_tf import rows
from karpa_tf.data.sequences import split_words
from karpa_tf.data.tags import OUTSIDE
from karpa_tf.export.signature import Signature
from karpa_tf.recipe import Explanation
from karpa_tf.reports.classification import event_writer, markdown, write_text
from karpa_tf.training.run_folder import RunFolder

_SHOWN = 8


@dataclass(frozen=True)
class Claim:
    """Something that a model says of a text.

    Attributes:
        title: for people, e.g. a label.
        score: how sure the model is of the same in other outputs: (outputs, place of the word that was left
            out there, or -1) to 0 to 1.
    """

    title: str
    score: Callable[[Mapping[str, Any], int], float]


def explain_words(
    folder: RunFolder,
    signature: Signature,
    inputs: Sequence[str],
    claims: Callable[[Mapping[str, Any]], list[Claim]],
    *,
    keep: str = "",
    words_of: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> Explanation:
    """Returns the parts of the words of texts; TensorBoard gets tables of them.

    Args:
        folder: of the run; the tables go to `explain/`.
        signature: of the run.
        inputs: texts, or JSON objects for a signature of several inputs; none: standard input.
        claims: what outputs say of one text.
        keep: words that hold this are never left out.
        words_of: outputs to the words of the text, where the model has its own; else they are cut as
            bert-tagger does.
    """
    results, lines = [], []
    asked = rows.read(inputs).match(rows.inputs_of_signature(signature.inputs), filled=True)
    for number, row in enumerate(asked.inputs):
        (whole,) = signature.predict([row])
        places, variants = [], []
        for name, text in row.items():
            words = words_of(whole) if words_of else []
            rests = [(word, " ".join([*words[:i], *words[i + 1 :]])) for i, word in enumerate(words)]
            for i, (word, rest) in enumerate(rests if words_of else _without_each_word(text, keep)):
                if rest:
                    places.append((i, word))
                    variants.append({**row, name: rest})
        outputs = signature.predict(variants) if variants else []
        found = claims(whole)
        if not found:
            lines += ["  ".join(row.values()), f"  no tag but {OUTSIDE}: there is nothing to explain"]
        for claim in found:
            before = claim.score(whole, -1)
            words_: list[dict[str, Any]] = [
                {"word": word, "attribution": before - claim.score(after, place)}
                for (place, word), after in zip(places, outputs, strict=True)
            ]
            results.append({"input": row, "claim": claim.title, "probability": before, "words": words_})
            first = sorted(words_, key=lambda w: -abs(w["attribution"]))[:_SHOWN]
            shown = "  ".join(f"{w['word']} {w['attribution']:+.3f}" for w in first)
            lines += ["  ".join(row.values()), f"  {claim.title} {before:.3f}: {shown}"]
            with event_writer(folder.path / "explain"):
                write_text(number, "explanation", _table(claim.title, before, words_))
    return Explanation(explanations=results, lines=lines, more={"run": str(folder.path)})


def words_of_tags(outputs: Mapping[str, Any], task: str = "") -> list[str]:
    """Returns the words that a tagger found in a text; `task`: with a name before its outputs'."""
    return [token for token in outputs[f"{task}tokens"] if token]


def claims_of_tags(outputs: Mapping[str, Any], task: str = "") -> list[Claim]:
    """Returns what a tagger says of a text: every tag but `O`; `task`: see `words_of_tags`."""

    def claim(place: int, tag: str) -> Claim:
        def score(other: Mapping[str, Any], left_out: int) -> float:
            here, tags = place - (0 <= left_out < place), other[f"{task}tags"]
            found = left_out != place and here < len(tags) and tags[here] == tag
            return other[f"{task}scores"][here] if found else 0.0

        return Claim(f"{outputs[f'{task}tokens'][place]}: {tag}", score)

    return [claim(i, tag) for i, tag in enumerate(outputs[f"{task}tags"]) if tag not in ("", OUTSIDE)]


def _without_each_word(text: str, keep: str) -> list[tuple[str, str]]:
    """Returns each word of a text, and what is left of the text without it."""
    chunks = [match for match in re.finditer(r"\S+", text) if not keep or keep not in match[0]]
    if not chunks:
        return []
    result = []
    words = split_words(tf.constant([chunk[0] for chunk in chunks])).to_list()
    for chunk, inside in zip(chunks, words, strict=True):
        at = chunk.start()
        for word in (word.decode() for word in inside):
            at = text.index(word, at)
            left, right = text[:at], text[at + len(word) :]
            alone = (not left or left[-1].isspace()) and (not right or right[0].isspace())
            result.append((word, (f"{left.rstrip()} {right.lstrip()}" if alone else left + right).strip()))
            at += len(word)
    return result


def _table(title: str, probability: float, words: Sequence[Mapping[str, Any]]) -> str:
    cells = [f"| {markdown(w['word'])} | {w['attribution']:+.3f} |" for w in words]
    return "\n".join([f"{markdown(title)}, {probability:.3f}", "", "| word | part |", "|---|---|", *cells])
