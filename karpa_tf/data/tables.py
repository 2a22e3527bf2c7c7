"""Labelled texts from tables: CSV and TSV files, folders of them, TFDS, and the embedded intents."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from karpa_tf.data.sources import SPLITS, DataRecord, Split, open_tfds
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

T = TypeVar("T")


class Labelled(Protocol):
    """Rows that have a label each and can be split: texts, images."""

    @property
    def labels(self) -> list[str]: ...

    def keys(self) -> Sequence[Any]:
        """What makes two rows the same."""

    def take(self: L, index: Sequence[int]) -> L:
        """Returns some of the rows."""


L = TypeVar("L", bound=Labelled)


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

    @property
    def record(self) -> DataRecord:
        labels = sorted(set(self.splits["train"].labels))
        return DataRecord(self.fingerprint, {k: len(v) for k, v in self.splits.items()}, labels)


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
    shares = shares_to_cut(given, validation_share, test_share)
    cut = split_rows(given["train"], *shares)
    splits = {**cut, **given, "train": cut["train"]}
    labels = set(splits["train"].labels)
    if len(labels) < 2:
        raise UserError(
            f"{source} has one label only ({', '.join(sorted(labels))}): there is nothing to tell apart."
        )
    if not len(splits["validation"]) and shares[0]:
        raise UserError(
            f"{source} has too few texts to hold one out for validation: training needs one of each label. "
            f"Received: {len(given['train'])} rows, {len(labels)} labels."
        )
    return Table(source, splits, "test" in given)


def open_test_rows(source: str, columns: Columns | None = None) -> Rows:
    """Returns what `evaluate --data` reads: the data's own test split, or else every row."""
    given = _read(source, columns or Columns())
    if "test" in given:
        return given["test"]
    every = list(given.values())
    texts_b = None if every[0].texts_b is None else [t for rows in every for t in rows.texts_b or []]
    return Rows([t for r in every for t in r.texts], texts_b, [x for r in every for x in r.labels])


def shared_rows(train: Labelled, test: Labelled) -> int:
    """Returns how many rows of `test` are in `train` as well: the same text, the same pixels."""
    seen = set(train.keys())
    return sum(key in seen for key in test.keys())  # noqa: SIM118


def shares_to_cut(
    given: Mapping[Split, Any], validation_share: float, test_share: float
) -> tuple[float, float]:
    """Returns the shares of training that become validation and test: 0 for a split that the data brings.

    Raises:
        UserError: they leave nothing to learn from.
    """
    validation_share = 0.0 if "validation" in given else validation_share
    test_share = 0.0 if "test" in given else test_share
    if validation_share + test_share >= 1:
        raise UserError(
            "validation_share and test_share leave nothing to learn from. "
            f"Received: {validation_share:g} and {test_share:g}."
        )
    return validation_share, test_share


def split_rows(rows: L, validation_share: float, test_share: float) -> dict[Split, L]:
    """Cuts validation and test out of rows, stratified by label, always in the same way."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(rows.keys()):
        groups.setdefault(key, []).append(index)
    # Systematic sampling: sorted by label, every so manieth text goes to a split.
    every = list(groups.values())
    shuffled = [every[i] for i in np.random.default_rng(_SPLIT_SEED).permutation(len(every))]
    shuffled.sort(key=lambda group: rows.labels[group[0]])
    labels = [{rows.labels[i] for i in group} for group in shuffled]
    homes: list[Split] = []
    due: list[Split] = []
    shares: list[tuple[Split, float, float]] = [
        ("validation", validation_share, 0.5),
        ("test", test_share, 0),
    ]
    for number in range(len(shuffled)):
        for split, share, shift in shares:
            if math.floor((number + 1) * share + shift) > math.floor(number * share + shift):
                due.append(split)
        homes.append(due.pop(0) if due else "train")
    # Every label keeps a text in training.
    kept = Counter(x for home, names in zip(homes, labels, strict=True) if home == "train" for x in names)
    for place, names in enumerate(labels):
        if homes[place] != "train" and not all(kept[name] for name in names):
            homes[place] = "train"
            kept.update(names)
    if validation_share and "validation" not in homes:
        # Of so few texts none was due: take one that training can spare.
        for place, names in enumerate(labels):
            if homes[place] == "train" and all(kept[name] > 1 for name in names):
                homes[place] = "validation"
                break
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for home, group in zip(homes, shuffled, strict=True):
        parts[home] += group
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
        raise no_such_path(source, "a .csv or .tsv with a header, a folder with train.csv")
    return {"train": read_table(path, columns)}


def no_such_path(source: str, wanted: str) -> UserError:
    """Returns the error of a path that leads nowhere; it names what is beside it and sounds alike."""
    path = Path(source)
    near = did_you_mean(path.name, [*(x.name for x in path.parent.glob("*")), "embedded"])
    return UserError(f'There is no file or folder "{source}"{near} Give {wanted}, tfds:NAME, or embedded.')


def find_splits(folder: Path, suffixes: tuple[str, ...]) -> dict[Split, Path]:
    """Returns the files of a folder by split: train.csv, validation.csv (or valid, val, dev), test.csv.

    Raises:
        UserError: there is no training file, or more than one for a split.
    """
    found: dict[Split, Path] = {}
    for path in sorted(folder.iterdir()):
        for split, names in FILES.items():
            if path.suffix.lower() in suffixes and path.stem.lower() in names and path.is_file():
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
        UserError: it cannot be read, has a row that does not fit, or lacks a column, a text or a label.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv"):
        raise UserError(f"{path} is neither a .csv nor a .tsv file; name it after what it is.")
    try:
        lines = _cells(read_text(path), suffix == ".tsv")
    except csv.Error as error:
        raise UserError(f"{path} is not a proper {suffix} file: {error}.") from None
    if not lines:
        raise UserError(f"{path} is empty: it has no header and no rows.")
    (_, header), *table = lines
    header = [name.strip() for name in header]
    wanted = [name for name in (columns.text, columns.label, columns.text_b) if name]
    for name in wanted:
        _check_column(path, name, header, columns)
    if not table:
        raise UserError(f"{path} is empty: it has no rows below its header.")
    places = [header.index(name) for name in wanted]
    empty: dict[str, list[int]] = {name: [] for name in wanted}
    found: list[list[str]] = []
    for line, cells in table:
        if any(cell.strip() for cell in cells[len(header) :]):
            raise UserError(
                f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}; "
                "a cell that holds the delimiter or a line end needs quotes."
            )
        found.append([cells[place].strip() if place < len(cells) else "" for place in places])
        for name, cell in zip(wanted, found[-1], strict=True):
            if cell.lower() in _NOTHING:
                empty[name].append(line)
    for name, numbers in empty.items():
        if numbers:
            first = f"line {numbers[0]}"
            which = f"{first} has" if len(numbers) == 1 else f"{len(numbers)} rows ({first} first) have"
            raise UserError(f'{path}: {which} nothing in the column "{name}"; fill in or delete.')
    texts, labels, *second = (list(column) for column in zip(*found, strict=True))
    return Rows(texts, second[0] if second else None, labels)


def read_text(path: Path) -> str:
    """Reads a file of UTF-8 with or without a byte order mark; every line ends in a newline only.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} is not UTF-8 text (a zero byte in line {line}); convert it.")
    return text


