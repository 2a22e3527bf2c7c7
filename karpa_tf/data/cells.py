"""Texts and tables from files: characters, and cells by row and column; one reader for every command.

Imports nothing heavy: `predict` reads its rows before TensorFlow is imported.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from karpa_tf.errors import UserError, did_you_mean

# What tables are read from, by the ends of the files' names.
TABLES = (".csv", ".tsv", ".jsonl", ".xlsx", ".parquet")
# A cell may be a whole document; csv's own bound is 131,072 characters.
_LONGEST_CELL = 1 << 28
# What stands for a missing text besides an empty cell: what NumPy and pandas write. "Nan" is a word.
_NOTHING = ("", "nan", "NaN")


# --- Texts ----------------------------------------------------------------------------------------

# Among the commonest characters of Chinese; in Korean's encoding, their bytes are rare syllables or none.
_COMMON = frozenset("的一是不在人有我他这中来上说们")
_CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef‐-…·]*")


def encoding_of(head: bytes) -> str:
    """Returns the encoding of a file that begins with these bytes, where it is certain; else that of UTF-8.

    UTF-16 is certain by its byte order mark, and GBK where its Chinese reads as Chinese. What an accent
    is in the one-byte encodings (Latin-1 and its kin) depends on which of them it is: never certain.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end inside a character
        return "utf-8-sig"
    except UnicodeDecodeError:
        pass
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(head)
    except UnicodeDecodeError:
        return "utf-8-sig"
    foreign = [character for character in text if character > "\x7f"]
    common = [character for character in foreign if character in _COMMON]
    chinese = _CHINESE.fullmatch("".join(foreign)) is not None
    if chinese and len(common) >= max(3, len(foreign) / 20) and len(set(common)) > 1:
        return "gb18030"
    return "utf-8-sig"


def decode(data: bytes, where: str) -> str:
    """Returns the text of bytes; every line ends in a newline only.

    Raises:
        UserError: they are not UTF-8, and what they are is not certain.
    """
    try:
        text = data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}), line {line}; convert it."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{where} is not UTF-8 text (a zero byte in line {line}); convert it.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """Reads a text file, in UTF-8 with or without a byte order mark or as `encoding_of` says.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return decode(data, str(path))


def is_hidden(path: Path) -> bool:
    """Whether a path inside a folder is one that programs leave behind: .ipynb_checkpoints, __MACOSX."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


# --- Values ---------------------------------------------------------------------------------------


def is_nothing(text: str) -> bool:
    """Whether a text from a cell stands for none."""
    return text in _NOTHING


def as_text(value: Any, where: str) -> str:
    """Returns the text in a cell, without white space around it.

    Raises:
        UserError: there is something else in it than a text.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    raise UserError(f"{where} must be a text in quotes. Received: {_shown(value)}.")


def as_label(value: Any, where: str) -> str:
    """Returns the label in a cell: a text, or a whole number or truth value as its text.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # what a column of numbers with gaps becomes in pandas
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value.strip()
    raise UserError(f"{where} must be a text or a whole number. Received: {_shown(value)}.")


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)[:80]


def json_row(line: str, where: str) -> dict[str, Any]:
    """Returns the JSON object in a line.

    Raises:
        UserError: there is something else in it, a name twice, or half of a character.
    """
    try:
        row = json.loads(line, object_pairs_hook=lambda pairs: _object(pairs, where))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        shown = line[:80].encode("ascii", "backslashreplace").decode()
        raise UserError(f"{where}: a row is one JSON object, with a value a column. Received: {shown}.")
    check_characters(row, where)
    return row


def _object(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'{where}: "{twice}" stands in it twice; keep one of them.')
    return row


def check_characters(value: Any, where: str) -> None:
    """Raises a UserError if a text holds half of a surrogate pair: no encoding can write it."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(
            f"{where}: {half} is half of a surrogate pair and no character; write the whole one, or U+FFFD."
        ) from None


