"""Rows in and out of `predict`: words of the command line, standard input, files.

Nothing here imports TensorFlow: what is wrong with a file is said before that.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karpa_tf.data.cells import (
    TABLES,
    Sheet,
    as_text,
    check_characters,
    decode,
    is_nothing,
    json_row,
    read_sheet,
    read_text,
    unused,
)
from karpa_tf.errors import UserError, did_you_mean, write_whole, writing
from karpa_tf.recipe import Input, Kind

if TYPE_CHECKING:
    import numpy as np


def columns_of(inputs: Mapping[str, Input]) -> list[str]:
    """Returns the columns that inputs may be read from."""
    return [column for name, expected in inputs.items() for column in (expected.column, name) if column]


def inputs_of_signature(specs: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of any signature by name, from their `tf.TensorSpec`s."""

    def kind(spec: Any) -> Kind:
        if spec.dtype.name == "string":
            return "text" if spec.shape.rank == 1 else "json"
        return "image" if spec.shape.rank in (3, 4) else "json"

    return {name: Input(kind(spec)) for name, spec in specs.items()}


def read_value(value: Any, spec: Any) -> Any:
    """Returns the pixels of the image whose path was given to an input of images; else the value itself.

    Args:
        value: of a row; a list of paths where a row has several images.
        spec: the input's `tf.TensorSpec`, (n, size, size) for grey images, or (n, size, size, channels); with
            several images a row (n, images, size, size), or the same with channels.

    Raises:
        UserError: the file is not there or is no image.
    """
    of_texts = spec.dtype.name == "string"
    if isinstance(value, list) and value and isinstance(value[0], str) and not of_texts:
        return [_read_image(path, spec.shape[2:]) if isinstance(path, str) else path for path in value]
    if not isinstance(value, str) or spec.shape.rank not in (3, 4):
        return value
    return _read_image(value, spec.shape[1:])


def _read_image(path: str, shape: Any) -> Any:
    from karpa_tf.data.images import read_image

    grey = len(shape) == 2
    image = read_image(path, int(shape[0]), 1 if grey else int(shape[2]))
    return image[..., 0] if grey else image


def is_error(result: Mapping[str, Any]) -> bool:
    """Whether what is predicted of a row is the reason why it could not be read."""
    return set(result) == {"error"} and isinstance(result["error"], str)


@dataclass(frozen=True)
class Rows:
    """What is to be predicted.

    Attributes:
        inputs: a value for each input of the signature, a dict a row.
        given: the rows as they were given, with their other columns.
    """

    inputs: list[dict[str, Any]]
    given: list[dict[str, Any]]


@dataclass(frozen=True)
class Given:
    """Rows as they came, whatever they are for.

    Attributes:
        source: where from, for people.
        sheet: a table; or None, and then
        lines: (where, text) a row; no text: a blank line.
        notes: what to say of how they were read.
    """

    source: str
    sheet: Sheet | None
    lines: list[tuple[str, str | None]]
    notes: list[str] = field(default_factory=list)

    def match(self, inputs: Mapping[str, Input], *, filled: bool = False) -> Rows:
        """Finds a signature's inputs in each row.

        Args:
            inputs: by name.
            filled: refuse a text that is empty.

        Raises:
            UserError: a column or a value is missing, or is not of its kind.
        """
        if self.sheet is None:
            places = [where for where, _ in self.lines]
            given, rows = [], []
            for where, text in self.lines:
                row = {} if text is None else _from_line(text, inputs, where)
                given.append(row)
                rows.append({} if text is None else _pick(row, inputs, where))
        else:
            rows, places, given = _from_sheet(self.sheet, inputs)
        if not rows:
            raise UserError(f"There is nothing to predict in {self.source}: no rows.")
        for number, (row, where) in enumerate(zip(rows, places, strict=True), 1):
            for name, expected in inputs.items() if row else ():
                row[name] = _value(row[name], expected.kind, f'{where}: "{name}"')
                if not filled or expected.kind != "text":
                    continue
                if row[name] == "" or (self.sheet and is_nothing(row[name].strip())):
                    at = f" ({where})" if self.source in where else ""
                    raise UserError(f"Row {number} has an empty {name}{at}; fill it in or delete the row.")
        paths = [row[name] for row in rows if row for name, x in inputs.items() if x.kind == "image"]
        if paths and all(isinstance(path, str) and not Path(path).exists() for path in paths):
            near = did_you_mean(Path(paths[0]).name, (x.name for x in Path(paths[0]).parent.glob("*")))
            raise UserError(f'There is no image "{paths[0]}"{near}')
        return Rows(rows, given)