def _cells(text: str, tabs: bool) -> list[tuple[int, list[str]]]:
    """Returns the rows of a table, each with the number of its first line; blank lines are left out.

    Raises:
        csv.Error: a quote is never closed.
    """
    if not tabs:
        return list(_quoted_cells(text, ","))
    # Some write quotes around a cell as in .csv, others write them as any sign. A quoted cell that holds
    # a tab, or goes on behind its quote, was none.
    plain = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    fits = len({len(cells) for _, cells in plain}) == 1
    try:
        quoted = list(_quoted_cells(text, "\t", strict=True))
    except csv.Error:
        return plain if fits else list(_quoted_cells(text, "\t"))
    return plain if fits and any("\t" in cell for _, cells in quoted for cell in cells) else quoted


def _quoted_cells(text: str, delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_LONGEST_CELL)
    # The blank line behind the last one is a row of its own, unless a quoted cell swallows it.
    reader = csv.reader(chain(io.StringIO(text), ["\n"]), delimiter=delimiter, strict=strict)
    begin = end = 0
    row: list[str] = []
    for row in reader:
        begin, end = end + 1, reader.line_num
        if any(cell.strip() for cell in row):
            yield begin, row
    if row:
        raise csv.Error(f"a quote that opens in the row of line {begin} is never closed")


def _check_column(path: Path, name: str, header: list[str], columns: Columns) -> None:
    flag = {columns.text: "text", columns.label: "label"}.get(name, "text_b")
    if name not in header and len(header) == 1 and (other := re.search("[,;|\t]", header[0])):
        raise UserError(
            f"{path} has {other[0]!r} between its cells; a .csv needs commas there, a .tsv tabs. "
            f"Received: {header[0]!r}."
        )
    if name not in header:
        raise UserError(
            f'{path} has no column "{name}"{did_you_mean(name, header)} Its columns: '
            f"{', '.join(map(repr, header))}; name yours with --{flag}."
        )
    if header.count(name) > 1:
        raise UserError(f'{path} has {header.count(name)} columns "{name}"; keep one of them.')


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
            label = example[columns.label]
            if hasattr(kind, "int2str"):
                if label < 0:
                    continue  # kept secret, as in the test splits of GLUE
                label = kind.int2str(int(label))
            texts.append(_text(example[columns.text]))
            labels.append(_text(label))
            if columns.text_b:
                second.append(_text(example[columns.text_b]))
        return Rows(texts, second if columns.text_b else None, labels)

    found = {split: rows(split) for split in SPLITS if split in builder.info.splits}
    found = {split: rows for split, rows in found.items() if len(rows)}
    return with_training(source, found)


def with_training(source: str, splits: dict[Split, T]) -> dict[Split, T]:
    """Returns the splits of a TFDS data set, if there is one to learn from.

    Raises:
        UserError: there is none.
    """
    if "train" not in splits:
        raise UserError(f"{source} has no split train. It has: {', '.join(splits) or 'none'}.")
    return splits


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
        ((label, count),) = unknown.most_common(1)
        rows = "1 row" if count == 1 else f"{count} rows"
        more = f", and {len(unknown) - 1} more like it" if len(unknown) > 1 else ""
        raise UserError(
            f'{where} has the label "{label}" ({rows}{more}), which training never saw'
            f"{did_you_mean(label, names)} It knows: {', '.join(islice(names, 10))}"
            f"{' ...' if len(names) > 10 else ''}."
        )
    return np.array([place[label] for label in labels], np.int32)
