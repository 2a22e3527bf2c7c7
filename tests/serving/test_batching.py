"""Joining requests: who runs with whom, what each gets back, and who is sent away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from karpa_tf.serving import batching
from karpa_tf.serving.batching import Arrays, Batcher, BatchLimits, RunReport
from karpa_tf.serving.joining import Joining, decide
from karpa_tf.serving.refusal import Refusal

NUMBERS = {"x": ("float32", (-1,))}
JOINED = Joining(True, "shown")


class Model:
    """Doubles numbers; holds every run until it is let go, and remembers what ran together."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def run(self, arrays: Arrays) -> Arrays:
        self.batches.append(arrays["x"].tolist())
        self.started.release()
        assert self.go.acquire(timeout=60)
        if (arrays["x"] < 0).any():
            raise Refusal("INVALID_ARGUMENT", "a negative number")
        return {"y": arrays["x"] * 2}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def ask(batcher: Batcher, *x: float, within: float | None = None) -> asyncio.Task[Arrays]:
    deadline = None if within is None else asyncio.get_running_loop().time() + within
    return asyncio.ensure_future(batcher.submit({"x": np.array(x, np.float32)}, deadline))


async def started(model: Model) -> None:
    """Waits until a run has begun, and lets the loop put later requests into the queue."""
    assert await asyncio.to_thread(model.started.acquire, timeout=60)
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_waits_while_the_model_runs_runs_together(executor) -> None:
    async def scenario() -> None:
        model, reports = Model(), []
        batcher = Batcher(model.run, NUMBERS, JOINED, BatchLimits(rows=4), executor, reports.append)
        first = ask(batcher, 1)
        await started(model)
        others = [ask(batcher, 2, 3), ask(batcher, 4), ask(batcher, 5, 6)]
        model.go.release(3)
        answers = [(await task)["y"].tolist() for task in (first, *others)]
        # The lone one at once, then as many as fit into four rows, then the rest.
        assert model.batches == [[1], [2, 3, 4], [5, 6]]
        assert answers == [[2], [4, 6], [8], [10, 12]]
        await batcher.drain()
        assert [(report.rows, report.requests) for report in reports] == [(1, 1), (3, 2), (2, 1)]
        assert all(
            isinstance(report, RunReport) and len(report.waited) == report.requests for report in reports
        )

    asyncio.run(scenario())


def test_what_comes_at_the_same_moment_runs_together(executor) -> None:
    async def scenario() -> None:
        model = Model()
        model.go.release(10)
        batcher = Batcher(model.run, NUMBERS, JOINED, BatchLimits(), executor)
        await asyncio.gather(*(ask(batcher, number) for number in (1, 2, 3)))
        assert model.batches == [[1, 2, 3]]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("quick", "given", "in_loop"),
    [
        (60.0, [b"short"], [False, True, True]),  # once it is known to be quick
        (0.0, [b"short"], [False, False, False]),
        (60.0, [b"a long text " * 1000], [False, False, False]),
        (60.0, [b"two", b"rows"], [False, False, False]),
    ],
)
def test_a_lone_small_request_to_a_quick_model_needs_no_thread(
    executor, monkeypatch, quick, given, in_loop
) -> None:
    monkeypatch.setattr(batching, "_QUICK", quick)
    texts = {"x": ("string", (-1,))}

    async def scenario() -> None:
        threads = []

        def run(arrays: Arrays) -> Arrays:
            threads.append(threading.get_ident())
            return {"y": np.zeros(len(arrays["x"]), np.float32)}

        batcher = Batcher(run, texts, JOINED, BatchLimits(), executor, steady=True)
        for _ in range(3):
            await batcher.submit({"x": np.array(given, object)})
        assert [thread == threading.get_ident() for thread in threads] == in_loop
        await batcher.drain()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("steady", "widths", "in_loop"),
    [
        (True, [3, 3, 4, 4, 3], [False, True, False, True, False]),  # another shape has not been seen
        (False, [3, 3, 3], [False, False, False]),  # the next values may cost anything
    ],
)
def test_only_what_cannot_take_longer_runs_without_a_thread(
    executor, monkeypatch, steady, widths, in_loop
) -> None:
    monkeypatch.setattr(batching, "_QUICK", 60.0)
    spec = {"x": ("float32", (-1, -1))}

    async def scenario() -> None:
        threads = []

        def run(arrays: Arrays) -> Arrays:
            threads.append(threading.get_ident())
            return {"y": arrays["x"]}

        batcher = Batcher(run, spec, JOINED, BatchLimits(), executor, steady=steady)
        for width in widths:
            await batcher.submit({"x": np.zeros((1, width), np.float32)})
        assert [thread == threading.get_ident() for thread in threads] == in_loop

    asyncio.run(scenario())