# --- Tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """A table as its file holds it.

    Attributes:
        path: of the file.
        header: names of the columns, without white space around them.
        rows: cells by row, in the order of the columns; a row may be shorter or longer than the header.
            Texts, "" where there is none; values as they are from .jsonl and .parquet, None for none.
        numbers: the line (or row, where there are none) of the file that each row begins in.
        unit: what `numbers` count, line or row.
        notes: what was found that its owner may not know of.
    """

    path: Path
    header: list[str]
    rows: list[list[Any]]
    numbers: list[int]
    unit: str
    notes: list[str]

    def where(self, place: int) -> str:
        """Returns the file and line of a row, for people."""
        return f"{self.path}, {self.unit} {self.numbers[place]}"

    def select(self, wanted: Sequence[tuple[str, str]]) -> list[list[Any]]:
        """Returns the cells of some columns, a list a row.

        Args:
            wanted: names of columns, and what to do where there is none of that name.

        Raises:
            UserError: a column is missing or there twice, a row does not fit, or there are no rows.
        """
        for name, advice in wanted:
            self._check_column(name, advice)
        if not self.rows:
            raise UserError(f"{self.path} is empty: it has no rows below its header.")
        width = len(self.header)
        for place, cells in enumerate(self.rows):
            if any(str(cell).strip() for cell in cells[width:]):
                raise UserError(
                    f"{self.where(place)}: {len(cells)} cells, but the header has {width}; "
                    "a cell that holds the delimiter or a line end needs quotes."
                )
        places = [self.header.index(name) for name, _ in wanted]
        return [[cells[i] if i < len(cells) else "" for i in places] for cells in self.rows]

    def records(self) -> list[dict[str, Any]]:
        """Returns every row as a dict; of columns of one name, the later ones get a number."""
        names: list[str] = []
        for name in self.header:
            names.append(unused(name, names, partial("{} ({})".format, name)))
        width = len(names)
        padded = ([*cells[:width], *[""] * (width - len(cells))] for cells in self.rows)
        return [dict(zip(names, cells, strict=True)) for cells in padded]

    def _check_column(self, name: str, advice: str) -> None:
        header = self.header
        if name not in header and len(header) == 1 and (other := re.search("[,;|\t]", header[0])):
            raise UserError(
                f"{self.path} has {other[0]!r} between its cells; a .csv needs commas there, a .tsv tabs. "
                f"Received: {header[0]!r}."
            )
        if name not in header:
            raise UserError(
                f'{self.path} has no column "{name}"{did_you_mean(name, header)} Its columns: '
                f"{', '.join(map(repr, header))}; {advice}."
            )
        if header.count(name) > 1:
            raise UserError(f'{self.path} has {header.count(name)} columns "{name}"; keep one of them.')


def unused(name: str, taken: Collection[str], another: Callable[[int], str]) -> str:
    """Returns a name that is not taken: the given one, or the first of `another(2)`, `another(3)` ..."""
    count, result = 2, name
    while result in taken:
        count, result = count + 1, another(count)
    return result


def read_sheet(path: Path, known: Collection[str] = ()) -> Sheet:
    """Reads a table with a header, whatever file it is in.

    Args:
        path: of a .csv, .tsv, .jsonl, .xlsx or .parquet file, in capitals or not.
        known: columns that may be asked for; a file that has one of them by another delimiter than its name
            says (a semicolon, a tab) is read by that.

    Raises:
        UserError: it cannot be read, or is not what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise UserError(
            f"{path} is neither a .csv nor a .tsv, .jsonl, .xlsx or .parquet file; name it after what it is."
        )
    if suffix in (".csv", ".tsv"):
        return _read_lines(path, suffix, known)
    if suffix == ".jsonl":
        return _read_jsonl(path)
    return (_read_xlsx if suffix == ".xlsx" else _read_parquet)(path)


def sheet_of(columns: Mapping[str, Sequence[Any]]) -> Sheet:
    """Returns columns that lie in memory, by name, as a sheet: a dict of lists, a DataFrame.

    Raises:
        UserError: they are no columns, or not of one length.
    """
    # A Series of pandas has keys, too, and they are none of columns.
    if not hasattr(columns, "keys") or hasattr(columns, "dtype"):
        raise UserError(
            'A table is a file\'s name or columns by name, {"text": [...], "label": [...]}, a DataFrame too. '
            f"Received: {type(columns).__name__}."
        )
    lists = [_values(columns[name]) for name in columns]
    sizes = dict(zip(map(str, columns), map(len, lists), strict=True))
    if len(set(sizes.values())) > 1:
        raise UserError(f"The columns of a table have one length. Received: {sizes}.")
    rows = [list(cells) for cells in zip(*lists, strict=True)]
    return Sheet(Path("The table"), list(sizes), rows, list(range(1, len(rows) + 1)), "row", [])


def _values(column: Any) -> list[Any]:
    """Returns the values of a column as Python's own; None for NaN, which is how pandas writes a gap."""
    values = column.tolist() if hasattr(column, "tolist") else column
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


