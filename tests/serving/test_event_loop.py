"""Nobody waits for somebody else's large request, slow disk or unread log: the event loop goes on turning.

What is held here is held for as long as the loop takes for its turns, so that nothing depends on the clock.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from aiohttp import web
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_service_pb2_grpc

from karpa_tf.serving import (
    buffers,
    examples,
    grpc_api,
    json_tensors,
    log_writer,
    model,
    proto_tensors,
    registry,
    requests,
    rest_api,
    tensor_types,
)
from karpa_tf.serving.examples import Limits
from karpa_tf.serving.observing import Call
from karpa_tf.serving.privacy import describe_inputs
from karpa_tf.serving.readers import Readers
from karpa_tf.serving.refusal import Refusal
from karpa_tf.serving.requests import Question
from karpa_tf.serving.steadiness import is_steady
from tests.serving.conftest import SECONDS, Running, until

TURNS = 1000


async def turn() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def others_are_answered(server: Running) -> None:
    """The loop makes a thousand turns, and answers a status request and a small predict."""
    server.call(turn())
    assert server.status()["3"] == "AVAILABLE"
    assert server.predict([1]) == [4]


def readers_of(server: Running) -> Readers:
    return server.server._readers


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


LARGE = {
    "escaped quotes": (b'{"instances": ' + b'\\"' * 200_000, {}, 400),
    "escaped quotes in a string": (b'{"instances": NaN, "' + b'\\\\"' * 200_000, {}, 400),
    "packed lists": (
        gzip.compress(b'{"instances": [' + b"[]," * 5_000_000 + b"[]]}"),
        {"Content-Encoding": "gzip"},
        429,
    ),
    "a small packed body": (gzip.compress(b'{"instances": [1]}'), {"Content-Encoding": "x-gzip"}, 200),
    "packed zeros": (gzip.compress(bytes(100_000_000)), {"Content-Encoding": "gzip"}, 429),
    "many rows": (b'{"instances": [' + b"1," * 20_000 + b"1]}", {}, 429),
    "a rightful batch": (b'{"instances": [' + b"1.5," * 15_000 + b"1.5]}", {}, 200),
    "not-a-numbers": (b'{"instances": [' + b"NaN," * 15_000 + b"NaN]}", {}, 200),
}


def hold(server: Running, pool: ThreadPoolExecutor, ask: Callable[[], Any]) -> Any:
    """Asks while the processes that read large requests are stopped, and lets them go after many turns."""
    pids = readers_of(server).pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer: Future[Any] = pool.submit(ask)
        until(lambda: readers_of(server)._held, "the request has come")
        others_are_answered(server)
        assert not answer.done()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return answer.result(SECONDS)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_is_not_read_in_the_loop(server, pool, name: str) -> None:
    body, headers, status = LARGE[name]
    answer = hold(server, pool, lambda: server.post("/v1/models/add:predict", body, headers))
    assert answer.status == status, answer.body[:200]


def predict_request(**tensors: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "add"
    for name, proto in tensors.items():
        request.inputs[name].CopyFrom(proto)
    return request


def test_a_large_message_is_not_read_in_the_loop(server, pool) -> None:
    with server.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        values = np.arange(10_000, dtype=np.float32)
        request = predict_request(x=tf.make_tensor_proto(values))
        answer = hold(server, pool, lambda: stub.Predict(request, timeout=SECONDS))
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), values + 3)


def test_a_large_answer_is_not_written_in_the_loop(server, pool, monkeypatch) -> None:
    entered, go = threading.Event(), threading.Event()
    encode = json_tensors.encode_rows

    def held(outputs: Any) -> Any:
        entered.set()
        assert go.wait(SECONDS)
        return encode(outputs)

    monkeypatch.setattr(rest_api.json_tensors, "encode_rows", held)
    body = {"instances": [float(n) for n in range(10_000)]}
    answer = pool.submit(server.post, "/v1/models/add:predict", body)
    assert entered.wait(SECONDS)
    server.call(turn())
    assert server.status()["3"] == "AVAILABLE"
    go.set()
    assert answer.result(SECONDS).json == {"predictions": [n + 3 for n in range(10_000)]}


def test_metrics_are_written_by_one_thread_at_a_time(server, pool, monkeypatch) -> None:
    """Each more that holds Python's lock again and again makes the loop wait longer at every turn."""
    go = threading.Event()
    entered = []
    metrics = server.server._observer.metrics

    def held() -> bytes:
        entered.append(threading.get_ident())
        assert go.wait(SECONDS)
        return metrics()

    monkeypatch.setattr(server.server._observer, "metrics", held)
    answers = [pool.submit(server.get, "/monitoring/prometheus/metrics") for _ in range(3)]
    try:
        until(lambda: server.server._api._in_flight == 3 and entered, "all three have come")
        others_are_answered(server)
        assert len(entered) == 1
    finally:
        go.set()
    assert all(b"request_count" in answer.result(SECONDS).body for answer in answers)
    assert len(entered) == 3


