"""Labelled texts from tables: CSV and TSV files, folders of them, TFDS, and the embedded intents."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.data.sources import SPLITS, Split, open_tfds
from karpa_tf.errors import UserError, did_you_mean

# Names of files in a folder, by split.
FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# How rows are split is part of the data: it must not change with a run's seed.
_SPLIT_SEED = 21
_NOTHING = ("", "nan")
# A cell may be a whole document; csv's own bound is 131,072 characters.
_LONGEST_CELL = 1 << 28


@dataclass(frozen=True)
class Rows:
    """Labelled texts.

    Attributes:
        texts: the texts.
        texts_b: the second text of each pair; None: no pairs.
        labels: a label each.
    """

    texts: list[str]
    texts_b: list[str] | None
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def keys(self) -> list[tuple[str, str]]:
        """What makes two rows the same text: both texts, but for case and white space."""
        second = self.texts_b or [""] * len(self.texts)
        return [
            (" ".join(a.casefold().split()), " ".join(b.casefold().split()))
            for a, b in zip(self.texts, second, strict=True)
        ]

    def take(self, index: Sequence[int]) -> Rows:
        texts_b = None if self.texts_b is None else [self.texts_b[i] for i in index]
        return Rows([self.texts[i] for i in index], texts_b, [self.labels[i] for i in index])


@dataclass(frozen=True)
class Table:
    """Rows by split.

    Attributes:
        name: what the user typed.
        splits: the rows; `test` may be empty.
        brings_test: the data holds a test split of its own.
    """

    name: str
    splits: dict[Split, Rows]
    brings_test: bool

    @property
    def fingerprint(self) -> str:
        """Hash of the rows and of how they are split."""
        digest = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            rows = self.splits[split]
            digest.update(repr((split, rows.texts, rows.texts_b, rows.labels)).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; `text_b` is empty where there are no pairs."""

    text: str = "text"
    label: str = "label"
    text_b: str = ""


def open_table(
    source: str,
    columns: Columns | None = None,
    *,
    validation_share: float = 0.05,
    test_share: float = 0.05,
) -> Table:
    """Opens labelled texts and splits them.

    Args:
        source: `embedded` (the intents), a .csv or .tsv file, a folder with train.csv and perhaps
            validation.csv and test.csv, or `tfds:NAME`.
        columns: names of the columns.
        validation_share: share of the training rows that become the validation split where the data
            brings none.
        test_share: the same for the test split.

    Returns:
        Rows by split, the splits stratified by label. Rows of the same text stay on one side, and every
        label keeps at least one text in training.

    Raises:
        UserError: the source cannot be read, lacks a column, a text or a label, or has one label only.
    """
    given = _read(source, columns or Columns())
    brings_test = "test" in given
    rest = given.get("train") or given["test"]
    shares = {
        "validation": 0.0 if "validation" in given else validation_share,
        "test": 0.0 if brings_test else test_share,
    }
    cut = split_rows(rest, shares["validation"], shares["test"])
    splits = {**cut, **given, "train": cut["train"]}
    if source == "embedded":
        splits, brings_test = given, False
    labels = set(splits["train"].labels)
    if len(labels) < 2:
        raise UserError(
            f"{source} has one label only ({', '.join(sorted(labels))}): there is nothing to tell apart."
        )
    return Table(source, splits, brings_test)


def open_test_rows(source: str, columns: Columns | None = None) -> Rows:
    """Returns what `evaluate --data` reads: the data's own test split, or else every row."""
    given = _read(source, columns or Columns())
    if source != "embedded" and "test" in given:
        return given["test"]
    every = [rows for rows in given.values()]
    texts_b = None if every[0].texts_b is None else [t for rows in every for t in rows.texts_b or []]
    return Rows([t for r in every for t in r.texts], texts_b, [x for r in every for x in r.labels])


def shared_rows(train: Rows, test: Rows) -> int:
    """Returns how many rows of `test` have a text that `train` has as well."""
    seen = set(train.keys())
    return sum(key in seen for key in test.keys())  # noqa: SIM118


