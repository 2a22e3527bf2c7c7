"""Labelled texts from tables: files (read by `cells`), folders of them, TFDS, the embedded intents."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from karpa_tf.data.cells import TABLES, Sheet, as_label, as_text, is_nothing, read_sheet, sheet_of
from karpa_tf.data.cells import read_text as read_text
from karpa_tf.data.sources import SPLITS, DataRecord, Split, open_tfds
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine
from karpa_tf.privacy import redact

# Names of files in a folder, by split.
FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# How rows are split is part of the data: it must not change with a run's seed.
_SPLIT_SEED = 21

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


@dataclass(frozen=True, repr=False)
class Rows(InALine):
    """Labelled texts.

    Attributes:
        texts: the texts.
        texts_b: the second text of each pair; None: no pairs.
        labels: a label each.
        notes: what to say of the file they are from.
    """

    texts: list[str]
    texts_b: list[str] | None
    labels: list[str]
    notes: list[str] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def keys(self) -> list[tuple[str, str]]:
        """What makes two rows the same text: both texts, but for case and white space."""
        second = self.texts_b or [""] * len(self.texts)
        return [
            (" ".join(a.casefold().split()), " ".join(b.casefold().split()))
            for a, b in zip(self.texts, second, strict=True)
        ]

    def redacted(self) -> Rows:
        """Returns the rows with markers in the place of personal data (`karpa_tf.privacy`)."""
        texts_b = None if self.texts_b is None else [redact(text) for text in self.texts_b]
        return Rows([redact(text) for text in self.texts], texts_b, self.labels, self.notes)

    def take(self, index: Sequence[int]) -> Rows:
        """Returns the rows at the places of `index`."""
        texts_b = None if self.texts_b is None else [self.texts_b[i] for i in index]
        return Rows([self.texts[i] for i in index], texts_b, [self.labels[i] for i in index])

    def join(self, others: Rows) -> Rows:
        """Returns the rows with others behind them; both are pairs, or neither is."""
        texts_b = None if self.texts_b is None else [*self.texts_b, *(others.texts_b or [])]
        return Rows([*self.texts, *others.texts], texts_b, [*self.labels, *others.labels])


@dataclass(frozen=True, repr=False)
class Table(InALine):
    """Rows by split.

    Attributes:
        name: what the user typed.
        splits: the rows; `test` may be empty.
        brings_test: the data holds a test split of its own.
        notes: what to say of how it was read.
    """

    name: str
    splits: dict[Split, Rows]
    brings_test: bool
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows and of how they are split."""
        digest = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            rows = self.splits[split]
            digest.update(repr((split, rows.texts, rows.texts_b, rows.labels)).encode())
        return digest.hexdigest()

    @property
    def labels(self) -> list[str]:
        """The labels to tell apart, by the alphabet: those of the training split, if it has rows."""
        return sorted(set(self.splits["train"].labels or self.splits["test"].labels))

    @property
    def record(self) -> DataRecord:
        """What a run notes of this data."""
        return DataRecord(self.fingerprint, {k: len(v) for k, v in self.splits.items()}, self.labels)


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table, and how they are read.

    Attributes:
        text: of the texts.
        label: of the labels.
        text_b: of the second text of each pair; empty: no pairs.
        redact: put markers in the place of personal data in the texts, before anything else sees them.
        setting: what names the column of the labels where it is missing, for the error.
    """

    text: str = "text"
    label: str = "label"
    text_b: str = ""
    redact: bool = False
    setting: str = "label"


def open_table(
    source: str | Mapping[str, Sequence[Any]],
    columns: Columns | None = None,
    *,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    needs_training: bool = True,
) -> Table:
    """Opens labelled texts and splits them.

    Args:
        source: `embedded` (the intents), a .csv, .tsv, .jsonl, .xlsx or .parquet file, a folder with
            train.csv (or .jsonl ...) and perhaps validation.csv and test.csv, or `tfds:NAME`; or columns in
            memory by name: a dict of lists, a DataFrame.
        columns: names of the columns.
        validation_share: share of the training rows that become the validation split where the data
            brings none.
        test_share: the same for the test split.
        needs_training: whether a folder must have rows to learn from; else a test.csv will do.

    Returns:
        Rows by split, the splits stratified by label. Rows of the same text stay on one side, and every
        label keeps at least one text in training.

    Raises:
        UserError: the source cannot be read, lacks a column, a text or a label, or has one label only.
    """
    name = source if isinstance(source, str) else "The table"
    given = read_given(source, columns or Columns(), needs_training)
    if "train" not in given:
        nothing = given["test"].take([])
        return Table(name, {"train": nothing, "validation": nothing, **given}, True, _notes(given.values()))
    shares = shares_to_cut(given, validation_share, test_share)
    cut = split_rows(given["train"], *shares)
    splits = {**cut, **given, "train": cut["train"]}
    labels = set(splits["train"].labels)
    if len(labels) < 2:
        raise UserError(
            f"{name} has one label only ({', '.join(sorted(labels))}): there is nothing to tell apart."
        )
    if not len(splits["validation"]) and shares[0]:
        raise UserError(
            f"{name} has too few texts to hold one out for validation: training needs one of each label. "
            f"Received: {len(given['train'])} rows, {len(labels)} labels."
        )
    return Table(name, splits, "test" in given, _notes(given.values()))


def open_test_rows(source: str | Mapping[str, Sequence[Any]], columns: Columns | None = None) -> Rows:
    """Returns rows to evaluate on: the data's own test split, or else every row.

    Args:
        source: as for `open_table`.
        columns: names of the columns.

    Raises:
        UserError: the source cannot be read, or lacks a column, a text or a label.
    """
    given = read_given(source, columns or Columns())
    if "test" in given:
        return given["test"]
    every = list(given.values())
    texts_b = None if every[0].texts_b is None else [t for rows in every for t in rows.texts_b or []]
    texts, labels = [t for r in every for t in r.texts], [x for r in every for x in r.labels]
    return Rows(texts, texts_b, labels, _notes(every))


def _notes(every: Iterable[Rows]) -> list[str]:
    return [note for rows in every for note in rows.notes]


def read_groups(source: str, columns: Columns, column: str, rows: Rows) -> list[str]:
    """Returns what each of some rows belongs to, as a further column of the data says.

    Args:
        source: that the rows are from, as for `open_table`.
        columns: that they were read with.
        column: of the groups.
        rows: whose groups are asked for.

    Raises:
        UserError: the data has no such column, or a row has nothing in it.
    """
    if source == "embedded":
        raise UserError("--groups: the embedded data has no further columns; train on a table of yours.")
    known = read_given(source, columns)
    grouped = read_given(source, replace(columns, label=column), advice="name another one with --groups")
    groups: dict[Any, list[str]] = {}
    for split, mine in known.items():
        # Rows of the same text stay together, in their order.
        for key, group in zip(_whole_keys(mine), grouped[split].labels, strict=True):
            groups.setdefault(key, []).append(group)
    return [groups[key].pop(0) for key in _whole_keys(rows)]


def _whole_keys(rows: Rows) -> Iterable[tuple[str, str, str]]:
    return zip(rows.texts, rows.texts_b or [""] * len(rows), rows.labels, strict=True)


def shared_rows(train: Labelled, test: Labelled) -> int:
    """Returns how many rows of `test` are in `train` as well: the same text, the same pixels."""
    seen = set(train.keys())
    return sum(key in seen for key in test.keys())  # noqa: SIM118


def shares_to_cut(
    given: Mapping[Split, Any], validation_share: float, test_share: float
) -> tuple[float, float]:
    """Returns the shares of training that become validation and test: 0 for a split that the data brings.

    Raises:
        UserError: one is below 0, or they leave nothing to learn from.
    """
    validation_share = 0.0 if "validation" in given else validation_share
    test_share = 0.0 if "test" in given else test_share
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        wrong = (
            "must be at least 0" if min(validation_share, test_share) < 0 else "leave nothing to learn from"
        )
        raise UserError(
            f"validation_share and test_share {wrong}. Received: {validation_share:g} and {test_share:g}."
        )
    return validation_share, test_share


def grouped(rows: Labelled) -> tuple[Sequence[Any], Sequence[str]]:
    """Returns what makes rows the same, and their labels."""
    return rows.keys(), rows.labels


def split_rows(rows: L, validation_share: float, test_share: float) -> dict[Split, L]:
    """Cuts validation and test out of rows, stratified by label, always in the same way."""
    # Systematic sampling: sorted by label, one text in every 1 / share goes to a split.
    shuffled = _groups(rows.keys(), rows.labels)
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


def draw_shots(rows: L, shots: int, seed: int, where: str = "The data") -> L:
    """Returns so many rows of each label; with one seed, few of them are among those of more.

    Args:
        rows: to draw from.
        shots: how many of each label.
        seed: of the drawing.
        where: what the error calls the data.

    Raises:
        UserError: a label has fewer rows.
    """
    counts = Counter(rows.labels)
    label = min(sorted(counts), key=counts.__getitem__)
    if counts[label] < shots:
        raise UserError(
            f'{where} has {counts[label]} rows of "{label}" to learn from: shots may be so many at most, or '
            f"0 for all rows. Received: {shots}."
        )
    rng, labels = np.random.default_rng((seed, 5)), np.array(rows.labels)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in sorted(counts)]
    return rows.take(sorted(np.concatenate(drawn).tolist()))


def _groups(keys: Sequence[Any], labels: Sequence[str]) -> list[list[int]]:
    """Returns the places of rows, those of one key together, shuffled and then sorted by label."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    every = list(groups.values())
    shuffled = [every[i] for i in np.random.default_rng(_SPLIT_SEED).permutation(len(every))]
    return sorted(shuffled, key=lambda group: labels[group[0]])