class _Row(NamedTuple):
    begin: int
    end: int
    cells: list[str]


def _read_lines(path: Path, suffix: str, known: Collection[str]) -> Sheet:
    text = read_text(path)
    delimiter = "\t" if suffix == ".tsv" else ","
    notes = []
    if said := re.match(r"sep=(.)\n", text):  # as spreadsheets write it
        delimiter, text = said[1], text[5:]  # an empty line is left, for the numbers
    other = _other_delimiter(text, delimiter, known)
    if other:
        delimiter, rows = other
        notes.append(f"{path} has {delimiter!r} between its cells, and was read by that.")
    else:
        try:
            rows = _cells(text, delimiter)
        except csv.Error as error:
            raise UserError(f"{path} is not a proper {suffix} file: {error}.") from None
    if not rows:
        raise UserError(f"{path} is empty: it has no header and no rows.")
    header, table = rows[0], rows[1:]
    joined = [row for row in table if row.end > row.begin]
    if joined:
        lines = sum(bool(line.strip()) for line in text.split("\n")[header.end :])
        longest = max(joined, key=lambda row: row.end - row.begin)
        notes.append(
            f"{path} has {len(table):,} rows in {lines:,} lines: {len(joined):,} "
            f"{'row holds' if len(joined) == 1 else 'rows hold'} line ends in quotes, the longest from line "
            f"{longest.begin} to {longest.end}."
        )
    return Sheet(
        path,
        [name.strip() for name in header.cells],
        [row.cells for row in table],
        [row.begin for row in table],
        "line",
        notes,
    )


def _other_delimiter(text: str, own: str, known: Collection[str]) -> tuple[str, list[_Row]] | None:
    """Returns another delimiter and the rows by it, where two rows and all others say that it is meant."""
    header = next((line for line in text.split("\n") if line.strip()), "")
    if own in header or header.strip().strip('"').strip() in known:
        return None
    for delimiter in ";\t,":
        if delimiter not in header:
            continue
        try:
            found = _cells(text, delimiter)
        except csv.Error:
            continue
        names = [name.strip() for name in found[0].cells]
        if known and not set(names) & set(known):
            continue
        if len(found) > 2 and len(names) > 1 and {len(row.cells) for row in found} == {len(names)}:
            return delimiter, found
    return None


