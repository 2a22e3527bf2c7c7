"""Writes logs in a thread, so that a full disk or a reader that has stopped reading stops no answer."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import IO

# Lines of a file that wait to be written, and bytes that they hold; what comes beyond is dropped and counted.
_LARGEST_QUEUE = 10_000
_LARGEST_HOLD = 64 << 20
# Seconds that the last lines get when the server stops.
_LAST_WORDS = 1.0


class LogWriter:
    """A bounded queue of lines a file, and a thread each that writes them: one that is stuck stops no other.

    Attributes:
        dropped: how many lines were left out, because too many were waiting.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._files: dict[IO[bytes], _File] = {}

    def write(self, file: IO[bytes], make: Callable[[], bytes], holds: int = 0) -> None:
        """Has a line written; `make` is called in the thread and returns it. Call it from one thread.

        Args:
            file: where it goes.
            make: makes the line.
            holds: bytes that `make` keeps in memory until then.
        """
        if file not in self._files:
            self._files[file] = _File(file)
        self.dropped += not self._files[file].take(make, holds)

    def close(self) -> None:
        """Waits a moment for the lines that wait."""
        end = time.monotonic() + _LAST_WORDS
        for file in self._files.values():
            file.close(end)


class _File:
    """One file's lines, and the thread that writes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lines: queue.Queue[tuple[Callable[[], bytes], int] | None] = queue.Queue(_LARGEST_QUEUE)
        self._held = 0
        self._lock = threading.Lock()
        # A write that never returns must not keep the process.
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def take(self, make: Callable[[], bytes], holds: int) -> bool:
        """Returns whether there was room for it."""
        with self._lock:
            if holds and self._held + holds > _LARGEST_HOLD:
                return False
            try:
                self._lines.put_nowait((make, holds))
            except queue.Full:
                return False
            self._held += holds
            return True

    def close(self, end: float) -> None:
        """Waits for the lines that wait, until a time."""
        with self._lines.all_tasks_done:
            while self._lines.unfinished_tasks and (left := end - time.monotonic()) > 0:
                self._lines.all_tasks_done.wait(left)
        with contextlib.suppress(queue.Full):  # then the thread hangs in a write, and ends with the process
            self._lines.put_nowait(None)

    def _work(self) -> None:
        while line := self._lines.get():
            make, holds = line
            try:
                self._file.write(make())
                self._file.flush()
            except (OSError, ValueError):
                pass  # a full disk or a closed pipe
            finally:
                del make, line
                with self._lock:
                    self._held -= holds
                self._lines.task_done()


class LogHandler(logging.Handler):
    """Sends the server's own log the same way."""

    def __init__(self, writer: LogWriter, file: IO[bytes]) -> None:
        super().__init__()
        self._writer = writer
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Has a record written."""
        line = self.format(record) + "\n"
        self._writer.write(self._file, lambda: line.encode("utf-8", "backslashreplace"))