def read(
    words: Sequence[str],
    path: str = "",
    known: Collection[str] = (),
    made: Sequence[Mapping[str, Any]] | None = None,
) -> Given:
    """Reads rows.

    Args:
        words: what was typed, a row each; none, and no path: standard input, a row a line.
        path: a .txt (a row a line) or a table; or empty.
        known: columns that may be asked for.
        made: rows that were made of a recipe's options, and are not read.

    Raises:
        UserError: there are no rows, or they cannot be read.
    """
    if made is not None:
        lines: list[tuple[str, str | None]] = [
            (f"Row {number}", json.dumps(row)) for number, row in enumerate(made, 1)
        ]
        return Given("the options", None, lines)
    if words and path:
        raise UserError("Give inputs as words or with --input, not both.")
    if words:
        return Given("the input", None, [(f"Row {number}", word) for number, word in enumerate(words, 1)])
    if not path:
        return _from_text(_standard_input(), "standard input")
    suffix = Path(path).suffix.lower()
    if suffix == ".txt":
        return _from_text(read_text(Path(path)), path)
    if suffix in TABLES:
        sheet = read_sheet(Path(path), known)
        return Given(path, sheet, [], sheet.notes)
    raise UserError(
        f"--input takes a .txt, .csv or .jsonl file, or a .tsv, .xlsx or .parquet file. Received: {path}."
    )


def _standard_input() -> str:
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:  # another one's standard input: a notebook's, a test's
        return "".join(sys.stdin)
    return decode(buffer.read(), "standard input")


def _from_text(text: str, source: str) -> Given:
    """Every line is a row, so that rows do not shift: a blank one is a row without an answer.

    Those behind the last row are none.
    """
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    notes = []
    if blank:
        those = f"line {blank[0]} is" if len(blank) == 1 else f"{len(blank)} lines ({blank[0]} first) are"
        notes.append(f"{source}: {those} blank; a line is a row, and a blank one has no answer.")
    texts = [line if line.strip() else None for line in lines]
    rows = [(f"{source}, line {number}", text) for number, text in enumerate(texts, 1)]
    return Given(source, None, rows, notes)


def _from_line(line: str, inputs: Mapping[str, Input], where: str) -> dict[str, Any]:
    (name, *more) = inputs
    check_characters(line, where)
    if not more and name == "text":
        return {"text": line}
    if not more and name == "image" and not line.lstrip().startswith(("[", "{")):
        return {"image": line}  # the path of a file; `read_value` reads it
    if not more and not line.lstrip().startswith("{"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if value is not None:
            return {name: value}
    try:
        return json_row(line, where)
    except UserError:
        raise UserError(
            f"{where}: A row is one JSON object with {', '.join(inputs)}. Received: {line[:80]}."
        ) from None


def _pick(row: Mapping[str, Any], inputs: Mapping[str, Input], where: str) -> dict[str, Any]:
    found = {}
    for name, expected in inputs.items():
        place = expected.column if expected.column in row else name
        if place not in row:
            shown = json.dumps(row, ensure_ascii=False)[:80]
            raise UserError(
                f"{where}: A row is one JSON object with {', '.join(inputs)}; {name} is missing. "
                f"Received: {shown}."
            )
        found[name] = row[place]
    return found


def _from_sheet(
    sheet: Sheet, inputs: Mapping[str, Input]
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    wanted = []
    for name, expected in inputs.items():
        own = expected.column
        # The run's own column, or else the one that everybody's signature names.
        column = own if own and (own in sheet.header or name not in sheet.header) else name
        wanted.append((column, f"the model reads {name!r} from it"))
    rows = [dict(zip(inputs, row, strict=True)) for row in sheet.select(wanted)]
    return rows, [sheet.where(place) for place in range(len(rows))], sheet.records()


def _value(value: Any, kind: Kind, where: str) -> Any:
    """Returns a cell's value as its input takes it."""
    if kind == "text":
        return value if as_text(value, where) else ""
    if kind == "image" and (value is None or value == ""):
        raise UserError(f"{where} is empty: there is nothing to predict.")
    if isinstance(value, str) and (kind == "json" or value.lstrip().startswith("[")):
        try:
            return json.loads(value)  # a cell of a .csv
        except (ValueError, RecursionError):
            pass
    return value


# --- Out ------------------------------------------------------------------------------------------


def check_output(path: str, pictures: bool = False) -> None:
    """Raises a UserError if predictions could not be written to that path.

    Args:
        path: of a .csv or .jsonl file.
        pictures: whether images are predicted, which a .png takes.
    """
    target = Path(path)
    kinds = (".csv", ".jsonl", *[".png"] * pictures)
    if target.suffix.lower() not in kinds:
        which = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
        raise UserError(f"--output takes a {which} file. Received: {path}.")
    with writing(path):
        if not target.parent.is_dir():
            raise FileNotFoundError(None, f"there is no folder {target.parent}")
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise PermissionError(None, "it is a folder" if target.is_dir() else "permission denied")


def write(
    path: str,
    given: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    names: Sequence[str] | Mapping[str, Sequence[str]],
) -> list[str]:
    """Writes the given rows with what is predicted of them to a .csv or .jsonl file, whole or not at all.

    Args:
        path: of the file; a .csv of other than ASCII gets a byte order mark, for spreadsheets.
        given: the rows as they were given; their columns stay.
        outputs: of the rows. Probabilities become `confidence`, the largest one, and a column a class.
        names: the classes, in the order of the probabilities; none: the probabilities stay as they are. By
            output, where several have probabilities: `NAME_probabilities` becomes `NAME_confidence` etc.

    Returns:
        What to say: which columns had to be called otherwise.

    Raises:
        UserError: another kind of file, or one that cannot be written.
    """
    check_output(path)
    added = [_flat(row, names) for row in outputs]
    columns = list(dict.fromkeys(name for row in given for name in row))
    called: dict[tuple[str, int], str] = {}
    for name, place in dict.fromkeys(key for row in added for key in row):
        taken = {*columns, *called.values()}
        called[name, place] = unused(name, taken, partial(_predicted, name))
    merged = [
        {**row, **{called[key]: value for key, value in result.items()}}
        for row, result in zip(given, added, strict=True)
    ]
    write_whole(path, _as_file(merged, [*columns, *called.values()], Path(path).suffix.lower()))
    return [
        f'{path}: what is predicted stands in "{new}", for "{name}" is a column of the input.'
        for (name, _), new in called.items()
        if new != name
    ]


def images_of(outputs: Sequence[Mapping[str, Any]], path: str) -> np.ndarray:
    """Returns the images that were predicted, uint8 (n, height, width, channels).

    Args:
        outputs: of the rows; one that could not be read is left out.
        path: that they are for.

    Raises:
        UserError: something else was predicted.
    """
    import numpy as np

    try:
        found = np.array([row["image"] for row in outputs if row and not is_error(row)], np.float32)
    except KeyError:
        raise UserError(
            f"A .png takes images, and {', '.join(outputs[0])} was predicted: take a .csv or .jsonl. "
            f"Received: --output {path}."
        ) from None
    return (found if found.ndim == 4 else found[..., None]).clip(0, 255).round().astype(np.uint8)


def _predicted(name: str, count: int) -> str:
    return f"{name} (predicted)" if count == 2 else f"{name} (predicted {count - 1})"


def _flat(
    outputs: Mapping[str, Any], names: Sequence[str] | Mapping[str, Sequence[str]]
) -> dict[tuple[str, int], Any]:
    """Returns a row's outputs as cells, by name and place: two classes may have one name."""
    classes = names if isinstance(names, Mapping) else {"probabilities": names}
    cells: dict[tuple[str, int], Any] = {}
    for name, value in outputs.items():
        if name in classes and len(value) == len(classes[name]):
            before = name.removesuffix("probabilities")
            cells[f"{before}confidence", 0] = max(value)
            cells |= {(before + classes[name][place], place + 1): share for place, share in enumerate(value)}
        else:
            cells[name, 0] = value
    return cells


def _as_file(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], suffix: str) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows({name: _as_cell(value) for name, value in row.items()} for row in rows)
    content = text.getvalue()
    return content.encode("utf-8" if content.isascii() else "utf-8-sig")


def _as_cell(value: Any) -> Any:
    if value is None:
        return ""
    return (
        value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False, default=str)
    )