class Spread(tf.Module):
    """Small requests whose answers are large: each number is followed by `WIDE` larger ones."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def spread(self, x):
        return {"y": x[:, None] + tf.range(WIDE, dtype=tf.float32)}


WIDE = 40_000


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("spread")
    module = Spread()
    tf.saved_model.save(module, str(folder / "spread" / "1"), signatures={"serving_default": module.spread})
    with Running(folder) as running:
        yield running


def test_a_huge_answer_is_not_written_in_this_process(spread, pool) -> None:
    """Threads that write hold Python's lock again and again, and the loop waits for it at every turn."""
    pids = readers_of(spread).pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer = pool.submit(spread.post, "/v1/models/spread:predict", {"instances": [0.0, 0.5]})
        until(lambda: readers_of(spread)._held, "the answer is to be written")
        spread.call(turn())
        assert spread.post("/v1/models/nope:predict", {"instances": [1]}).status == 404
        assert not answer.done()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    rows = answer.result(SECONDS).json["predictions"]
    assert rows == [list(range(WIDE)), [n + 0.5 for n in range(WIDE)]]


@pytest.mark.parametrize("rows", [1, 2, 8])  # 40,000 values are written by a thread
def test_answers_are_the_same_whoever_writes_them(spread, rows: int) -> None:
    x = [float(n) for n in range(rows)]
    expected = [[n + k for k in range(WIDE)] for n in x]
    for ask, key in (("instances", "predictions"), ("inputs", "outputs")):
        assert spread.post("/v1/models/spread:predict", {ask: x}).json == {key: expected}


def test_others_have_a_turn_after_each_piece_of_an_answer(spread, monkeypatch) -> None:
    """Also where the client takes every piece at once, so that no write waits for it."""
    turns = [0]
    written: list[tuple[int, int]] = []

    async def write(self: web.StreamResponse, data: Any) -> None:
        written.append((turns[0], len(data)))
        assert self._payload_writer is not None
        await self._payload_writer.write(data, drain=False)

    async def count() -> None:
        while True:
            await asyncio.sleep(0)
            turns[0] += 1

    async def begin() -> asyncio.Task[None]:
        return asyncio.ensure_future(count())

    monkeypatch.setattr(web.StreamResponse, "write", write)
    counting = spread.call(begin())
    answer = spread.post("/v1/models/spread:predict", {"instances": [0.0] * 8})
    spread.loop.call_soon_threadsafe(counting.cancel)
    assert len(answer.json["predictions"]) == 8
    at = [turn for turn, _ in written]
    assert len(at) > 4 and len(set(at)) == len(at)
    assert max(size for _, size in written) <= rest_api._WHOLE


@pytest.mark.parametrize("name", [name for name in tensor_types.BY_NAME if name != "string"])
def test_a_large_tensor_is_taken_where_it_lies(name: str) -> None:
    """`tf.constant` would copy it twice, and hold Python's lock all the while."""
    kind = tensor_types.BY_NAME[name]
    shape = (3, model._LARGE)
    there = np.frombuffer(buffers.empty(kind.numpy.itemsize * 3 * model._LARGE), kind.numpy).reshape(shape)
    there[:] = (np.arange(3 * model._LARGE) % 2).reshape(shape)
    expected = there.copy()
    tensor = model._tensor(there, kind.name)
    assert tensor.dtype.name == kind.name and tensor.shape == shape
    np.testing.assert_array_equal(tensor.numpy(), expected)
    there[0, 0] = there[0, 1]
    taken = tensor.numpy()[0, 0] == there[0, 1]
    assert taken or name.startswith("float8"), "it is a copy"
    # What cannot be taken as it is becomes a copy that can.
    odd = np.empty(expected.nbytes + 1, np.uint8)[1:].view(kind.numpy).reshape(shape)
    odd[:] = expected
    fixed = expected.copy()
    fixed.setflags(write=False)
    for array in (odd, fixed, expected[:, ::2], expected.T):
        np.testing.assert_array_equal(model._tensor(array, kind.name).numpy(), array)


