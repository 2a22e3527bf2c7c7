"""Joins the requests that are in flight for one signature.

While the model runs, requests wait; as soon as it is free, all that wait and fit run together. So a lone
client never waits for company, and the busier the server, the larger its batches.

Models run in threads, for the event loop to stay free. A lone small request to a model that is quicker than
the way to a thread and back is worth runs in the event loop itself, if what the model costs follows from the
shapes of its inputs alone, and these shapes have just been seen to be quick.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from karpa_tf.serving.joining import Joining
from karpa_tf.serving.json_tensors import Arrays, Spec, check_rows, rows_of
from karpa_tf.serving.refusal import Refusal

# Seconds up to which a run may hold up the event loop; to a thread and back takes a tenth of that.
_QUICK = 0.002
# Bytes of a request up to which its run is taken to be as quick as the last one.
_SMALL = 10_000


@dataclass(frozen=True)
class BatchLimits:
    """How much may run and wait.

    Attributes:
        join: True joins whatever comes in rows, False nothing, None what was shown to answer row by row.
        rows: the most rows that are joined; a larger request runs by itself.
        request_rows: the most rows in a request.
        waiting_rows: so many rows may wait; a request that finds more is refused at once.
        threads: how many runs of a signature may go on side by side.
        lone_threads: the same where requests are not joined.
        run_seconds: a run that takes longer is given up; 0: none is.
    """

    join: bool | None = None
    rows: int = 64
    request_rows: int = 16_384
    waiting_rows: int = 1024
    threads: int = 1
    lone_threads: int = 1
    run_seconds: float = 0.0


@dataclass
class _Item:
    arrays: Arrays
    rows: int
    key: Any  # requests with equal keys can be joined; None: with no other
    future: asyncio.Future[Arrays]
    since: float = field(default_factory=time.perf_counter)


@dataclass
class _Watch:
    """A run, and what happens when it takes too long."""

    batch: list[_Item]
    timer: asyncio.TimerHandle = field(init=False)
    overdue: bool = False


@dataclass(frozen=True)
class RunReport:
    """What a run was like, for the metrics: its rows, requests, seconds, and the seconds each waited."""

    rows: int
    requests: int
    seconds: float
    waited: list[float]


class Batcher:
    """The queue in front of one signature. All methods are called in the event loop."""

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        inputs: Mapping[str, Spec],
        joining: Joining,
        limits: BatchLimits,
        executor: Executor,
        report: Callable[[RunReport], None] = lambda report: None,
        *,
        steady: bool = False,
    ) -> None:
        """Makes an empty queue.

        Args:
            run: the signature.
            inputs: type and shape by name.
            joining: whether requests are joined, and how an answer's width is known.
            limits: how much may run and wait.
            executor: where it runs.
            report: called after every run.
            steady: whether what a run costs follows from the shapes of its inputs alone.
        """
        self._run = run
        self._inputs = inputs
        self._limits = limits
        self._executor = executor
        self._report = report
        self._queue: deque[_Item] = deque()
        self._running = 0
        self._overdue = 0
        self._steady = steady
        self._quick: Any = None  # the shapes of the last run, if it was quick
        self._joins = joining.joined
        self._lengths = joining.lengths
        self._threads = limits.threads if joining.joined else limits.lone_threads
        self._watches: dict[int, _Watch] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stuck(self) -> bool:
        """Whether a run takes longer than it may, and cannot be ended."""
        return bool(self._overdue)

    def _stuck(self) -> Refusal:
        return Refusal(
            "UNAVAILABLE",
            f"A run of this signature takes longer than --max_run_seconds {self._limits.run_seconds:g}; "
            "nothing but the end of the server ends it.",
        )

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for the model."""
        return sum(item.rows for item in self._queue)

    async def submit(self, arrays: Arrays, deadline: float | None = None) -> Arrays:
        """Runs the signature.

        Args:
            arrays: an array an input, of its type.
            deadline: when the caller stops waiting, in the event loop's time.

        Returns:
            An array an output, for these rows alone.

        Raises:
            Refusal: too much is waiting, the deadline has passed, or the graph refuses the values.
        """
        rows = rows_of(list(arrays.values()))
        check_rows(rows or 0, self._limits.request_rows)
        if self._overdue:
            raise self._stuck()
        waiting = self.waiting_rows
        if waiting >= self._limits.waiting_rows:
            raise Refusal("RESOURCE_EXHAUSTED", f"{waiting} rows wait already; try again later.")
        loop = asyncio.get_running_loop()
        item = _Item(arrays, max(rows or 1, 1), self._key(arrays, rows), loop.create_future())
        timer = None
        if deadline is not None:
            timer = loop.call_at(deadline, _expire, item.future)
        self._queue.append(item)
        self._idle.clear()
        # In the loop's next turn: what has come at the same moment runs together.
        loop.call_soon(self._start)
        try:
            return await item.future
        finally:
            if timer:
                timer.cancel()

    async def drain(self) -> None:
        """Waits until nothing runs or waits."""
        await self._idle.wait()

    def _key(self, arrays: Arrays, rows: int | None) -> Any:
        """Requests are joined if nothing but their number of rows differs."""
        if not self._joins or not rows or rows > self._limits.rows:
            return None
        for name, (_, shape) in self._inputs.items():
            if shape is None or len(shape) != arrays[name].ndim:
                return None  # a shape that the signature does not promise to take
        return tuple(arrays[name].shape[1:] for name in self._inputs)

    def _start(self) -> None:
        while self._queue and self._running < self._threads:
            batch = self._next_batch()
            if not batch:
                continue
            self._running += 1
            if self._can_run_here(batch):
                self._finish(batch, *self._execute(batch))
            else:
                loop = asyncio.get_running_loop()
                if self._limits.run_seconds:
                    watch = _Watch(batch)
                    watch.timer = loop.call_later(self._limits.run_seconds, self._give_up, watch)
                    self._watches[id(batch)] = watch
                self._executor.submit(self._execute_in_thread, loop, batch)
        if not self._queue and not self._running:
            self._idle.set()

    def _give_up(self, watch: _Watch) -> None:
        """Answers those who wait for a run that takes too long, and refuses the others while it goes on."""
        watch.overdue = True
        self._overdue += 1
        seconds = f"{self._limits.run_seconds:g}"
        late = Refusal("DEADLINE_EXCEEDED", f"The run took longer than --max_run_seconds {seconds}.")
        for items, refusal in ((watch.batch, late), (self._queue, self._stuck())):
            for item in items:
                if not item.future.done():
                    item.future.set_exception(refusal)
        self._queue.clear()
        if self._running == self._overdue:
            self._idle.set()  # nobody waits for it any more, and a version that is replaced must not either

    def _can_run_here(self, batch: list[_Item]) -> bool:
        return (
            self._quick is not None
            and self._running == 1
            and not self._queue
            and len(batch) == 1
            and batch[0].rows == 1
            and _shapes(batch[0]) == self._quick
            and _is_small(batch[0].arrays)
        )

    def _next_batch(self) -> list[_Item]:
        batch: list[_Item] = []
        rows = 0
        left: list[_Item] = []
        while self._queue:
            item = self._queue.popleft()
            if item.future.done():
                continue  # its caller has gone
            fits = not batch or (
                item.key is not None and item.key == batch[0].key and rows + item.rows <= self._limits.rows
            )
            if not fits:
                left.append(item)
                if rows >= self._limits.rows or batch[0].key is None:
                    break
                continue
            batch.append(item)
            rows += item.rows
        self._queue.extendleft(reversed(left))
        return batch

    def _execute_in_thread(self, loop: asyncio.AbstractEventLoop, batch: list[_Item]) -> None:
        # Straight back, without the futures that asyncio would chain.
        loop.call_soon_threadsafe(self._finish, batch, *self._execute(batch))

    def _execute(self, batch: list[_Item]) -> tuple[list[Arrays | BaseException], RunReport]:
        start = time.perf_counter()
        results: list[Arrays | BaseException]
        try:
            results = self._joined(batch) if len(batch) > 1 else [self._alone(batch[0])]
        except Exception as error:  # whatever happens, nobody is left waiting
            results = [error for _ in batch]
        report = RunReport(
            sum(item.rows for item in batch),
            len(batch),
            time.perf_counter() - start,
            [start - item.since for item in batch],
        )
        return results, report

    def _alone(self, item: _Item) -> Arrays | BaseException:
        try:
            return self._run(item.arrays)
        except Exception as error:  # whatever it is, it belongs to this request
            return error

    def _joined(self, batch: list[_Item]) -> list[Arrays | BaseException]:
        arrays = {name: np.concatenate([item.arrays[name] for item in batch]) for name in self._inputs}
        total = sum(item.rows for item in batch)
        try:
            outputs = self._run(arrays)
        except Exception:  # one bad request must not fail the others
            return [self._alone(item) for item in batch]
        rows_kept = all(array.ndim and len(array) == total for array in outputs.values())
        if not rows_kept:
            self._joins = False  # the signature promised rows and does not keep to it
            return [self._alone(item) for item in batch]
        results: list[Arrays | BaseException] = []
        begin = 0
        for item in batch:
            rows = {name: array[begin : begin + item.rows] for name, array in outputs.items()}
            results.append(self._without_padding(rows))
            begin += item.rows
        return results

    def _without_padding(self, outputs: Arrays) -> Arrays:
        """Cuts off the columns that only the neighbours' longer rows needed, as the signature says."""
        for name, length in self._lengths.items():
            outputs[name] = outputs[name][:, : max(int(outputs[length].max(initial=0)), 0)]
        return outputs

    def _finish(self, batch: list[_Item], results: list[Arrays | BaseException], report: RunReport) -> None:
        self._running -= 1
        if watch := self._watches.pop(id(batch), None):
            watch.timer.cancel()
            self._overdue -= watch.overdue
        # What was refused at once says nothing.
        failed = any(isinstance(result, BaseException) for result in results)
        quick = self._steady and report.seconds < _QUICK and not failed and len(batch) == 1
        self._quick = _shapes(batch[0]) if quick else None
        self._start()
        for item, result in zip(batch, results, strict=True):
            if item.future.done():
                continue
            if isinstance(result, BaseException):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)
        self._report(report)


def _expire(future: asyncio.Future[Arrays]) -> None:
    if not future.done():
        future.set_exception(Refusal("DEADLINE_EXCEEDED", "The answer was not there in time."))


def _shapes(item: _Item) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in item.arrays.values())


def _is_small(arrays: Arrays) -> bool:
    if sum(array.size for array in arrays.values()) > _SMALL:
        return False  # strings are not counted one by one then
    return sum(map(_bytes, arrays.values())) <= _SMALL


def _bytes(array: np.ndarray) -> int:
    return sum(map(len, array.flat)) if array.dtype == object else array.nbytes
