"""The data of several tasks: which texts there are, and what each task says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karpa_tf.data.cells import TABLES, read_text
from karpa_tf.data.sources import SPLITS, DataRecord, Split, open_tfds
from karpa_tf.data.tables import FILES, Columns, Rows, label_ids, no_such_path, open_table, open_test_rows
from karpa_tf.data.tags import SUFFIXES, Tagged, open_tagged, open_test_sentences, tag_names
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.models.bert_multi_task import Kind
from karpa_tf.recipes.families.folds import held_out_shares

from . import EMBEDDED, MultiTaskSettings, named_values
from .joining import JointRows, Opened, Part, in_one_split_each, join

# What stands between the name of a task and a label or tag of it, by which they are told apart.
_BETWEEN: dict[Kind, str] = {"texts": ": ", "words": "/"}


@dataclass(frozen=True)
class Head:
    """A task of a model.

    Attributes:
        kind: whether it labels texts or tags words.
        names: its labels or tags, in the order of its logits.
    """

    kind: Kind
    names: list[str]


def heads_of(labels: Sequence[str]) -> dict[str, Head]:
    """Returns the tasks of a model by name, from the labels of all: `intents: music`, `slots/B-city`."""
    heads: dict[str, Head] = {}
    for label in labels:
        kind: Kind = "texts" if _BETWEEN["texts"] in label.partition("/")[0] else "words"
        name, _, own = label.partition(_BETWEEN[kind])
        heads.setdefault(name, Head(kind, [])).names.append(own)
    return heads


@dataclass(frozen=True, repr=False)
class Tasks(InALine):
    """The rows of all tasks by split.

    Attributes:
        splits: the rows; `test` may be empty.
        brings_test: whether the data of every task holds a test split of its own.
        record: what a run notes of the data; its labels are those of all tasks.
        notes: lines that the user should read.
    """

    splits: dict[Split, JointRows]
    brings_test: bool
    record: DataRecord
    notes: list[str]


def open_tasks(config: MultiTaskSettings) -> Tasks:
    """Opens the data of a run; the same text is in one split, whatever its task.

    Raises:
        UserError: what a task names cannot be read, is of no known kind, or has no rows to learn from.
    """
    columns = Columns(config.text, config.label, redact=config.redact)
    shares: dict[str, Any] = held_out_shares(config)
    opened: dict[str, Opened] = {}
    for name, source in config.sources().items():
        if kind_of(name, source, columns) == "texts":
            opened[name] = open_table(source, columns, **shares)
        else:
            how: dict[str, Any] = {"broken": config.broken, "redact": config.redact}
            opened[name] = open_tagged(source, **shares, **how)
    parts, notes = in_one_split_each(opened)
    labels = []
    for name, one in opened.items():
        known = parts[name]["train"]
        if not len(known):
            raise UserError(f"{name} has no rows to learn from: the other tasks hold all of its texts out.")
        words = isinstance(one, Tagged)
        names = tag_names(known) if isinstance(known, list) else sorted(set(known.labels))
        labels += [f"{name}{_BETWEEN['words' if words else 'texts']}{x}" for x in names]
        for split, part in parts[name].items():
            if isinstance(part, Rows):  # before training, not after it
                label_ids(part.labels, names, f"{one.name} ({split} split)")
    splits = {split: join({name: part[split] for name, part in parts.items()}) for split in SPLITS}
    digest = hashlib.blake2b(digest_size=16)
    for split in SPLITS:
        rows = splits[split]
        digest.update(repr((split, rows.texts, rows.words, rows.truths)).encode())
    record = DataRecord(digest.hexdigest(), {split: len(splits[split]) for split in SPLITS}, labels)
    every = [note for one in opened.values() for note in one.notes]
    return Tasks(splits, all(one.brings_test for one in opened.values()), record, every + notes)


def open_others(
    config: MultiTaskSettings, heads: Mapping[str, Head], data: str
) -> tuple[JointRows, list[str]]:
    """Opens other data to evaluate on, of some of the tasks or all; returns its rows and what to say of them.

    Raises:
        UserError: it names another task, or has labels or types that training never saw.
    """
    columns = Columns(config.text, config.label, redact=config.redact)
    notes: list[str] = []
    given = {name: EMBEDDED for name in heads} if data == EMBEDDED else named_values("--data", data, "PATH")
    parts: dict[str, Part] = {}
    for name, source in given.items():
        if name not in heads:
            raise UserError(f"--data: the run has no task {name}. It has: {', '.join(heads)}.")
        head = heads[name]
        if head.kind == "words":
            parts[name] = sentences = open_test_sentences(source, config.broken, notes, config.redact)
            known = {tag[2:] for tag in head.names}
            if unseen := {tag[2:] for sentence in sentences for tag in sentence.tags} - known:
                raise UserError(
                    f"{source} has entities of the type {', '.join(sorted(unseen))}, which training never "
                    "saw."
                )
        else:
            parts[name] = rows = open_test_rows(source, columns)
            label_ids(rows.labels, head.names, source)
            notes += rows.notes
    return join(parts), notes


def kind_of(name: str, source: str, columns: Columns) -> Kind:
    """Returns whether a task labels texts or tags words, by its data.

    Raises:
        UserError: it is neither a table nor a file in CoNLL columns.
    """
    if source == EMBEDDED:
        return "texts" if name == "intents" else "words"
    wanted = {columns.text, columns.label}
    if source.startswith("tfds:"):
        return "texts" if wanted <= set(open_tfds(source.removeprefix("tfds:")).info.features) else "words"
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [f for f in files if f.stem.lower() in FILES["train"]] if path.is_dir() else files
    for file in files:
        suffix = file.suffix.lower()
        if suffix == ".tsv" and file.is_file():
            heading = read_text(file).partition("\n")[0].split("\t")
            return "texts" if wanted <= {cell.strip().strip('"') for cell in heading} else "words"
        if suffix in (*TABLES, *SUFFIXES):
            return "texts" if suffix in TABLES else "words"
    if path.is_dir():
        raise UserError(f"{source} holds no training data: there is no train.csv or train.conll in it.")
    if not path.exists():
        raise no_such_path(source, "a table of texts and labels, a file in CoNLL columns, a folder of either")
    raise UserError(
        f"data: {name} must be a table of texts and labels ({', '.join(TABLES)}) or tagged words "
        f"({', '.join(SUFFIXES)}). Received: {source}."
    )
