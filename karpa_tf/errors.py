"""The one error that users see, what makes it of others, and files that are written whole or not at all."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["UserError", "did_you_mean", "write_whole", "writing"]


class UserError(Exception):
    """Something the user can mend: one sentence that says what was received and what to do.

    The command line prints it on standard error without a traceback and ends with status 2.
    """


def did_you_mean(word: str, known: Iterable[str], otherwise: str = ".") -> str:
    """Returns the end of a sentence: `; did you mean "..."?` with the nearest known word.

    Args:
        word: that was received.
        known: the words that there are.
        otherwise: the end of the sentence where none is near.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else otherwise


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an operating system's refusal to write into a sentence, for a `with` block.

    Args:
        path: below which the block writes.

    Yields:
        Nothing.

    Raises:
        UserError: the block could not write.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "free some space or choose another folder"
        if isinstance(error, FileNotFoundError):
            advice = "make the folder that it belongs into first"
        raise UserError(f"{path} cannot be written: {reason}; {advice}.") from error


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes a file beside its place and renames it, so that who reads it sees the old one or the new one.

    Args:
        path: of the file.
        data: what it is to hold.

    Raises:
        UserError: it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
