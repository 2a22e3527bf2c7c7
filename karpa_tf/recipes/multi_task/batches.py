"""The rows of several tasks in batches, and what a model gives for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from karpa_tf.data.batches import Batches, bucket_widths, mixed_batches
from karpa_tf.data.sequences import Sequences, encode_words, rows_of, sequence_batches
from karpa_tf.recipes.families.encoders import Examples, Task
from karpa_tf.recipes.families.examples import Texts, Words

from . import MultiTaskSettings
from .data import heads_of
from .joining import JointRows

MultiTask = Task[MultiTaskSettings]

# Rows that are evaluated at once.
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class JointExamples(Examples):
    """Rows of several tasks in batches: labels and weights by task.

    Attributes:
        heads: what each task says of its own rows; one without rows is not there. None in training.
        joint: by task the places, among its own rows, of those that all tasks say something of.
    """

    heads: dict[str, Texts | Words]
    joint: dict[str, np.ndarray]

    def of(self, outputs: Iterable[Any], task: str) -> list[Any]:
        """Returns outputs as those of one task alone."""
        return [(batch[task], None, None) for batch, *_ in outputs]


def reads_cases(task: MultiTask) -> bool:
    """Whether the model reads what letters words have: to tag them, where its vocabulary hides that."""
    return task.wordpiece.lowercase and any(head.kind == "words" for head in heads_of(task.names).values())


class _Coded:
    """Rows in pieces, and the labels of each task at them.

    Args:
        task: of the model.
        rows: the texts.

    Attributes:
        sequences: rows of pieces; of a long text several, of which a label is for the first.
        text: int (rows,), of each row of pieces.
        labels, weights: by task (rows,), or (pieces,) where it tags words.
        given: by task the texts that it says something of.
    """

    def __init__(self, task: MultiTask, rows: JointRows) -> None:
        self.rows, self.heads = rows, heads_of(task.names)
        self.sequences, self.places = encode_words(task.wordpiece, rows.words, task.config.sequence_length)
        if not reads_cases(task):
            self.sequences = dataclasses.replace(self.sequences, case_ids=None)
        counts = np.array([len(words) for words in rows.words])
        self.word_row = np.searchsorted(self.sequences.offsets, self.places, side="right") - 1
        self.word_text = np.repeat(np.arange(len(rows)), counts)
        self.begins = self.word_row[np.cumsum(counts) - counts]
        self.text = self.word_text[np.searchsorted(self.places, self.sequences.offsets[:-1])]
        self.given = {name: rows.places(name) if name in rows.truths else [] for name in self.heads}
        self.labels: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        for name, head in self.heads.items():
            ids = {label: number for number, label in enumerate(head.names)}
            truths: list[Any] = self.truths(name)
            if head.kind == "words":
                size, at = len(self.sequences.token_ids), self.places[self.words_of(name)]
                truths = list(chain.from_iterable(truths))
            else:
                size, at = len(self.sequences), self.begins[self.given[name]]
            self.labels[name], self.weights[name] = np.zeros(size, np.int32), np.zeros(size, np.float32)
            # A type that training never saw cannot be predicted; it still counts as missed.
            self.labels[name][at] = [ids.get(truth, 0) for truth in truths]
            self.weights[name][at] = 1.0

    def truths(self, name: str) -> list[Any]:
        return [self.rows.truths[name][place] for place in self.given[name]]

    def words_of(self, name: str) -> np.ndarray:
        """Returns bool (words,): those that a task tags."""
        return np.isin(self.word_text, self.given[name])

    def view(self, name: str, batches: Batches, order: np.ndarray) -> Texts | Words:
        """Returns what a task says of its own rows, in batches to evaluate."""
        if self.heads[name].kind == "texts":
            at = self.begins[self.given[name]]
            own = np.full(len(self.sequences) + 1, -1)  # the last is for what fills up
            own[at] = np.arange(len(at))
            return Texts(batches=batches, order=own[order], labels=self.labels[name][at])
        mine = self.words_of(name)
        row = self.word_row[mine]
        place = self.places[mine] - self.sequences.offsets[row]
        tags = [list(tags) for tags in self.truths(name)]
        return Words(batches=batches, order=order, tags=tags, row=row, place=place)

    def joint(self) -> dict[str, np.ndarray]:
        """Returns by task the places, among its own rows, of those that all tasks say something of."""
        both = self.rows.places(*self.heads) if set(self.heads) <= set(self.rows.truths) else []
        return {name: np.flatnonzero(np.isin(self.given[name], both)) for name in self.heads}

    def some(self, kept: np.ndarray) -> tuple[Sequences, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns some rows of pieces, with their labels and weights."""
        whole, pieces = self.sequences, np.repeat(kept, self.sequences.lengths)
        cases = None if whole.case_ids is None else whole.case_ids[pieces]
        offsets = np.concatenate([[0], np.cumsum(whole.lengths[kept])])
        part = Sequences(whole.token_ids[pieces], whole.segment_ids[pieces], offsets, case_ids=cases)
        labels, weights = (
            {name: fact[pieces if len(fact) == len(pieces) else kept] for name, fact in facts.items()}
            for facts in (self.labels, self.weights)
        )
        return part, labels, weights


def batch_rows(task: MultiTask, rows: JointRows, training: bool) -> JointExamples:
    """Cuts texts into pieces, word by word, and puts texts of like length into a batch.

    A batch to train on is of texts that the same tasks say something of.
    """
    coded = _Coded(task, rows)
    if training:
        batches, note = _to_train(task, coded)
        return JointExamples(batches=batches, order=np.zeros(0, int), note=note, heads={}, joint={})
    order = rows_of(coded.sequences, _AT_ONCE)
    batches = sequence_batches(
        coded.sequences, coded.labels, coded.weights, task.wordpiece, batch_size=_AT_ONCE
    )
    views = {name: coded.view(name, batches, order) for name, given in coded.given.items() if given}
    return JointExamples(batches=batches, order=order, heads=views, joint=coded.joint())


def _to_train(task: MultiTask, coded: _Coded) -> tuple[Batches, str]:
    config, names = task.config, list(coded.heads)
    said = np.stack([np.isin(np.arange(len(coded.rows)), coded.given[name]) for name in names], axis=1)
    kinds, kind = np.unique(said, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    # Of a long text that no task tags, what is behind its first row of pieces teaches nothing.
    kept = np.zeros(len(coded.sequences), bool)
    kept[coded.begins] = True
    for name, head in coded.heads.items():
        if head.kind == "words":
            kept[coded.word_row[coded.words_of(name)]] = True
    widths = bucket_widths(coded.sequences.lengths[kept], config.buckets)
    sets = []
    for number in range(len(kinds)):
        part, labels, weights = coded.some(kept & (kind[coded.text] == number))
        made = sequence_batches(
            part,
            labels,
            weights,
            task.wordpiece,
            batch_size=config.batch_size,
            seed=config.seed,
            buckets=widths[: int(np.searchsorted(widths, part.lengths.max())) + 1],
            token_dropout=config.token_dropout,
        )
        sets.append(made)
    counts = np.bincount(kind, minlength=len(kinds))
    shown = [f"{count:,} of {_both(names, here)}" for count, here in zip(counts, kinds, strict=True)]
    return mixed_batches(sets, temperature=config.temperature, seed=config.seed), (
        f"Rows to learn from: {', '.join(shown)}"
    )


def _both(names: Sequence[str], here: Sequence[bool]) -> str:
    return " and ".join(name for name, given in zip(names, here, strict=True) if given)