def test_what_goes_between_processes_is_not_copied_on_the_way() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    _, blocks = requests.pack(Question({"x": array}))
    assert np.shares_memory(np.frombuffer(blocks[1], np.float32), array)
    with pytest.raises(Refusal, match='"x" is int4, which is not served'):
        requests.pack(Question({"x": array.astype(ml_dtypes.int4)}))


def test_a_slow_disk_holds_up_nobody(models, monkeypatch) -> None:
    entered, go = threading.Event(), threading.Event()
    look = registry.versions_in

    def slow(path: Path) -> Any:
        entered.set()
        assert go.wait(SECONDS)
        return look(path)

    with Running(models) as running:
        monkeypatch.setattr(registry, "versions_in", slow)
        assert entered.wait(SECONDS)
        running.call(turn())
        assert running.predict([1]) == [3]
        go.set()


def test_an_access_log_that_nobody_reads_stops_nothing(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_writer, "_LARGEST_QUEUE", 20)
    monkeypatch.setattr(log_writer, "_LAST_WORDS", 0.0)
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Running(models, access_log=str(pipe)) as running:

        def dropped() -> int:
            assert running.predict([1]) == [3]
            text = running.get("/monitoring/prometheus/metrics").body.decode()
            return int(float(text.split("\nkarpa_tf_log_lines_dropped_total ")[1].split()[0]))

        # A pipe holds 64 KiB.
        until(dropped, "a line has been left out, and counted")
        lines = os.read(unread, 1 << 16).splitlines()
        assert json.loads(lines[0])["status"] == "OK"
        os.close(unread)


def test_lines_that_wait_hold_little_memory_and_stop_no_other_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_writer, "_LAST_WORDS", 0.0)
    stuck, free = os.pipe(), os.pipe()
    writer = log_writer.LogWriter()
    with open(stuck[1], "wb", buffering=0) as first, open(free[1], "wb", buffering=0) as second:
        writer.write(first, lambda: bytes(1 << 20))  # more than the pipe takes
        for _ in range(3):
            writer.write(first, lambda: b"large", 30 << 20)
        for _ in range(3):
            writer.write(first, lambda: b"small")
        assert writer.dropped == 1
        writer.write(second, lambda: b"a line")
        assert os.read(free[0], 100) == b"a line"
        writer.close()
        os.close(stuck[0])
    os.close(free[0])


def test_the_log_of_inputs_keeps_no_numbers_while_nobody_reads_it(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_writer, "_LAST_WORDS", 0.0)
    pipe = tmp_path / "inputs"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with Running(models, request_log=str(pipe)) as running:
        observer = running.server._observer
        call = Call("REST", "predict", model="add")
        observer.received(call, {"text": np.array([b"word " * 2000] * 20, object)})  # fills the pipe
        numbers = np.zeros(1000, np.float32)
        kept = weakref.ref(numbers)
        observer.received(call, {"x": numbers})
        del numbers
        assert kept() is None
        text = {"text": np.array([b"a" * (20 << 20)], object)}
        for _ in range(4):
            observer.received(call, text, 20 << 20)
        assert observer._writer.dropped == 1
        os.close(unread)


def test_a_reader_that_ends_or_takes_too_long_is_replaced(server) -> None:
    body = LARGE["a rightful batch"][0]
    before = readers_of(server).pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    refused = 0
    for _ in before:
        answer = server.post("/v1/models/add:predict", body)
        refused += answer.status == 429 and "could not be read" in answer.json["error"]
    assert refused == len(before) and not set(before) & set(readers_of(server).pids)
    assert server.post("/v1/models/add:predict", body).status == 200


def test_what_takes_too_long_to_read_is_given_up(templates) -> None:
    with Running(templates, rest_api_timeout_in_ms=300) as running:
        pids = readers_of(running).pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        answer = running.post("/v1/models/add:predict", LARGE["a rightful batch"][0])
        assert answer.status == 504 and "not there in time" in answer.json["error"]
        until(lambda: not set(pids) <= set(readers_of(running).pids), "the one that did not answer is gone")


# --- Limits come before the work --------------------------------------------------------------------