def fold_places(keys: Sequence[Any], labels: Sequence[str], fold: int, folds: int) -> list[int]:
    """Returns the places of the rows in one of several folds of one size, with its share of every label.

    Args:
        keys: of the rows; those of one key are in one fold.
        labels: of the rows.
        fold: which one, from 1.
        folds: how many.

    Returns:
        Places, rising. A row is in one fold, or in none if it is all that there is of its label.

    Raises:
        UserError: there are fewer keys than folds.
    """
    groups = _groups(keys, labels)
    if len(groups) < folds:
        raise UserError(f"{folds} folds need as many different rows at least. Received: {len(groups)}.")
    left = Counter(labels)
    places = []
    for group in groups[fold - 1 :: folds]:
        mine = Counter(labels[i] for i in group)
        if all(left[label] > count for label, count in mine.items()):
            left -= mine
            places += group
    return sorted(places)


# --- Reading --------------------------------------------------------------------------------------


def read_given(
    source: str | Mapping[str, Sequence[Any]],
    columns: Columns,
    needs_training: bool = True,
    advice: str = "name yours with --{}",
) -> dict[Split, Rows]:
    """Reads labelled texts in the splits that they come in.

    Args:
        source: as for `open_table`.
        columns: names of the columns.
        needs_training: whether a folder must have rows to learn from.
        advice: what to do where a column of a file is missing; `{}` stands for the setting.

    Raises:
        UserError: the source cannot be read, or lacks a column, a text or a label.
    """
    found = _read_given(source, columns, needs_training, advice)
    return {split: rows.redacted() for split, rows in found.items()} if columns.redact else found


