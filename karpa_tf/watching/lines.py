"""Lines of a growing file or of standard input, and the rows in them.

A place in a file is kept with its inode and first bytes, so that a log which was rotated or truncated
meanwhile is noticed: what was left of the old one is read first.
"""

from __future__ import annotations

import json
import os
import re
import select
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import IO, Any, NamedTuple, Protocol

from karpa_tf.errors import UserError

_CHUNK = 1 << 16
# Bytes of a line; what is longer is skipped.
_LONGEST = 1 << 20
_HEAD = 64
_POLL = 0.2


class Line(NamedTuple):
    """A line.

    Attributes:
        text: without its end; None: it was too long.
        place: what to begin with to read on behind it; None: standard input's.
    """

    text: bytes | None
    place: dict[str, Any] | None


class Lines(Protocol):
    """Where lines come from."""

    notes: list[str]

    def read(self) -> list[Line]:
        """Waits for lines and returns those that are there; none at the end."""


class _Cut:
    """Cuts what is read into lines."""

    def __init__(self) -> None:
        self.rest = b""
        self._too_long = False

    def add(self, data: bytes) -> list[tuple[bytes | None, int]]:
        """Returns the lines that end in it, and how many bytes each had that were not known before."""
        *ended, rest = (self.rest + data).split(b"\n")
        found: list[tuple[bytes | None, int]] = []
        for line in ended:
            found.append((None if self._too_long or len(line) > _LONGEST else line, len(line) + 1))
            self._too_long = False
        self.rest = rest
        return found


class StandardInput:
    """Lines of a descriptor that cannot be read twice."""

    def __init__(self, descriptor: int = 0) -> None:
        self.notes: list[str] = []
        self._descriptor, self._cut, self._ended = descriptor, _Cut(), False

    def read(self) -> list[Line]:
        while not self._ended:
            select.select([self._descriptor], [], [])
            data = os.read(self._descriptor, _CHUNK)
            self._ended = not data
            if lines := self._cut.add(data or (b"\n" if self._cut.rest else b"")):
                return [Line(text, None) for text, _ in lines]
        return []


class File:
    """Lines of a file that grows, is rotated (as FILE.1 or FILE-20260101) or truncated.

    Args:
        path: of the file.
        follow: wait for more at its end.
        place: of a `Line`: read on behind it.

    Raises:
        UserError: there is no such file.
    """

    _file: IO[bytes]

    def __init__(self, path: str | Path, follow: bool = True, place: Mapping[str, Any] | None = None) -> None:
        self.notes: list[str] = []
        self._path, self._follow = Path(path), follow
        self._wait = Event()
        start = self._path
        if place:
            found = [file for file in self._files() if _holds(file, place)]
            if found:
                start = found[0]
            else:
                self.notes.append(f"{path} is not what was read before; it is read from its beginning.")
                place = None
        try:
            self._open(start, int(place["offset"]) if place else 0)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None

    def _open(self, path: Path, offset: int = 0) -> None:
        file = path.open("rb", buffering=0)
        if hasattr(self, "_file"):
            self._file.close()
        self._file, self._cut, self._offset = file, _Cut(), offset
        self._inode = os.fstat(file.fileno()).st_ino
        file.seek(offset)

    def _files(self) -> list[Path]:
        """Returns the file and those that it was rotated to, the oldest first."""
        pattern = re.compile(re.escape(self._path.name) + r"[.-][0-9-]+")
        found = []
        for file in self._path.parent.iterdir() if self._path.parent.is_dir() else ():
            if pattern.fullmatch(file.name):
                found.append((file.stat().st_mtime_ns, file))
        return [*(file for _, file in sorted(found)), self._path]

    def read(self) -> list[Line]:
        while True:
            data = self._file.read(_CHUNK) or b""
            last = False
            if not data:
                if self._next():
                    continue
                if self._follow:
                    self._wait.wait(_POLL)
                    continue
                last = bool(self._cut.rest)
                if not last:
                    return []
                data = b"\n"
            if lines := self._cut.add(data):
                return [self._line(text, size - last) for text, size in lines]

    def _line(self, text: bytes | None, size: int) -> Line:
        self._offset += size
        head = os.pread(self._file.fileno(), min(_HEAD, self._offset), 0).hex()
        return Line(text, {"inode": self._inode, "offset": self._offset, "head": head})

    def _next(self) -> bool:
        """Goes to what is to be read behind the end of the file; returns whether there is anything."""
        size = os.fstat(self._file.fileno()).st_size
        if size < self._offset:
            self.notes.append(f"{self._path} was truncated; it is read from its beginning.")
            self._file.seek(0)
            self._cut, self._offset = _Cut(), 0
            return True
        files = self._files()
        inodes = [_inode(file) for file in files]
        if inodes[-1] == self._inode or not inodes[-1]:
            return False  # it is this one, or is just being made
        if self._file.read(1):  # written between the two
            self._file.seek(-1, os.SEEK_CUR)
            return True
        after = inodes.index(self._inode) + 1 if self._inode in inodes else len(files) - 1
        self.notes.append(f"{self._path} was rotated; {files[after]} is read.")
        self._open(files[after])
        return True


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _holds(path: Path, place: Mapping[str, Any]) -> bool:
    """Whether a file is the one that a place is of."""
    head = bytes.fromhex(place["head"])
    try:
        status = path.stat()
        if status.st_ino != place["inode"] or status.st_size < place["offset"]:
            return False
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False


# --- Rows -----------------------------------------------------------------------------------------


class Skipped(Exception):
    """A line that holds no row: why, in a word or two."""


def rows_of(line: bytes | None, texts: Mapping[str, bool], model: str = "") -> list[dict[str, Any]]:
    """Returns the rows of a line: a text, an object with the inputs, or a request of a server's log.

    Args:
        line: that was read.
        texts: the inputs by name, and whether each is a text.
        model: of a log's requests, only those to this one; empty: to any.

    Raises:
        Skipped: there is no row in it.
    """
    if line is None:
        raise Skipped("too long")
    try:
        text = line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError:
        raise Skipped("not UTF-8") from None
    if not text.strip():
        raise Skipped("blank")
    if not text.lstrip().startswith("{"):
        if list(texts.values()) != [True]:
            raise Skipped("no JSON object")
        return [_checked({next(iter(texts)): text}, texts)]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Skipped("broken JSON") from None
    inputs = found.get("inputs") if "signature" in found or "model" in found else None
    if not isinstance(inputs, dict):
        return [_checked(found, texts)]
    if model and found.get("model") != model:
        raise Skipped("another model's")
    columns = [column for name in texts if isinstance(column := inputs.get(name), list)]
    if len(columns) < len(texts) or len({*map(len, columns)}) != 1:
        raise Skipped("without the inputs")
    return [_checked(dict(zip(texts, row, strict=True)), texts) for row in zip(*columns, strict=True)]


def _checked(row: Mapping[str, Any], texts: Mapping[str, bool]) -> dict[str, Any]:
    for name, is_text in texts.items():
        if name not in row:
            raise Skipped("without the inputs")
        if is_text and not (isinstance(row[name], str) and row[name].strip()):
            raise Skipped("no text")
    return {name: row[name] for name in texts}


def shown(row: Mapping[str, Any], texts: Sequence[str]) -> str:
    """Returns the texts of a row in one line."""
    return " | ".join(" ".join(str(row[name]).split()) for name in texts)
