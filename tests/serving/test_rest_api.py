"""REST: what a client sends, and what it gets back."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving.conftest import SECONDS, Running


def test_rows_and_columns_versions_and_signatures(server) -> None:
    assert server.predict([1, 2]) == [4, 5]
    assert server.predict([1, 2], where="/versions/1") == [2, 3]
    answer = server.post("/v1/models/add:predict", {"inputs": {"x": [1.5]}})
    assert (answer.status, answer.json) == (200, {"outputs": [4.5]})
    assert answer.headers["Content-Type"] == "application/json"
    rows = [{"a": [1, 2], "b": 3}, {"a": [0.5, 1], "b": -1}]
    answer = server.post("/v1/models/add:predict", {"signature_name": "pairs", "instances": rows})
    assert answer.json == {"predictions": [{"sum": 3, "twice": 6}, {"sum": 1.5, "twice": -2}]}
    answer = server.post("/v1/models/add:predict", {"signature_name": "total", "inputs": [1, 2, 4]})
    assert answer.json == {"outputs": 7}


def test_texts_and_bytes(server) -> None:
    b64 = base64.b64encode("zwei Wörter".encode()).decode()
    answer = server.post("/v1/models/words:predict", {"instances": ["one", {"b64": b64}]})
    assert answer.json["predictions"] == [
        {"words": ["one", ""], "lengths": [3, 0]},
        {"words": ["zwei", "Wörter"], "lengths": [4, 7]},
    ]
    answer = server.post("/v1/models/words:predict", {"instances": [{"b64": "/w=="}]})
    assert answer.json["predictions"] == [{"words": [{"b64": "/w=="}], "lengths": [1]}]


def test_status_and_metadata(server) -> None:
    assert server.status() == {"3": "AVAILABLE", "2": "AVAILABLE", "1": "AVAILABLE"}
    answer = server.get("/v1/models/add/versions/2/metadata").json
    assert answer["model_spec"] == {"name": "add", "version": "2", "signature_name": ""}
    pairs = answer["metadata"]["signature_def"]["signature_def"]["pairs"]
    assert pairs["inputs"]["a"]["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in pairs["inputs"]["a"]["tensor_shape"]["dim"]] == ["-1", "2"]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("add:predict", {"instances": ["one"]}, 400, '"instances" takes float32: a number. Received: "one".'),
        ("add:predict", {"instances": [True]}, 400, "Received: true."),
        ("add:predict", {"instances": [[1], [2, 3]]}, 400, "lists of different lengths side by side: [1, 2]"),
        ("add:predict", {"instances": [1, [2]]}, 400, "a number. Received: [2]"),
        ("add:predict", {"instances": [[1], 2]}, 400, "mixes lists with single values. Received: 2."),
        ("add:predict", {"instances": []}, 400, "send at least one row"),
        ("add:predict", {"instances": 1}, 400, "must be a list of rows. Received: 1."),
        ("add:predict", {"rows": [1]}, 400, "Received: ['rows']."),
        ("add:predict", {"instances": [1], "inputs": [1]}, 400, "not both"),
        ("add:predict", [1], 400, "must be a JSON object. Received: [1]."),
        ("add:predict", b"", 400, "The body is empty"),
        ("add:predict", b'{"instances": [1', 400, "not JSON: "),
        ("add:predict", b'{"instances": ["\xff"]}', 400, "not UTF-8: byte 16"),
        ("add:predict", b'{"instances": ' + b"[" * 100_000, 400, "nested too deeply"),
        ("add:predict", b'{"instances": [' + b"9" * 5000 + b"]}", 400, "no double can hold"),
        ("words:predict", {"instances": [{"b64": "!"}]}, 400, "not base64"),
        ("words:predict", {"instances": ["\ud83d"]}, 400, "surrogate"),
        ("add:predict", {"signature_name": "nope", "instances": [1]}, 400, "it has ['pairs', "),
        (
            "add:predict",
            {"signature_name": "pairs", "instances": [{"a": [1, 2]}]},
            400,
            "Row 0 must have the keys ['a', 'b']. Received: ['a'].",
        ),
        (
            "add:predict",
            {"signature_name": "pairs", "instances": [{"a": [1, 2], "b": 2**63}]},
            400,
            '"b" takes int64, and a number lies outside its range.',
        ),
        ("add:predict", {"signature_name": "total", "instances": [1]}, 400, 'ask with "inputs"'),
        ("nope:predict", {"instances": [1]}, 404, "Model nope is not served."),
        ("add/versions/9:predict", {"instances": [1]}, 404, "Version 9 of model add is not served."),
        ("add/labels/stable:predict", {"instances": [1]}, 400, 'no version label "stable"'),
        ("add:explain", {"instances": [1]}, 400, "There is no POST /v1/models/add:explain."),
        ("add:regress", {"examples": [{"x": 1}]}, 400, "This signature takes no examples"),
    ],
)
def test_a_refusal_says_what_was_received(server, path: str, body: Any, status: int, sentence: str) -> None:
    answer = server.post(f"/v1/models/{path}", body)
    assert answer.status == status
    assert list(answer.json) == ["error"] and sentence in answer.json["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "//etc/passwd",
        "/%00",
        "/%ff",
    ],
)
def test_a_path_reaches_no_file(server, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.options.rest_api_port, timeout=SECONDS)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status in (400, 404) and b"root:" not in answer.read()
    connection.close()


def test_compressed_bodies(server) -> None:
    body = gzip.compress(json.dumps({"instances": [1]}).encode())
    answer = server.post("/v1/models/add:predict", body, {"Content-Encoding": "gzip"})
    assert answer.json == {"predictions": [4]}
    answer = server.post("/v1/models/add:predict", b"not gzip", {"Content-Encoding": "gzip"})
    assert answer.status == 400


def test_numbers_as_tensorflow_serving_reads_and_writes_them(server) -> None:
    body = b'\xef\xbb\xbf{"instances": [NaN, -Inf, Infinity, 1e300, 7], "instances": [0]} and more'
    answer = server.post("/v1/models/add:predict", body)
    assert answer.body == b'{"predictions":[NaN, -Infinity, Infinity, Infinity, 10.0]}'
    assert server.predict([0.1]) == [3.1]
    body = {"signature_name": "pairs", "inputs": {"a": [[0, 0]], "b": [2**53 + 1]}}
    assert server.post("/v1/models/add:predict", body).json["outputs"]["twice"] == [2**54 + 2]


@pytest.fixture(scope="module")
def small(templates):
    """A server that takes little and waits only a moment."""
    with Running(templates, max_request_bytes=1000, rest_api_timeout_in_ms=3000) as running:
        yield running


def exchange(server: Running, data: bytes) -> bytes:
    """Sends bytes as they are and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", server.options.rest_api_port), SECONDS) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


