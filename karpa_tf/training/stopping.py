"""Stopping a training: signals, and steps that wait for a worker that will not come."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

# Seconds that a step may take, at least, once a worker was asked to stop.
_PATIENCE = 4.0


class Pace:
    """How long steps take, and so how long one that hangs may be waited for."""

    def __init__(self) -> None:
        self.steps = 0
        self._longest = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.steps += 1
        self._longest = max(self._longest, time.monotonic() - start)

    def patience(self) -> float:
        """Seconds after which a step is taken to wait for another worker that will not come."""
        return max(_PATIENCE, 2 * self._longest if self.steps > 1 else 0.0)


@contextmanager
def stop_signal(patience: Callable[[], float] | None = None) -> Iterator[threading.Event]:
    """Sets an event at the first Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once.

    Args:
        patience: how many seconds later the process ends whatever it does. A step that waits for another
            worker cannot be interrupted; without other workers it ends by itself.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step (Ctrl-C again: at once).", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    left = threading.Event()
    with ExitStack() as stack:
        if patience:
            stack.enter_context(_end_if_stuck(patience, left))
        try:
            yield event
        finally:
            left.set()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _end_if_stuck(patience: Callable[[], float], left: threading.Event) -> Iterator[None]:
    """Ends the process that many seconds after a signal, unless `left` is set by then.

    Python's own handlers wait for the main thread to come back from TensorFlow; the bytes that the
    interpreter writes to a socket for each signal do not.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        if ours.recv(1) and not left.wait(patience()):
            print(
                "Stopped while waiting for another worker; the last checkpoint is what there is.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(130)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        theirs.close()
        thread.join()
        ours.close()
