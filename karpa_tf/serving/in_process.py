"""The server beside a script or a notebook, in a thread of the same process."""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine
from karpa_tf.serving.options import ServeOptions
from karpa_tf.serving.server import Server
from karpa_tf.settings import types_of


@dataclass(frozen=True, repr=False)
class Serving(InALine):
    """A server that answers.

    Attributes:
        rest: where REST listens, e.g. `http://127.0.0.1:8501`; None: nowhere.
        grpc: where gRPC listens, e.g. `127.0.0.1:8500`; None: nowhere.
        models: the versions that it served when it began, the newest first, by model.
    """

    rest: str | None
    grpc: str | None
    models: Mapping[str, Sequence[int]]


@contextmanager
def serve(folder: str | Path = "savedmodels", **flags: Any) -> Iterator[Serving]:
    """Serves models while a `with` block runs, as `karpa-tf serve` does.

    At the end of the block, requests that are being answered get `drain_seconds` to finish.

        with serve("savedmodels") as server:
            urlopen(f"{server.rest}/v1/models/mine")

    Args:
        folder: of models, where no flag names others.
        flags: those of `karpa-tf serve`, by name. Unless they are given, REST has a free port, gRPC none, and
            no request is logged.

    Yields:
        Where it listens, and what it serves.

    Raises:
        UserError: it cannot start: no model, a port that is taken, a flag that does not exist.
    """
    for name in flags:
        if name not in (known := types_of(ServeOptions)):
            raise UserError(f'serve has no flag "{name}"{did_you_mean(name, known)}')
    options = ServeOptions(**{"port": 0, "rest_api_port": free_port(), "access_log": "", **flags})
    started: Future[tuple[Serving, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(options, str(folder), started)), name="serve")
    thread.start()
    try:
        serving, loop, stop = started.result()
    except BaseException:
        started.cancel()  # where it was Ctrl-C
        thread.join()
        raise
    try:
        yield serving
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        gc.unfreeze()  # what the server set aside is the script's


async def _serve(options: ServeOptions, folder: str, started: Future[Any]) -> None:
    try:
        server = Server(options, folder)
        try:
            await server.start()
            stop = asyncio.Event()
            if started.set_running_or_notify_cancel():
                started.set_result((Serving(**server.description()), asyncio.get_running_loop(), stop))
                await stop.wait()
        finally:
            await server.stop()
    except BaseException as error:
        if started.done():  # nobody waits for it any more
            raise
        started.set_exception(error)


def free_port() -> int:
    """Returns a port that nobody listens on.

    It is below those that systems give to outgoing connections, one of which might take it in the meantime.
    """
    while True:
        port = secrets.choice(range(16_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
