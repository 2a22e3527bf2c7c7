"""Figures of a tagger of words: metrics, a row of numbers a type, a baseline. Tags in, numbers out.

Tags are IOB2: `B-TYPE` begins an entity, `I-TYPE` goes on with it, `O` is outside of any.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

# --- Figures --------------------------------------------------------------------------------------


def tag_metrics(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Evaluates predicted tags by the entities they make up; one counts if its type and both ends are right.

    Args:
        true: IOB2 tags, a sequence a sentence.
        predicted: the same.

    Returns:
        `precision`, `recall`, `f1` as seqeval takes them by default and conlleval does (Tjong Kim Sang and
        De Meulder 2003): an `I-` that follows nothing of its type begins an entity. `precision_strict`,
        `recall_strict`, `f1_strict`: such a tag is no entity. `accuracy`: share of right tags. Without any
        entity, or any word, 0.

    Raises:
        ValueError: sentences that do not pair up.
    """
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    true, predicted = checked(true, predicted)
    pairs = [pair for tags in zip(true, predicted, strict=True) for pair in zip(*tags, strict=True)]
    figures = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    strict = (0.0, 0.0, 0.0)
    if pairs:
        scores = precision_recall_fscore_support(true, predicted, average="micro", zero_division=0)
        figures = dict(zip(figures, map(float, scores), strict=False))
        strict = _strict(true, predicted, average="micro")[:3]
    figures |= {f"{name}_strict": float(value) for name, value in zip(figures, strict, strict=True)}
    return figures | {"accuracy": sum(a == b for a, b in pairs) / max(len(pairs), 1)}


def type_table(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Evaluates every type of entity on its own, strictly.

    Args:
        true: IOB2 tags, a sequence a sentence.
        predicted: the same.

    Returns:
        A row a type, in order of the alphabet: `type`, `precision`, `recall`, `f1`, `support` (its
        entities). What is undefined is 0.
    """
    from seqeval.scheme import IOB2, Entities

    true, predicted = checked(true, predicted)
    types = sorted(Entities(true, IOB2).unique_tags | Entities(predicted, IOB2).unique_tags)
    if not types:
        return []
    columns = _strict(true, predicted, average=None)
    return [
        {"type": name, "precision": float(p), "recall": float(r), "f1": float(f1), "support": int(support)}
        for name, p, r, f1, support in zip(types, *columns, strict=True)
    ]


def _strict(true: list[list[str]], predicted: list[list[str]], average: str | None) -> Any:
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    return precision_recall_fscore_support(true, predicted, average=average, scheme=IOB2, zero_division=0)


def checked(
    true: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Returns lists of lists of str; sentences that do not pair up are a ValueError."""
    # seqeval takes nothing but lists of lists of str.
    both = [list(map(str, tags)) for tags in true], [list(map(str, tags)) for tags in predicted]
    if len(both[0]) != len(both[1]):
        raise ValueError(
            f"As many sentences are needed on both sides. Received: {len(both[0])} and {len(both[1])}."
        )
    for number, (left, right) in enumerate(zip(*both, strict=True)):
        if len(left) != len(right):
            raise ValueError(
                f"Sentence {number} has {len(left)} true tags. Received: {len(right)} predicted."
            )
    return both


# --- The baseline ---------------------------------------------------------------------------------


def gazetteer_baseline(
    train_words: Sequence[Sequence[str]],
    train_tags: Sequence[Sequence[str]],
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
) -> dict[str, float]:
    """Evaluates looking up the entities of the training data, word for word.

    A sentence is read from left to right; the longest entity that begins at a word is taken, with the type
    that it has most often in training (of equals, the one seen first).

    Args:
        train_words: what it learns from, a sequence of words a sentence.
        train_tags: their IOB2 tags.
        words: what it is evaluated on.
        tags: their IOB2 tags.

    Returns:
        The figures of `tag_metrics`.
    """
    types: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for sentence, sentence_tags in zip(train_words, train_tags, strict=True):
        for kind, begin, end in entities(sentence_tags):
            types[tuple(sentence[begin:end])][kind] += 1
    names = {name: counts.most_common(1)[0][0] for name, counts in types.items()}
    longest: dict[str, int] = defaultdict(int)
    for name in names:
        longest[name[0]] = max(longest[name[0]], len(name))
    return tag_metrics(tags, [_look_up(sentence, names, longest) for sentence in words])


def _look_up(
    sentence: Sequence[str], names: dict[tuple[str, ...], str], longest: dict[str, int]
) -> list[str]:
    found, at = ["O"] * len(sentence), 0
    while at < len(sentence):
        length = min(longest.get(sentence[at], 0), len(sentence) - at)
        while length and tuple(sentence[at : at + length]) not in names:
            length -= 1
        if length:
            kind = names[tuple(sentence[at : at + length])]
            found[at : at + length] = [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
        at += max(length, 1)
    return found


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The type, first word and end (one beyond the last word) of each entity, read as IOB2 strictly."""
    from seqeval.scheme import IOB2, Tokens

    return [(e.tag, e.start, e.end) for e in Tokens(list(map(str, tags)), IOB2).entities]