def _read_given(
    source: str | Mapping[str, Sequence[Any]], columns: Columns, needs_training: bool, advice: str
) -> dict[Split, Rows]:
    if not isinstance(source, str):
        return {"train": _rows(sheet_of(source), columns, "name yours with Columns({}=...)")}
    if source == "embedded":
        return _read_embedded()
    if source.startswith("tfds:"):
        return _read_tfds(source, columns)
    path = Path(source)
    if path.is_dir():
        files = find_splits(path, TABLES, needs_training)
        return {split: read_table(file, columns, advice) for split, file in files.items()}
    if not path.exists():
        raise no_such_path(
            source, "a .csv, .tsv, .jsonl, .xlsx or .parquet with a header, a folder with train.csv"
        )
    return {"train": read_table(path, columns, advice)}


def no_such_path(source: str, wanted: str) -> UserError:
    """Returns the error of a path that leads nowhere; it names what is beside it and sounds alike."""
    path = Path(source)
    near = did_you_mean(path.name, [*(x.name for x in path.parent.glob("*")), "embedded"])
    return UserError(f'There is no file or folder "{source}"{near} Give {wanted}, tfds:NAME, or embedded.')


def find_splits(folder: Path, suffixes: tuple[str, ...], needs_training: bool = True) -> dict[Split, Path]:
    """Returns the files of a folder by split: train.csv, validation.csv (or valid, val, dev), test.csv.

    Args:
        folder: where they are.
        suffixes: that count.
        needs_training: whether a test file alone is an error.

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
    if "train" not in found and (needs_training or "test" not in found):
        raise UserError(f"{folder} holds no training data: there is no train{suffixes[0]} in it.")
    return {split: found[split] for split in SPLITS if split in found}


def read_table(path: Path, columns: Columns, advice: str = "name yours with --{}") -> Rows:
    """Reads labelled texts from a table with a header: .csv, .tsv, .jsonl, .xlsx or .parquet.

    Raises:
        UserError: it cannot be read, has a row that does not fit, or lacks a column, a text or a label.
    """
    names = [name for name in (columns.text, columns.label, columns.text_b) if name]
    return _rows(read_sheet(path, names), columns, advice)


def _rows(sheet: Sheet, columns: Columns, advice: str) -> Rows:
    """Returns labelled texts of a sheet; `advice` is what to do where there is no column of a name."""
    fields = {"text": columns.text, columns.setting: columns.label, "text_b": columns.text_b}
    wanted = [(name, advice.format(field)) for field, name in fields.items() if name]
    texts, labels, *second = filled_columns(sheet, wanted, [columns.label])
    return Rows(texts, second[0] if second else None, labels, sheet.notes)


def filled_columns(
    sheet: Sheet, wanted: Sequence[tuple[str, str]], labels: Collection[str]
) -> list[list[str]]:
    """Returns columns of a sheet in which no cell is empty.

    Args:
        sheet: the table.
        wanted: names of columns, and what to do where there is none of that name.
        labels: those of them that hold labels: whole numbers will do, and "nan" is one.

    Raises:
        UserError: a column is missing, a cell is empty or holds something else, or there are no rows.
    """
    names = [name for name, _ in wanted]
    empty: dict[str, list[int]] = {name: [] for name in names}
    found: list[list[str]] = []
    for place, cells in enumerate(sheet.select(wanted)):
        row = [
            cell.strip()
            if isinstance(cell, str)
            else (as_label if name in labels else as_text)(cell, _cell(sheet, place, name))
            for name, cell in zip(names, cells, strict=True)
        ]
        for name, cell in zip(names, row, strict=True):
            if not cell or (name not in labels and is_nothing(cell)):
                empty[name].append(sheet.numbers[place])
        found.append(row)
    for name, numbers in empty.items():
        if numbers:
            first = f"{sheet.unit} {numbers[0]}"
            which = f"{first} has" if len(numbers) == 1 else f"{len(numbers)} rows ({first} first) have"
            raise UserError(f'{sheet.path}: {which} nothing in the column "{name}"; fill in or delete.')
    return [list(column) for column in zip(*found, strict=True)]


def _cell(sheet: Sheet, place: int, name: str) -> str:
    return f'{sheet.where(place)}: the cell of "{name}"'


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


def label_ids(labels: Sequence[str], names: Sequence[str], where: str = "The data") -> np.ndarray:
    """Returns the places int32 (rows,) of labels in `names`.

    Args:
        labels: a label a row.
        names: every label, in the order of the logits.
        where: what the error calls the data.

    Raises:
        UserError: a label that is not among them.
    """
    place = {name: index for index, name in enumerate(names)}
    unknown = Counter(label for label in labels if label not in place)
    if unknown:
        ((label, count),) = unknown.most_common(1)
        rows = "1 row" if count == 1 else f"{count} rows"
        others = {1: "", 2: " and 1 other label"}.get(len(unknown), f" and {len(unknown) - 1} other labels")
        raise UserError(
            f'{where} has the label "{label}" ({rows}){others}, which training never saw'
            f"{did_you_mean(label, names)} Its labels: {', '.join(islice(names, 10))}"
            f"{' ...' if len(names) > 10 else ''}."
        )
    return np.array([place[label] for label in labels], np.int32)