HEAD = b"POST /v1/models/add:predict HTTP/1.1\r\nHost: a\r\n"


def test_a_large_body_is_refused_before_it_is_read(small) -> None:
    # Only announced: the answer comes without a byte of it.
    answer = exchange(small, HEAD + b"Content-Length: 100000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 429 ") and b"A body may have 1000 bytes" in answer
    bomb = gzip.compress(b"[" * 10_000_000)[:900]
    head = b"Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    assert exchange(small, HEAD + head + bomb).startswith(b"HTTP/1.1 429 ")
    assert small.predict([1]) == [4]


def test_a_slow_body_is_given_up(small) -> None:
    answer = exchange(small, HEAD + b'Content-Length: 20\r\n\r\n{"inst')
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive in time" in answer
    assert small.predict([1]) == [4]


@pytest.mark.parametrize("data", [b"", b"GET /v1/models/add HTT", HEAD + b"Accept: */"])
def test_a_slow_head_is_given_up(small, data: bytes) -> None:
    assert exchange(small, data).startswith(b"HTTP/1.1 408 ")
    assert small.predict([1]) == [4]


def test_a_broken_request_is_refused(small) -> None:
    assert exchange(small, b"\x16\x03\x01 nonsense\r\n\r\n").startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert exchange(small, HEAD + b"Content-Length: 5, 6\r\n\r\n").split(b" ")[1] == b"400"
    assert small.predict([1]) == [4]


def test_many_clients_get_their_own_answers(server) -> None:
    texts = [" ".join(f"w{number}" for number in range(count % 7 + 1)) for count in range(100)]

    def ask(text: str) -> Any:
        return server.post("/v1/models/words:predict", {"instances": [text]}).json["predictions"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, texts))
    for text, answer in zip(texts, answers, strict=True):
        # Not a column more, whoever was joined with it.
        assert answer == [{"words": text.split(), "lengths": [len(word) for word in text.split()]}]
