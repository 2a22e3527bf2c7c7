"""TensorBoard itself, started on a folder of runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

from karpa_tf.errors import UserError
from karpa_tf.quiet import stderr_aside


def serve(folder: Path, host: str, port: int | None, ready: Callable[[str], None]) -> None:
    """Serves TensorBoard until Ctrl-C or SIGTERM.

    Args:
        folder: of events; those that come later are shown as well.
        host: the address to listen on.
        port: the port; None: 6006, or the next one that is free.
        ready: is called with the URL once it answers.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    with stderr_aside():  # TensorFlow, which some tabs import
        from tensorboard import program

        board = program.TensorBoard()
        # 0 would be any free port for TensorBoard, too.
        board.configure(logdir=str(folder), host=host, port=port)
        try:
            url = board.launch()
        except program.TensorBoardServerException as error:
            raise UserError(f"{error.msg}; give another --port or --host.") from None
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ready(url)
    ended.wait()