def test_a_refusal_does_not_make_a_model_quick(executor, monkeypatch) -> None:
    monkeypatch.setattr(batching, "_QUICK", 60.0)

    async def scenario() -> None:
        model, threads = Model(), []
        model.go.release(10)

        def run(arrays: Arrays) -> Arrays:
            threads.append(threading.get_ident())
            return model.run(arrays)

        batcher = Batcher(run, NUMBERS, JOINED, BatchLimits(), executor, steady=True)
        with pytest.raises(Refusal):
            await ask(batcher, -1)
        await ask(batcher, 1)
        assert threading.get_ident() not in threads

    asyncio.run(scenario())


def test_without_batching_each_runs_alone(executor) -> None:
    async def scenario() -> None:
        model = Model()
        limits = BatchLimits(lone_threads=2)
        batcher = Batcher(model.run, NUMBERS, Joining(False, "not shown"), limits, executor)
        tasks = [ask(batcher, number) for number in range(5)]
        model.go.release(5)
        await asyncio.gather(*tasks)
        assert sorted(model.batches) == [[0], [1], [2], [3], [4]]

    asyncio.run(scenario())


def test_only_requests_of_one_shape_are_joined(executor) -> None:
    async def scenario() -> None:
        shapes: list[tuple[int, ...]] = []
        gate = Model()

        def run(arrays: Arrays) -> Arrays:
            shapes.append(arrays["x"].shape)
            gate.started.release()
            assert gate.go.acquire(timeout=60)
            return {"y": arrays["x"]}

        spec = {"x": ("float32", (-1, -1))}
        batcher = Batcher(run, spec, JOINED, BatchLimits(), executor)
        sizes = [(1, 2), (1, 2), (1, 3), (2, 2), (1, 3), (3,), (0, 2)]
        tasks = []
        for number, size in enumerate(sizes):
            tasks.append(asyncio.ensure_future(batcher.submit({"x": np.zeros(size, np.float32)})))
            if number == 0:
                await started(gate)
        gate.go.release(10)
        answers = await asyncio.gather(*tasks)
        assert [answer["y"].shape for answer in answers] == sizes
        # A shape that the signature does not promise to take, and no rows at all, run by themselves.
        assert sorted(shapes) == sorted([(1, 2), (3, 2), (2, 3), (3,), (0, 2)])

    asyncio.run(scenario())


def test_a_bad_request_fails_alone(executor) -> None:
    async def scenario() -> None:
        model = Model()
        model.go.release(10)
        batcher = Batcher(model.run, NUMBERS, JOINED, BatchLimits(), executor)
        tasks = [ask(batcher, number) for number in (1, 2, -3, 4)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[2], Refusal) and answers[2].code == "INVALID_ARGUMENT"
        assert [answer["y"].tolist() for answer in answers if isinstance(answer, dict)] == [[2], [4], [8]]

    asyncio.run(scenario())


def test_too_much_is_refused_at_once(executor) -> None:
    async def scenario() -> None:
        model = Model()
        limits = BatchLimits(rows=2, request_rows=5, waiting_rows=3)
        batcher = Batcher(model.run, NUMBERS, JOINED, limits, executor)
        with pytest.raises(Refusal, match=r"may have 5 rows.*Received: 6") as caught:
            await ask(batcher, *range(6))
        assert caught.value.code == "RESOURCE_EXHAUSTED" and caught.value.http_status == 429
        running = ask(batcher, 0)
        await started(model)
        waiting = [ask(batcher, 1), ask(batcher, 2), ask(batcher, 3)]
        await asyncio.sleep(0)
        # The model is still held: the answer does not wait for it.
        with pytest.raises(Refusal, match="3 rows wait already"):
            await ask(batcher, 4)
        model.go.release(10)
        await asyncio.gather(running, *waiting)
        assert (await ask(batcher, 4))["y"].tolist() == [8]

    asyncio.run(scenario())


def test_a_deadline_is_kept_and_what_has_passed_is_not_run(executor) -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model.run, NUMBERS, JOINED, BatchLimits(), executor)
        running = ask(batcher, 1)
        await started(model)
        late, gone, patient = ask(batcher, 2, within=0), ask(batcher, 3), ask(batcher, 4)
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(Refusal) as caught:
            await late
        assert caught.value.code == "DEADLINE_EXCEEDED" and caught.value.http_status == 504
        model.go.release(10)
        await asyncio.gather(running, patient)
        assert model.batches == [[1], [4]]

    asyncio.run(scenario())


