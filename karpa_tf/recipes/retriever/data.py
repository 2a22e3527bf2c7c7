"""Entries, and texts that ask for their answers."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from karpa_tf.data.cells import read_sheet
from karpa_tf.data.sources import DataRecord, Split
from karpa_tf.data.tables import Columns, Rows, filled_columns, open_table, open_test_rows
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine

from . import RetrieverSettings


@dataclass(frozen=True, repr=False)
class Entries(InALine):
    """What is looked for.

    Attributes:
        ids: each once.
        texts: that texts are compared with.
        answers: of each entry; several may have the same one.
    """

    ids: list[str]
    texts: list[str]
    answers: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> Rows:
        """Their texts, with the answers as labels."""
        return Rows(self.texts, None, self.answers)

    def as_csv(self, config: RetrieverSettings) -> str:
        """Returns them as a table with the columns that the settings name."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([config.entry, config.text, config.answer])
        writer.writerows(zip(self.ids, self.texts, self.answers, strict=True))
        return file.getvalue()


@dataclass(frozen=True, repr=False)
class Questions(InALine):
    """Texts with their right answers, and the entries that have these.

    Attributes:
        rows: the answers are their labels.
        entries: among which is looked for.
    """

    rows: Rows
    entries: Entries

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, repr=False)
class RetrieverData(InALine):
    """Texts by split.

    Attributes:
        splits: the texts; `test` may be empty.
        brings_test: the data holds a test split of its own.
        record: what a run notes of it.
        notes: what to say of how it was read.
    """

    splits: dict[Split, Questions]
    brings_test: bool
    record: DataRecord
    notes: list[str] = field(default_factory=list)


def columns_of(config: RetrieverSettings) -> Columns:
    """Returns the columns of texts and their answers."""
    return Columns(config.text, config.answer, redact=config.redact, setting="answer")


def read_entries(path: str, config: RetrieverSettings, advice: str = "name yours with --{}") -> Entries:
    """Reads a table of entries.

    Args:
        path: of the file.
        config: names the columns.
        advice: what to do where a column is missing, with {} for its setting.

    Raises:
        UserError: it cannot be read or is empty, lacks a column, an id, a text or an answer, or has an id
            twice.
    """
    fields = {"entry": config.entry, "text": config.text, "answer": config.answer}
    if not Path(path).exists():
        beside = [file.name for file in Path(path).parent.glob("*")]
        raise UserError(
            f'There is no table of entries "{path}"{did_you_mean(Path(path).name, beside)} Give a file with '
            f"the columns {', '.join(fields.values())}."
        )
    sheet = read_sheet(Path(path), list(fields.values()))
    wanted = [(name, advice.format(setting)) for setting, name in fields.items()]
    ids, texts, answers = filled_columns(sheet, wanted, [config.entry, config.answer])
    first: dict[str, int] = {}
    for name, number in zip(ids, sheet.numbers, strict=True):
        if name in first:
            raise UserError(
                f'{path} has two entries of the id "{name}", in {sheet.unit}s {first[name]} and {number}: '
                "give each an id of its own."
            )
        first[name] = number
    rows = Rows(texts, None, answers)
    return Entries(ids, (rows.redacted() if config.redact else rows).texts, answers)


def check_answers(rows: Rows, entries: Entries, where: str) -> None:
    """Raises a UserError if a row asks for an answer that no entry has; `where` is what it calls the rows."""
    known = set(entries.answers)
    missing = Counter(answer for answer in rows.labels if answer not in known)
    if missing:
        answer, count = missing.most_common(1)[0]
        rows_of_it = "1 row" if count == 1 else f"{count} rows"
        others = f" and {len(missing) - 1} more such answers" if len(missing) > 1 else ""
        raise UserError(
            f'{where} asks for the answer "{answer[:80]}" ({rows_of_it}){others}, which none of the '
            f"{len(entries):,} entries has{did_you_mean(answer, known)} Add an entry with it, or leave such "
            "rows out."
        )


def open_questions(config: RetrieverSettings) -> RetrieverData:
    """Opens the texts and the entries that the settings name.

    Raises:
        UserError: they cannot be read, or a text asks for an answer that no entry has.
    """
    entries, notes = None, []
    if config.entries:
        entries = read_entries(config.entries, config)
        notes = [f"{config.entries}: {len(entries):,} entries, {len(set(entries.answers)):,} answers"]
    table = open_table(
        config.data,
        columns_of(config),
        validation_share=config.validation_share,
        test_share=config.test_share,
    )
    if entries is None:
        known = table.splits["train"]
        entries = Entries([str(number + 1) for number in range(len(known))], known.texts, known.labels)
    for split, rows in table.splits.items():
        check_answers(rows, entries, f"{config.data} ({split} split)")
    digest = hashlib.blake2b(f"{table.fingerprint} {entries.as_csv(config)}".encode(), digest_size=16)
    sizes = {**table.record.sizes, "entries": len(entries)}
    record = dataclasses.replace(
        table.record, fingerprint=digest.hexdigest(), sizes=sizes, labels=sorted(set(entries.answers))
    )
    splits = {split: Questions(rows, entries) for split, rows in table.splits.items()}
    return RetrieverData(splits, table.brings_test, record, [*notes, *table.notes])


def open_others(source: str, config: RetrieverSettings, entries: Entries) -> tuple[Questions, Sequence[str]]:
    """Opens other texts to evaluate on; returns them, and what to say of how they were read.

    Raises:
        UserError: they cannot be read, or one asks for an answer that no entry has.
    """
    rows = open_test_rows(source, columns_of(config))
    check_answers(rows, entries, source)
    return Questions(rows, entries), rows.notes


def to_learn_from(part: Questions) -> Rows:
    """Returns the texts of a part and those of its entries, each text once for an answer."""
    both = part.entries.rows.join(part.rows)
    pairs = list(dict.fromkeys(zip(both.texts, both.labels, strict=True)))
    return Rows([text for text, _ in pairs], None, [label for _, label in pairs])
