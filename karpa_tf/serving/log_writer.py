"""Writes logs in a thread, so that a full disk or a reader that has stopped reading stops no answer."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import IO

# Lines that wait to be written; what comes beyond them is dropped and counted.
_LARGEST_QUEUE = 10_000
# Seconds that the last lines get when the server stops.
_LAST_WORDS = 1.0


class LogWriter:
    """A bounded queue of lines, and the thread that writes them.

    Attributes:
        dropped: how many lines were left out, because too many were waiting.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._lines: queue.Queue[tuple[IO[bytes], Callable[[], bytes]] | None] = queue.Queue(_LARGEST_QUEUE)
        # A write that never returns must not keep the process.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, file: IO[bytes], make: Callable[[], bytes]) -> None:
        """Has a line written; `make` is called in the thread and returns it."""
        try:
            self._lines.put_nowait((file, make))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Waits a moment for the lines that wait."""
        end = time.monotonic() + _LAST_WORDS
        with self._lines.all_tasks_done:
            while self._lines.unfinished_tasks and (left := end - time.monotonic()) > 0:
                self._lines.all_tasks_done.wait(left)
        with contextlib.suppress(queue.Full):  # then the thread hangs in a write, and ends with the process
            self._lines.put_nowait(None)

    def _work(self) -> None:
        while True:
            line = self._lines.get()
            if line is None:
                return
            file, make = line
            try:
                file.write(make())
                file.flush()
            except (OSError, ValueError):
                pass  # a full disk or a closed pipe
            finally:
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
