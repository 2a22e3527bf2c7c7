"""Reads large requests and writes large answers in processes of their own: the event loop is never held.

A thread would not do: parsing, converting and writing run in C, and keep every other thread of this process
from running meanwhile, for seconds where a body has millions of numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson

from karpa_tf.serving import buffers, requests
from karpa_tf.serving.examples import Limits
from karpa_tf.serving.json_tensors import Arrays
from karpa_tf.serving.reader_process import SIZES
from karpa_tf.serving.refusal import Refusal
from karpa_tf.serving.requests import Question, Signatures

Result = TypeVar("Result")

# Seconds that reading may take where the client sets no deadline.
_PATIENCE = 60.0
# Of all requests that wait to be read, as many as this of the largest size.
_LARGEST_BODIES = 16
# Bytes of a pipe, as many as Linux allows everybody: whenever it is full, Python's lock changes hands.
_PIPE = 1 << 20


class Readers:
    """Some processes that read and write, one request or answer each at a time.

    Args:
        count: how many.
        limits: what a request may bring.
    """

    def __init__(self, count: int, limits: Limits) -> None:
        self._limits = limits
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: set[_Process] = set()
        self._threads = ThreadPoolExecutor(count, "read")
        self._closed = False
        self._held = 0
        for _ in range(count):
            self._add()

    @property
    def pids(self) -> list[int]:
        """The processes' numbers."""
        return sorted(process.pid for process in self._all)

    async def read_rest(
        self,
        body: Sequence[bytes],
        encoding: str,
        api: str,
        model: str,
        signatures: Signatures,
        deadline: float | None,
    ) -> Question:
        """As `requests.read_rest`; `body` in parts, `deadline` in the event loop's time."""
        ask = {
            "api": api,
            "encoding": encoding,
            "model": model,
            "signatures": {
                name: [dict(inputs), list(optional)] for name, (inputs, optional) in signatures.items()
            },
        }
        return await self._read(ask, body, deadline)

    async def write_rest(
        self, api: str, by_rows: bool, rows: int, outputs: Arrays, deadline: float
    ) -> list[memoryview]:
        """As `answers.write_rest`; `deadline` in the event loop's time."""
        ask = {"api": api, "by_rows": by_rows, "examples": rows}
        size = sum(array.nbytes for array in outputs.values())
        return await self._in_process(ask, outputs, size, deadline, lambda header, blocks: blocks)

    async def read_grpc(self, kind: str, message: bytes, deadline: float | None) -> Question:
        """As `requests.read_grpc`."""
        return await self._read({"api": "grpc", "kind": kind}, [message], deadline)

    async def _read(self, ask: dict[str, Any], body: Sequence[bytes], deadline: float | None) -> Question:
        size = sum(map(len, body))
        if self._held + size > _LARGEST_BODIES * self._limits.bytes:
            raise Refusal("RESOURCE_EXHAUSTED", "Too much is being sent at once; try again later.")
        kind = ask.get("kind", "")
        return await self._in_process(
            ask, body, size, deadline, lambda header, blocks: requests.unpack(header, blocks, kind)
        )

    async def _in_process(
        self,
        ask: dict[str, Any],
        given: Sequence[bytes] | Arrays,
        size: int,
        deadline: float | None,
        finish: Callable[[Any, list[memoryview]], Result],
    ) -> Result:
        """Has a process do something; `finish` makes of its answer what is returned."""
        loop = asyncio.get_running_loop()
        seconds = _PATIENCE if deadline is None else deadline - loop.time()
        ask |= {"bytes": self._limits.bytes, "rows": self._limits.rows}
        self._held += size
        try:
            # Also where all processes are busy with others.
            async with asyncio.timeout(seconds):
                return await loop.run_in_executor(
                    self._threads, self._ask, ask, given, time.monotonic() + seconds, finish
                )
        except TimeoutError:
            raise _late() from None
        finally:
            self._held -= size

    def _ask(
        self,
        ask: dict[str, Any],
        given: Sequence[bytes] | Arrays,
        end: float,
        finish: Callable[[Any, list[memoryview]], Result],
    ) -> Result:
        if time.monotonic() >= end:
            raise _late()
        body: Sequence[bytes | memoryview]
        if isinstance(given, dict):
            header, body = requests.pack(Question(given))
            ask = header | ask
        else:
            body = given
        process = self._idle.get()
        try:
            header, blocks = process.ask(orjson.dumps(ask), body, end)
        except BaseException as error:
            # It is in the middle of something.
            self._drop(process)
            if isinstance(error, TimeoutError):
                raise _late() from None
            if isinstance(error, (OSError, EOFError)):
                raise Refusal(
                    "RESOURCE_EXHAUSTED",
                    "The request could not be read, or not be answered: it takes too much memory.",
                ) from None
            raise
        self._idle.put(process)
        if "refusal" in header:
            raise Refusal(*header["refusal"])
        return finish(header, blocks)

    def _add(self) -> None:
        process = _Process()
        self._all.add(process)
        self._idle.put(process)

    def _drop(self, process: _Process) -> None:
        self._all.discard(process)
        process.close()
        if not self._closed:
            self._add()

    def close(self) -> None:
        """Ends the processes."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._all):
            process.close()


class _Process:
    """One of them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "karpa_tf.serving.reader_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One thread is enough, and each would reserve memory.
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        self.pid = self._process.pid
        for pipe in (self._process.stdin, self._process.stdout):
            # Refused where a user has many such pipes; then they stay as they are.
            with contextlib.suppress(OSError):
                if pipe:
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)

    def ask(
        self, header: bytes, body: Sequence[bytes | memoryview], end: float
    ) -> tuple[Any, list[memoryview]]:
        """Asks, and waits for the answer.

        Raises:
            TimeoutError: it did not come in time.
            EOFError: the process has ended.
        """
        source = self._process.stdin
        assert source is not None
        source.write(SIZES.pack(len(header), sum(map(len, body))) + header)
        for part in body:
            source.write(part)
        source.flush()
        size, _ = SIZES.unpack(self._exactly(SIZES.size, end))
        answer = orjson.loads(self._exactly(size, end))
        return answer, [self._exactly(size, end) for size in answer.get("sizes", [])]

    def _exactly(self, size: int, end: float) -> memoryview:
        target = self._process.stdout
        assert target is not None
        poll = select.poll()
        poll.register(target, select.POLLIN)
        view = buffers.empty(size)
        place = 0
        while place < size:
            if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                raise TimeoutError
            count = os.readv(target.fileno(), [view[place:]])
            if not count:
                raise EOFError
            place += count
        return view

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        self._process.wait()


def _late() -> Refusal:
    return Refusal("DEADLINE_EXCEEDED", "The answer was not there in time.")