class Untouchable:
    """Fails when anybody looks at it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was looked at")


def test_rows_are_counted_before_they_are_looked_at() -> None:
    rows = [Untouchable()] * 11
    spec = {"x": ("float32", (-1,))}
    for body in ({"instances": rows}, {"inputs": rows}, {"inputs": {"x": rows}}):
        with pytest.raises(Refusal, match=r"may have 10 rows; send several\. Received: 11"):
            json_tensors.to_arrays(body, spec, 10)
    with pytest.raises(Refusal, match="10 rows"):
        examples.from_json({"examples": rows}, 10)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"instances": ' + b'\\"' * 500_000, "is not JSON"),
        (b'{"instances": NaN, "' + b'\\\\"' * 500_000, "is not JSON"),
        (b'{"instances": "' + b'\\"' * 500_000, "is not JSON"),
        (b'{"a": ' * 500_000, "nested too deeply"),
        (b'{"instances": [' + b"1e1," * 100 + b"9" * 1_000_000, "no double can hold|is not JSON"),
    ],
)
def test_lenient_json_looks_at_each_character_once(text: bytes, sentence: str) -> None:
    """With a parser that begins again at every quote, these would take hours."""
    with pytest.raises(Refusal, match=sentence):
        json_tensors.parse(text)


def test_lenient_json_reads_inf_outside_of_strings_only() -> None:
    body = b'{"instances": [Inf, -Inf, NaN], "signature_name": "Inf \\" Inf"}'
    parsed = json_tensors.parse(body)
    assert parsed["instances"][:2] == [float("inf"), -float("inf")]
    assert parsed["signature_name"] == 'Inf " Inf'


def test_the_log_of_inputs_cuts_long_strings_between_words() -> None:
    long = "ask ada@example.com " * 1000 + "card 4111 1111 1111 1111"
    (described,) = describe_inputs({"text": np.array([long.encode()], object)})["text"]
    assert "@" not in described and "4111" not in described and described.endswith(" characters)")


def proto(shape: list[int], **values: Any) -> Any:
    made = tf.make_tensor_proto([b""] if "string_val" in values else [0.0])
    made.Clear()
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    for name, value in values.items():
        if isinstance(value, list):
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


def test_a_few_bytes_do_not_ask_for_all_memory() -> None:
    string, number = tf.string.as_datatype_enum, tf.float32.as_datatype_enum
    for shape, values in (
        ([1, 1 << 20], {"dtype": string, "string_val": [b"x" * 700]}),
        ([1 << 17], {"dtype": string, "string_val": [b"x" * 700]}),
        ([1 << 40], {"dtype": number, "float_val": [1.0]}),
        ([1 << 40], {"dtype": number}),
        ([1] * 65, {"dtype": number, "float_val": [1.0]}),
    ):
        with pytest.raises(Refusal):
            proto_tensors.to_array(proto(shape, **values), "x")
    repeated = proto_tensors.to_array(proto([3], dtype=string, string_val=[b"a", b"b"]), "x")
    assert repeated.tolist() == [b"a", b"b", b"b"]


def test_many_tensors_do_not_ask_for_all_memory_either() -> None:
    request = predict_pb2.PredictRequest()
    for number in range(100):
        tensor = request.inputs[f"x{number}"]
        tensor.CopyFrom(proto([1 << 20], dtype=tf.float32.as_datatype_enum, float_val=[1.0]))
    with pytest.raises(Refusal, match="much more memory than the message"):
        requests.read_grpc("predict", request.SerializeToString(), Limits())


def test_a_large_answer_is_the_message_that_a_small_one_would_be() -> None:
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = "add"
    outputs = {
        "f": np.arange(60_000, dtype=np.float32).reshape(3, 200, 100)[:, ::2],
        "d": np.linspace(0, 1, 40_000),
        "i": np.arange(50_000, dtype=np.int64),
        "s": np.array([b"a", b""], object),
        "ä": np.zeros((0, 3), np.float32),
    }
    answer = predict_pb2.PredictResponse.FromString(grpc_api.predict_response(spec, outputs))
    assert answer.model_spec.name == "add" and set(answer.outputs) == set(outputs)
    for name, array in outputs.items():
        expected = tf.make_tensor_proto([0.0])
        expected.Clear()
        proto_tensors.fill_proto(expected, array, name)
        assert answer.outputs[name] == expected


def test_an_answer_of_few_long_strings_is_not_little() -> None:
    long = np.empty(1, object)
    long[0] = b"x" * 1_000_000
    assert not json_tensors.is_little({"y": long})
    assert json_tensors.is_little({"y": np.array([b"x", b"y"], object), "z": np.zeros(10)})


def test_a_context_is_not_multiplied_without_end() -> None:
    request = classification_pb2.ClassificationRequest()
    given = request.input.example_list_with_context
    given.context.features.feature["x"].bytes_list.value.append(b"x" * 1000)
    for _ in range(100):
        given.examples.add()
    with pytest.raises(Refusal, match="which every example repeats"):
        examples.to_arrays(request.input, Limits(bytes=50_000))
    assert len(examples.to_arrays(request.input, Limits())["inputs"]) == 100


def test_strings_in_tensor_content_are_read_as_tensorflow_writes_them() -> None:
    string = tf.string.as_datatype_enum
    long = b"y" * 300
    right = proto([2, 1], dtype=string, tensor_content=b"\x03\xac\x02abc" + long)
    assert proto_tensors.to_array(right, "x").tolist() == [[b"abc"], [long]]
    for shape, content in (
        ([1], b"hello"),
        ([2], b"\x01a"),
        ([1], b"\xff\xff\xff\xff\xff\xff"),
        ([3], b"\x00"),
    ):
        with pytest.raises(Refusal, match="string_val"):
            proto_tensors.to_array(proto(shape, dtype=string, tensor_content=content), "x")


def test_a_deep_tensor_is_refused_with_a_sentence(server) -> None:
    for depth in (65, 200):
        body = b'{"instances": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
        answer = server.post("/v1/models/add:predict", body)
        assert answer.status == 400 and "64 dimensions" in answer.json["error"]


def test_a_message_without_tensors_is_small(server) -> None:
    with server.channel() as channel:
        call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x0a\x00" * 500_000, timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- Which signatures may run in the loop ------------------------------------------------------------


def graph_of(function: Any, *specs: tf.TensorSpec) -> Any:
    return tf.function(function).get_concrete_function(*specs).graph.as_graph_def()


def test_what_costs_more_for_some_values_is_not_steady() -> None:
    numbers, texts = tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.string)
    weights = tf.constant([[1.0, 2.0]])
    assert is_steady(graph_of(lambda x: tf.nn.softmax(tf.matmul(x[:, None], weights)), numbers))
    for function, spec in (
        (lambda x: tf.fill([tf.cast(x[0], tf.int32)], 1.0), numbers),
        (lambda x: tf.range(x[0]), numbers),
        (lambda x: tf.while_loop(lambda i: i < x[0], lambda i: (i + 1,), [tf.constant(0.0)])[0], numbers),
        (lambda x: tf.map_fn(tf.square, x), numbers),
        (lambda x: tf.sequence_mask(tf.cast(x, tf.int32)), numbers),
        (tf.strings.split, texts),
    ):
        assert not is_steady(graph_of(function, spec))


def test_pieces_are_what_one_text_would_be(monkeypatch) -> None:
    monkeypatch.setattr(json_tensors, "_STEP", 5)
    outputs = {
        "a": np.arange(42, dtype=np.float32).reshape(3, 7, 2),
        "b": np.array(["x", "ä", "null"], object),
        "c": np.array([1.5, np.nan, np.inf], np.float32),
    }
    outputs["b"] = np.array([text.encode() for text in outputs["b"]], object)
    for given in (outputs, {"a": outputs["a"]}, {"b": outputs["b"]}, {"e": np.zeros((0, 3), np.float32)}):
        rows = json.loads(b"".join(json_tensors.encode_rows(given)))["predictions"]
        columns = json.loads(b"".join(json_tensors.encode_columns(given)))["outputs"]
        plain = {
            name: [item.decode() for item in array] if array.dtype == object else array.tolist()
            for name, array in given.items()
        }
        one = len(given) == 1
        assert repr(columns) == repr(next(iter(plain.values())) if one else plain)
        expected = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
        assert repr(rows) == repr(next(iter(plain.values())) if one else expected)


def test_a_question_survives_the_way_between_processes() -> None:
    request = predict_request(
        x=tf.make_tensor_proto(np.array([[1, 2]], np.float16)),
        text=tf.make_tensor_proto([b"", b"\x00a", "ä".encode()]),
        b=tf.make_tensor_proto(tf.constant([1.5], tf.bfloat16)),
    )
    question = requests.read_grpc("predict", request.SerializeToString(), Limits())
    header, blocks = requests.pack(question)
    again = requests.unpack(json.loads(json.dumps(header)), [bytearray(block) for block in blocks], "predict")
    assert again.message.model_spec.name == "add"
    assert set(again.arrays) == {"x", "text", "b"}
    for name, array in question.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        assert again.arrays[name].tolist() == array.tolist()