def split_rows(rows: Rows, validation_share: float, test_share: float) -> dict[Split, Rows]:
    """Cuts validation and test out of rows, stratified by label, always in the same way."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, key in enumerate(rows.keys()):
        groups.setdefault(key, []).append(index)
    # Systematic sampling: sorted by label, every so manieth text goes to a split.
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(groups))
    shuffled = [list(groups.values())[i] for i in order]
    shuffled.sort(key=lambda group: rows.labels[group[0]])
    parts: dict[Split, list[int]] = {"train": [], "validation": [], "test": []}
    kept: set[str] = set()
    spare: list[tuple[Split, list[int]]] = []
    for number, group in enumerate(shuffled):
        split: Split = "train"
        for name, share, shift in (("validation", validation_share, 0.5), ("test", test_share, 0.0)):
            if math.floor((number + 1) * share + shift) > math.floor(number * share + shift):
                split = name  # type: ignore[assignment]
        if split == "train":
            parts[split] += group
            kept.add(rows.labels[group[0]])
        else:
            spare.append((split, group))
    for split, group in spare:
        label = rows.labels[group[0]]
        parts["train" if label not in kept else split] += group
        kept.add(label)
    return {split: rows.take(sorted(index)) for split, index in parts.items()}


# --- Reading --------------------------------------------------------------------------------------


def _read(source: str, columns: Columns) -> dict[Split, Rows]:
    if source == "embedded":
        return _read_embedded()
    if source.startswith("tfds:"):
        return _read_tfds(source, columns)
    path = Path(source)
    if path.is_dir():
        files = find_splits(path, (".csv", ".tsv"))
        return {split: read_table(file, columns) for split, file in files.items()}
    if not path.exists():
        raise UserError(
            f'There is no file or folder "{source}"; give a .csv or .tsv with a header, a folder with '
            "train.csv, tfds:NAME, or embedded."
        )
    return {"train": read_table(path, columns)}


def find_splits(folder: Path, suffixes: tuple[str, ...]) -> dict[Split, Path]:
    """Returns the files of a folder by split: train.csv, validation.csv (or valid, val, dev), test.csv.

    Raises:
        UserError: there is no training file, or more than one for a split.
    """
    found: dict[Split, Path] = {}
    for path in sorted(folder.iterdir()):
        for split, names in FILES.items():
            if path.suffix in suffixes and path.stem.lower() in names:
                if split in found:
                    raise UserError(
                        f"{folder} has two files for {split}: {found[split].name} and {path.name}."
                    )
                found[split] = path
    if "train" not in found:
        raise UserError(f"{folder} holds no training data: there is no train{suffixes[0]} in it.")
    return {split: found[split] for split in SPLITS if split in found}


def read_table(path: Path, columns: Columns) -> Rows:
    """Reads a .csv or .tsv file with a header: UTF-8 with or without a byte order mark, any line ends.

    Raises:
        UserError: it cannot be read, or lacks a column, a text or a label.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise UserError(f"{path} is neither a .csv nor a .tsv file; name it after what it is.")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    wanted = [name for name in (columns.text, columns.label, columns.text_b) if name]
    csv.field_size_limit(min(_LONGEST_CELL, sys.maxsize))
    table: list[list[str]] = []
    empty: dict[str, list[int]] = {name: [] for name in wanted}
    try:
        text = path.read_text(encoding="utf-8-sig")
        # newline="": line ends inside a quoted field stay what they are, but for Windows' own.
        reader = csv.DictReader(io.StringIO(text.replace("\r\n", "\n"), newline=""), delimiter=delimiter)
        names = list(reader.fieldnames or [])
        for name in wanted:
            if name not in names:
                flag = {columns.text: "text", columns.label: "label"}.get(name, "text_b")
                raise UserError(
                    f'{path} has no column "{name}"{did_you_mean(name, names)} Its columns: '
                    f"{', '.join(map(repr, names)) or 'none'}; name yours with --{flag}."
                )
        for row in reader:
            cells = [(row[name] or "").strip() for name in wanted]
            for name, cell in zip(wanted, cells, strict=True):
                if cell.lower() in _NOTHING:
                    empty[name].append(reader.line_num)
            table.append(cells)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it."
        ) from None
    except csv.Error as error:
        raise UserError(f"{path} is not a proper {path.suffix} file: {error}.") from None
    if not table:
        raise UserError(f"{path} is empty: it has no rows below its header.")
    for name, lines in empty.items():
        if lines:
            count = "1 row has" if len(lines) == 1 else f"{len(lines)} rows have"
            raise UserError(
                f'{path}: {count} nothing in the column "{name}" (first: line {lines[0]}); fill in or delete.'
            )
    texts, labels, *second = (list(column) for column in zip(*table, strict=True))
    return Rows(texts, second[0] if second else None, labels)


def _read_embedded() -> dict[Split, Rows]:
    from karpa_tf.data.intents import embedded_intents

    splits: dict[Split, Rows] = {}
    for split in SPLITS:
        mine = [sentence for sentence in embedded_intents() if sentence.split == split]
        splits[split] = Rows([" ".join(s.words) for s in mine], None, [s.intent for s in mine])
    return splits


def _read_tfds(source: str, columns: Columns) -> dict[Split, Rows]:
    builder = open_tfds(source.removeprefix("tfds:"))
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    for name in filter(None, (columns.text, columns.label, columns.text_b)):
        if name not in features:
            raise UserError(
                f'{source} has no feature "{name}"{did_you_mean(name, features)} It has: '
                f"{', '.join(features)}."
            )
    kind = features[columns.label]

    def rows(split: str) -> Rows:
        texts, second, labels = [], [], []
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            texts.append(_text(example[columns.text]))
            label = example[columns.label]
            labels.append(kind.int2str(int(label)) if hasattr(kind, "int2str") else _text(label))
            if columns.text_b:
                second.append(_text(example[columns.text_b]))
        return Rows(texts, second if columns.text_b else None, labels)

    return {split: rows(split) for split in SPLITS if split in builder.info.splits}


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


# --- Labels ---------------------------------------------------------------------------------------


def label_ids(labels: Sequence[str], names: Sequence[str], where: str) -> np.ndarray:
    """Returns the places int32 (rows,) of labels in `names`.

    Raises:
        UserError: a label that is not among them.
    """
    place = {name: index for index, name in enumerate(names)}
    unknown = Counter(label for label in labels if label not in place)
    if unknown:
        label, count = next(iter(unknown.most_common(1)))
        more = f", and {len(unknown) - 1} more like it" if len(unknown) > 1 else ""
        raise UserError(
            f'{where} has the label "{label}" ({count} rows{more}), which training never saw'
            f"{did_you_mean(label, names)} It knows: {', '.join(islice(names, 10))}"
            f"{' ...' if len(names) > 10 else ''}."
        )
    return np.array([place[label] for label in labels], np.int32)