def test_an_answer_is_cut_to_the_width_that_its_rows_say(executor) -> None:
    """Texts side by side are padded to the longest in the graph; each gets back its own width.

    What is empty or zero in the rows themselves stays.
    """

    def run(arrays: Arrays) -> Arrays:
        cells = [text.split(b",") for text in arrays["text"]]
        width = max(map(len, cells))
        rows = np.array([row + [b""] * (width - len(row)) for row in cells], object).reshape(-1, width)
        sizes = np.vectorize(len, otypes=[np.int64])(rows)
        return {"cells": rows, "sizes": sizes, "count": np.array([len(row) for row in cells], np.int32)}

    async def scenario() -> None:
        gate = Model()

        def held(arrays: Arrays) -> Arrays:
            gate.started.release()
            assert gate.go.acquire(timeout=60)
            return run(arrays)

        joining = Joining(True, "shown", {"cells": "count", "sizes": "count"})
        batcher = Batcher(held, {"text": ("string", (-1,))}, joining, BatchLimits(), executor)
        texts = [[b"first"], [b"a,b,c,d,,"], [b"a", b"b,c"], [b"x,,"]]
        tasks = []
        for number, rows in enumerate(texts):
            array = np.empty(len(rows), object)
            array[:] = rows
            tasks.append(asyncio.ensure_future(batcher.submit({"text": array})))
            if number == 0:
                await started(gate)
        gate.go.release(10)
        answers = await asyncio.gather(*tasks)
        for rows, answer in zip(texts, answers, strict=True):
            alone = run({"text": np.array(rows, object)})
            assert {name: array.tolist() for name, array in answer.items()} == {
                name: array.tolist() for name, array in alone.items()
            }
        assert answers[1]["cells"].tolist() == [[b"a", b"b", b"c", b"d", b"", b""]]

    asyncio.run(scenario())


SHOWN = {"rowwise": True, "reason": "seen at export"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "evidence", "wanted", "joined", "reason"),
    [
        # By default what was shown, and nothing else.
        ((-1,), (-1,), {}, None, False, "no assets.extra/rowwise.json"),
        ((-1,), (-1,), SHOWN, None, True, "seen at export"),
        ((-1,), (-1,), {"rowwise": False, "reason": "it differs"}, None, False, "it differs"),
        ((-1,), (-1,), SHOWN, False, False, "--enable_batching is false"),
        # Asked for, whatever comes in rows and can be taken apart.
        ((-1,), (-1,), {}, True, True, "--enable_batching is true"),
        ((-1, -1), (-1, -1), {}, True, True, "--enable_batching is true"),
        ((-1,), (-1, -1), {}, True, False, "no output says how wide"),
        # Nobody can join or take apart these, whatever a file says.
        ((2,), (-1,), SHOWN, None, False, "does not come in rows"),
        ((-1,), (), SHOWN, True, False, "does not come in rows"),
        (None, (-1,), SHOWN, None, False, "does not come in rows"),
    ],
)
def test_which_signatures_are_joined(inputs, outputs, evidence, wanted, joined, reason) -> None:
    decided = decide({"x": ("float32", inputs)}, {"y": ("float32", outputs)}, evidence, wanted)
    assert decided.joined is joined and reason in decided.reason


def test_a_length_must_be_an_output_of_whole_numbers() -> None:
    outputs = {"y": ("string", (-1, -1)), "n": ("int32", (-1,)), "share": ("float32", (-1,))}
    for given, kept in (({"y": "n"}, {"y": "n"}), ({"y": "share", "z": "n"}, {}), ({"y": "none"}, {})):
        evidence = {**SHOWN, "lengths": given}
        assert decide({"x": ("string", (-1,))}, outputs, evidence, None).lengths == kept


def test_a_signature_that_breaks_its_promise_is_no_longer_joined(executor) -> None:
    async def scenario() -> None:
        gate, sizes = Model(), []

        def run(arrays: Arrays) -> Arrays:
            sizes.append(len(arrays["x"]))
            gate.started.release()
            assert gate.go.acquire(timeout=60)
            return {"y": arrays["x"][:1]}

        batcher = Batcher(run, NUMBERS, JOINED, BatchLimits(), executor)
        tasks = [ask(batcher, 1)]
        await started(gate)
        tasks += [ask(batcher, 2), ask(batcher, 3)]
        gate.go.release(10)
        assert [(await task)["y"].tolist() for task in tasks] == [[1], [2], [3]]
        assert sizes == [1, 2, 1, 1]

    asyncio.run(scenario())


def test_a_run_that_takes_too_long_is_given_up_and_the_signature_waits_for_its_end(executor) -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model.run, NUMBERS, JOINED, BatchLimits(run_seconds=0.01), executor)
        running = ask(batcher, 1)
        await started(model)
        waiting = ask(batcher, 2)
        with pytest.raises(Refusal, match=r"longer than --max_run_seconds 0\.01") as caught:
            await running
        assert caught.value.code == "DEADLINE_EXCEEDED"
        with pytest.raises(Refusal) as caught:
            await waiting
        assert caught.value.code == "UNAVAILABLE" and batcher.stuck
        with pytest.raises(Refusal, match="nothing but the end of the server ends it"):
            await ask(batcher, 3)
        await batcher.drain()  # a version with such a run can be replaced
        # It ends after all, and the next may come.
        model.go.release(10)
        while batcher.stuck:
            await asyncio.sleep(0)
        assert (await ask(batcher, 4))["y"].tolist() == [8] and model.batches == [[1], [4]]

    asyncio.run(scenario())
