"""The rows of several tasks as one: a text once, in one split, with what each task says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from karpa_tf.data.sequences import split_words
from karpa_tf.data.sources import SPLITS, Split
from karpa_tf.data.tables import Rows, Table
from karpa_tf.data.tags import Sentence, Tagged
from karpa_tf.lines import InALine

# The rows of a task, as its reader gives them.
Part = Rows | list[Sentence]
Opened = Table | Tagged


@dataclass(frozen=True, repr=False)
class JointRows(InALine):
    """Texts, and what the tasks say of them.

    Attributes:
        texts: the texts.
        words: of each text.
        truths: by task a label or tags a text; None where it says nothing of it.
    """

    texts: list[str] = field(default_factory=list)
    words: list[tuple[str, ...]] = field(default_factory=list)
    truths: dict[str, list[str | tuple[str, ...] | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def places(self, *tasks: str) -> list[int]:
        """Returns which texts all of these tasks say something of."""
        given = [self.truths[task] for task in tasks]
        return [place for place in range(len(self)) if all(truths[place] is not None for truths in given)]

    def of(self, task: str) -> Part:
        """Returns the rows of a task, as its reader gives them."""
        places, truths = self.places(task), self.truths[task]
        if places and isinstance(truths[places[0]], tuple):
            return [Sentence(self.words[place], truths[place]) for place in places]  # type: ignore[arg-type]
        return Rows([self.texts[i] for i in places], None, [str(truths[i]) for i in places])

    def take(self, places: Sequence[int]) -> JointRows:
        """Returns some of the texts."""
        return JointRows(
            [self.texts[i] for i in places],
            [self.words[i] for i in places],
            {task: [truths[i] for i in places] for task, truths in self.truths.items()},
        )


def keys_of(part: Part) -> list[str]:
    """Returns what makes two rows the same text: their characters without white space."""
    texts = part.texts if isinstance(part, Rows) else [" ".join(s.words) for s in part]
    return ["".join(text.split()) for text in texts]


def in_one_split_each(opened: Mapping[str, Opened]) -> tuple[dict[str, dict[Split, Part]], list[str]]:
    """Returns the rows of each task by split, so that no task learns from a text that another one holds out.

    Test splits that data brings decide, then the order of the tasks. A text to learn from that is held out
    moves there, and is left out where its data brings a test split.
    """
    bring = [name for name in opened if opened[name].brings_test]
    home: dict[str, tuple[Split, str]] = {}  # by text: its split, and the task that says so
    held_out_first: tuple[Split, ...] = ("test", "validation", "train")
    turns = [(name, split) for split in held_out_first for name in bring]
    turns += [(name, split) for name in opened if name not in bring for split in held_out_first]
    for name, split in turns:
        for key in keys_of(opened[name].splits[split]):
            home.setdefault(key, (split, name))
    for name, one in opened.items():
        if isinstance(one, Table) and name not in bring:
            # A label that would lose its last text to learn from keeps all of them.
            rows = [
                row for part in one.splits.values() for row in zip(keys_of(part), part.labels, strict=True)
            ]
            known = {label for key, label in rows if home[key][0] == "train"}
            home |= {
                key: ("train", "") for key, label in rows if label not in known and home[key][1] not in bring
            }
    parts: dict[str, dict[Split, Part]] = {}
    notes = []
    for name, one in opened.items():
        places: dict[Split, list[Part]] = {split: [] for split in SPLITS}
        left_out = 0
        for split, part in one.splits.items():
            to: dict[Split | None, list[int]] = {}
            for place, key in enumerate(keys_of(part)):
                there: Split | None = split if home[key][1] == name else home[key][0]
                if name in bring and there != split:
                    there = None if split == "train" else split
                to.setdefault(there, []).append(place)
            left_out += len(to.pop(None, []))
            for target, some in to.items():
                places[target or split].append(_take(part, some))
        parts[name] = {split: _together(places[split], one) for split in SPLITS}
        if left_out:
            rows_are = "1 row was" if left_out == 1 else f"{left_out:,} rows were"
            notes.append(f"{name}: {rows_are} left out of training: another task holds the same text out.")
    return parts, notes


def _take(part: Part, places: Sequence[int]) -> Part:
    return part.take(places) if isinstance(part, Rows) else [part[i] for i in places]


def _together(parts: Sequence[Part], opened: Opened) -> Part:
    if isinstance(opened, Tagged):
        return [sentence for part in parts if isinstance(part, list) for sentence in part]
    rows = [part for part in parts if isinstance(part, Rows)]
    return Rows([t for part in rows for t in part.texts], None, [x for part in rows for x in part.labels])


def join(parts: Mapping[str, Part]) -> JointRows:
    """Returns the rows of several tasks as one, each text once; a text twice in a task stays there twice."""
    rows = JointRows(truths={name: [] for name in parts})
    places: dict[tuple[str, int], int] = {}
    cut: dict[int, tuple[str, ...]] = {}  # texts whose words a task gives
    for name, part in parts.items():
        seen: Counter[str] = Counter()
        texts = part.texts if isinstance(part, Rows) else [" ".join(s.words) for s in part]
        for number, (key, text) in enumerate(zip(keys_of(part), texts, strict=True)):
            seen[key] += 1
            words = None if isinstance(part, Rows) else part[number].words
            while words and cut.get(places.get((key, seen[key]), -1), words) != words:
                seen[key] += 1  # the same text in other words is another row
            place = places.setdefault((key, seen[key]), len(rows))
            if place == len(rows):
                rows.texts.append(text)
                rows.words.append(())
                for truths in rows.truths.values():
                    truths.append(None)
            if words:
                cut[place] = rows.words[place] = words
            else:
                rows.texts[place] = text
            rows.truths[name][place] = part.labels[number] if isinstance(part, Rows) else part[number].tags
    uncut = [place for place in range(len(rows)) if place not in cut]
    if uncut:
        found = split_words(tf.constant([rows.texts[place] for place in uncut])).to_list()
        for place, words in zip(uncut, found, strict=True):
            rows.words[place] = tuple(word.decode() for word in words) or ("",)
    return rows