def _cells(text: str, delimiter: str) -> list[_Row]:
    """Returns the rows of a table, the header first; blank lines are left out.

    Raises:
        csv.Error: a quote is never closed, or a cell of several lines goes on behind its closing quote.
    """
    if delimiter != "\t":
        return _quoted_cells(text, delimiter)
    # Some write quotes around a cell as in .csv, others write them as any sign. A quoted cell that holds
    # a tab, or goes on behind its quote, was none.
    plain = [_Row(n, n, line.split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    fits = len({len(row.cells) for row in plain}) == 1
    try:
        quoted = list(_parse(text, "\t", strict=True))
    except csv.Error:
        return plain if fits else _quoted_cells(text, "\t")
    return plain if fits and any("\t" in cell for row in quoted for cell in row.cells) else quoted


def _quoted_cells(text: str, delimiter: str) -> list[_Row]:
    """Returns rows by their quotes: those of CSV, of programs that write `\\"` for one, or plain signs."""
    try:
        return list(_parse(text, delimiter, strict=True))
    except csv.Error:
        pass
    if '\\"' in text:
        stand_in = next(sign for sign in map(chr, range(0xE000, 0xF900)) if sign not in text)
        escaped = re.sub(r'(?<!\\)((?:\\\\)*)\\"', rf"\1{stand_in}", text)
        try:
            found = list(_parse(escaped, delimiter, strict=True))
            return [row._replace(cells=[c.replace(stand_in, '"') for c in row.cells]) for row in found]
        except csv.Error:
            pass
    lines = text.split("\n")
    rows = list(_parse(text, delimiter, strict=False))  # all of them first: an open quote swallows the last
    texts = ("\n".join(lines[row.begin - 1 : row.end]) for row in rows)
    return [
        _mended(row, text, delimiter) if '"' in text else row for row, text in zip(rows, texts, strict=True)
    ]


def _mended(row: _Row, text: str, delimiter: str) -> _Row:
    """Returns a row as it stands in the file, if its quotes make no sense and it is one line.

    Raises:
        csv.Error: it has several lines: what belongs to the cell, nobody knows.
    """
    # Some put blanks behind a closing quote as well.
    for candidate in (text, re.sub(rf'" +(?={re.escape(delimiter)}|$)', '"', text)):
        try:
            (strictly,) = _parse(candidate, delimiter, strict=True)
            return row._replace(cells=strictly.cells)
        except (csv.Error, ValueError):
            pass
    if row.end > row.begin:
        raise csv.Error(
            f"a quote opens in the row of line {row.begin}, and behind its closing quote in line {row.end} "
            "the cell goes on; close it where it ends, or double the quotes that are signs"
        )
    return row._replace(cells=text.split(delimiter))


def _parse(text: str, delimiter: str, *, strict: bool) -> Iterator[_Row]:
    csv.field_size_limit(_LONGEST_CELL)
    # The blank line behind the last one is a row of its own, unless a quoted cell swallows it.
    lines = text.split("\n")
    fed = chain(io.StringIO(text), ["\n"])
    # `"a", "b"`: a blank behind a comma does not make the quotes a part of the cell.
    reader = csv.reader(fed, delimiter=delimiter, strict=strict, skipinitialspace=delimiter != "\t")
    begin = end = 0
    row: list[str] = []
    for row in reader:
        begin, end = end + 1, reader.line_num
        # An empty cell in quotes, alone, is a row; what spreadsheets write below a table (`,,,`) is none.
        if any(cell.strip() for cell in row) or (len(row) == 1 and lines[begin - 1].strip()):
            yield _Row(begin, end, row)
    if row:
        raise csv.Error(f"a quote that opens in the row of line {begin} is never closed")


def _read_jsonl(path: Path) -> Sheet:
    found: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            found.append(json_row(line, f"{path}, line {number}"))
            numbers.append(number)
    if not found:
        raise UserError(f"{path} is empty: it has no rows.")
    header = list(dict.fromkeys(name for row in found for name in row))
    return Sheet(path, header, [[row.get(name) for name in header] for row in found], numbers, "line", [])


def _read_xlsx(path: Path) -> Sheet:
    try:
        import openpyxl
    except ImportError:
        raise _missing(path, "openpyxl") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        filled: list[tuple[str, list[tuple[int, list[str]]]]] = []
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # some programs write wrong ones
            rows = _filled_rows(sheet.iter_rows(values_only=True))
            if rows:
                filled.append((sheet.title, rows))
        book.close()
    except Exception as error:  # openpyxl raises what its parts do
        raise _unreadable(path, "Excel workbook", error) from None
    if not filled:
        raise UserError(f"{path} is empty: it has no header and no rows.")
    (title, ((_, header), *table)), *others = filled
    while header and not header[-1].strip():
        header.pop()
    notes = []
    if others:
        names = ", ".join(f'"{name}"' for name, _ in others)
        notes.append(f'{path}: the sheet "{title}" was read, and not {names}.')
    names_ = [name.strip() for name in header]
    return Sheet(path, names_, [row for _, row in table], [number for number, _ in table], "row", notes)


def _filled_rows(rows: Iterable[Sequence[Any]]) -> list[tuple[int, list[str]]]:
    """Returns the rows of a spreadsheet that hold something, as texts, with their numbers."""
    texts = ((number, [_as_shown(value) for value in row]) for number, row in enumerate(rows, 1))
    return [(number, cells) for number, cells in texts if any(cell.strip() for cell in cells)]


def _as_shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _read_parquet(path: Path) -> Sheet:
    try:
        import pyarrow.parquet
    except ImportError:
        raise _missing(path, "pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
        columns = [column.to_pylist() for column in table.columns]
    except Exception as error:  # pyarrow's own, OSError, and what decoding gives
        raise _unreadable(path, "Parquet file", error) from None
    rows = [list(row) for row in zip(*columns, strict=True)]
    header = [name.strip() for name in table.column_names]
    return Sheet(path, header, rows, list(range(1, len(rows) + 1)), "row", [])


def _missing(path: Path, package: str) -> UserError:
    return UserError(f"{path} is read by {package}, which is not installed: pip install 'karpa-tf[tables]'.")


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path} cannot be read: {error.strerror}.")
    reason = (" ".join(str(error).split()) or type(error).__name__)[:150].rstrip(".")
    return UserError(f"{path} cannot be read as {'an' if kind[0] in 'AEIOU' else 'a'} {kind}: {reason}.")