def format(
    inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], shown: Sequence[str] = ()
) -> Iterator[str]:
    """Yields lines for people: a row's inputs, then its outputs.

    Args:
        inputs: of the rows.
        outputs: of the rows; of a label and its probabilities the largest one is shown, and what is unknown.
        shown: see `Signature`.
    """
    for row, result in zip(inputs, outputs, strict=True):
        yield "  ".join(map(_in_short, row.values()))
        if is_error(result):
            yield f"  {result['error']}"
        else:
            every = [f"{name}: {name}" for name in result] if len(result) > 1 else list(result)
            pair = ["label probabilities"] if {"label", "probabilities"} <= set(result) else every
            for entry in (shown or pair) if result else ():
                title, _, names = entry.rpartition(": ")
                if missing := set(names.split()) - set(result):
                    raise UserError(
                        f"The signature shows {', '.join(sorted(missing))}; it must be among its outputs. "
                        f"Received: {', '.join(result)}."
                    )
                columns = [result[name] for name in names.split()]
                if names.endswith("probabilities") and len(columns) == 2:
                    unknown = (
                        "" if result.get("known", True) else f"  unknown ({result['unknown_score']:.3g})"
                    )
                    columns = [f"{columns[0]}  {max(columns[1]):.3f}{unknown}"]
                if len(columns) == 1:
                    yield f"  {title}: {_in_short(columns[0])}" if title else f"  {_in_short(columns[0])}"
                    continue
                if title:
                    yield f"  {title}:"
                yield from _side_by_side(columns)


def _in_short(value: Any) -> str:
    """Returns a value as text; an image as nested lists is too much for a line."""
    return str(value) if len(str(value)) < 2000 else "[...]"


def _side_by_side(columns: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yields a line an entry of lists of one length; of nested lists, a line of entries."""
    for entries in zip(*columns, strict=True):
        if isinstance(entries[0], list):
            cells = [" ".join(map(_rounded, entry)) for entry in zip(*entries, strict=True) if entry[0] != ""]
            if cells:
                yield "    " + "  ".join(cells)
        elif entries[0] != "":
            yield "  " + "\t".join(map(_rounded, entries))


def _rounded(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
