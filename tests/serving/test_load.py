"""`karpa-tf load-test`: what it sends, what it counts, what it says of servers that are not there."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from karpa_tf.serving.in_process import free_port
from karpa_tf.serving.load import Load, Rest, Spec, made_rows, open_target, percentile
from karpa_tf.serving.options import LoadOptions
from tests.serving.conftest import Running


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("loop", [["--clients", 3], ["--rate", 200]])
def test_both_loops_count_what_both_apis_answer(karpa, server: Running, scheme: str, loop: list) -> None:
    where = f"{server.rest}/v1/models/add" if scheme == "http" else f"grpc://{server.grpc}/add/versions/2"
    result = karpa("load-test", where, *loop, "--requests", 40, "--rows", 2, "--seconds", 60, "--json")
    assert result.status == 0, result.err
    report = result.json
    assert (report["requests"], report["answered"], report["failed"], report["errors"]) == (40, 40, 0, {})
    assert report["rows_per_second"] == pytest.approx(2 * report["requests_per_second"])
    assert report["rows_per_second"] == pytest.approx(80 / report["seconds"])
    times = report["latency_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert ("sent_late_ms" in report) == (report["loop"] == "open") == ("--rate" in loop)
    if report["loop"] == "open":
        assert report["seconds"] >= 39 / 200  # no earlier than planned
    assert "40 requests in" in result.err and "p99.9" in result.err


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_rows_come_from_a_file_as_for_predict(karpa, templates: Path, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"a": [1, 2], "b": 3}\n{"a": [4, 5], "b": 6}\n', encoding="utf-8")
    (tmp_path / "texts.txt").write_text("first text\n\nsecond text\n", encoding="utf-8")
    log = tmp_path / "inputs.jsonl"
    with Running(templates, request_log=str(log)) as running:
        where = f"{running.rest}/v1/models" if scheme == "http" else f"grpc://{running.grpc}"
        words = [f"{where}/words", "--input", tmp_path / "texts.txt", "--requests", 4, "--json"]
        result = karpa("load-test", *words)
        assert (result.status, result.json["answered"]) == (0, 4), result.err
        words = [f"{where}/add", "--signature", "pairs", "--input", tmp_path / "pairs.jsonl", "--requests", 3]
        assert karpa("load-test", *words, "--rows", 3, "--json").json["answered"] == 3
        words[4] = tmp_path / "texts.txt"
        result = karpa("load-test", *words)
        assert result.status == 2 and "A row is one JSON object with a, b" in result.err
    lines = log.read_text(encoding="utf-8")
    assert lines.count("first text") == 3 and lines.count("second text") == 2  # one of them asked first
    assert lines.count('"shape":[3,2]') == 4


def test_times_count_from_when_a_request_was_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request is on its way at a time, and takes as long as four are apart."""
    monkeypatch.setattr("karpa_tf.serving.load._IN_FLIGHT", 1)
    took, apart, count = 0.02, 0.005, 20

    class Slow:
        async def connect(self) -> Slow:
            return self

        async def ask(self, message: bytes) -> str:
            await asyncio.sleep(took)
            return ""

        def close(self) -> None: ...

    class Server:
        async def connect(self) -> Slow:
            return slow

        async def close(self) -> None: ...

    async def send() -> tuple[Load, Load]:
        one, other = (Load(Server(), lambda number: [b""], 60, count) for _ in range(2))  # type: ignore[arg-type]
        await one.open(1 / apart)
        await other.closed(1)
        return one, other

    slow = Slow()
    opened, closed = asyncio.run(send())
    # The last one was to be sent when three in four were yet to be answered, and waited for them.
    assert max(opened.late) >= (count - 1) * (took - apart) - 0.001
    assert max(opened.latencies) >= count * took - (count - 1) * apart - 0.001
    assert opened.report()["seconds"] >= count * took - 0.001
    assert sorted(closed.latencies)[0] >= took - 0.001


def test_errors_are_counted_by_kind(server: Running) -> None:
    body = b'{"instances": ["no number"]}'
    path = b"POST /v1/models/add:predict HTTP/1.1\r\nHost: a\r\n"
    good, bad = (
        path + b"Content-Length: %d\r\n\r\n" % len(data) + data for data in (b'{"instances": [1.0]}', body)
    )
    target = Rest("127.0.0.1", server.options.rest_api_port, "/v1/models/add")
    load = Load(target, lambda number: [good, bad, bad], 60, 9)
    asyncio.run(load.closed(1))
    report = load.report()
    assert (report["requests"], report["answered"], report["errors"]) == (9, 3, {"HTTP 400": 6})
    nobody = Load(Rest("127.0.0.1", free_port(), "/v1/models/add"), lambda number: [good], 60, 2)
    asyncio.run(nobody.closed(2))
    assert nobody.report()["errors"] == {"no connection": 2}
    assert nobody.report()["latency_ms"]["p50"] is None
    late = Load(target, lambda number: [good], 60, 1, timeout=1e-9)
    asyncio.run(late.closed(1))
    assert late.report()["errors"] == {"timeout": 1}


def test_it_ends_after_its_seconds(server: Running) -> None:
    target = Rest("127.0.0.1", server.options.rest_api_port, "/v1/models/add")
    message = target.message([{"x": 1.0}], {})
    load, begin = Load(target, lambda number: [message], 0.2), time.perf_counter()
    asyncio.run(load.closed(2))
    assert 0.2 <= load.report()["seconds"] <= time.perf_counter() - begin
    assert load.report()["answered"] == load.report()["requests"] > 0


def test_made_rows_fit_the_signature() -> None:
    inputs = {"text": Spec("DT_STRING", (None,)), "x": Spec("DT_FLOAT", (None, 2, None))}
    rows = made_rows(inputs)
    assert len({row["text"] for row in rows}) == len(rows) and rows[0]["x"] == [[0], [0]]


def test_percentiles_are_times_that_were_taken() -> None:
    ordered = [number / 1000 for number in range(1, 1001)]
    assert percentile(ordered, 0.5) == pytest.approx(501)
    assert percentile(ordered, 0.999) == percentile(ordered, 1.0) == pytest.approx(1000)
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["localhost:8501"], "load-test takes http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME"),
        (["ftp://localhost/v1/models/add"], "Received: ftp://localhost/v1/models/add."),
        (["http://localhost:port/v1/models/add"], "load-test takes"),
        (["http://localhost:8501/v1/models/add/versions/new"], "load-test takes"),
        (["{rest}/v1/models/nothing"], "does not serve this model (404,"),
        (["{grpc}/nothing"], "does not serve this model (NOT_FOUND,"),
        (["{rest}/v1/models/add/versions/9"], "does not serve this model (404,"),
        (
            ["{rest}/v1/models/add", "--signature", "pair"],
            'no signature "pair"; did you mean "pairs"? It has:',
        ),
        (["http://127.0.0.1:{none}/v1/models/add"], "Nobody answers at 127.0.0.1:{none} ("),
        (["grpc://127.0.0.1:{none}/add"], "Nobody answers at 127.0.0.1:{none} (no connection over gRPC)"),
        (["http://{plain}/v1/models/add"], "does not speak HTTP: is that the port of gRPC"),
        (
            ["{rest}/v1/models/add", "--rate", "5", "--clients", "2"],
            "--rate and --clients exclude each other",
        ),
        (["{rest}/v1/models/add", "--seconds", "0"], "--seconds must be"),
        (["{rest}/v1/models/add", "--token_file", "no.txt"], "no.txt cannot be read"),
    ],
)
def test_what_is_wrong_is_one_sentence(karpa, server: Running, words: list[str], says: str) -> None:
    names = {"rest": server.rest, "grpc": f"grpc://{server.grpc}", "plain": server.grpc, "none": free_port()}
    result = karpa("load-test", *[word.format(**names) for word in words])
    assert result.status == 2 and says.format(**names) in result.err, result.err
    assert result.err.count("\n") == 1


def test_a_token_goes_with_every_request(karpa, templates: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "tokens").write_text("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n")
    with Running(templates, token_file=str(tmp_path / "tokens")) as running:
        for where in (f"{running.rest}/v1/models/add", f"grpc://{running.grpc}/add"):
            result = karpa("load-test", where, "--requests", 2)
            assert result.status == 2 and "wants a token: give the file" in result.err
            result = karpa("load-test", where, "--requests", 2, "--token_file", tmp_path / "token", "--json")
            assert result.status == 0 and result.json["answered"] == 2, result.err


def test_a_url_names_a_version_or_a_label() -> None:
    options = LoadOptions()
    target = open_target("https://a.example/v1/models/add/labels/stable:predict", options)
    assert (target.host, target.port, target.path) == ("a.example", 8501, "/v1/models/add/labels/stable")
    target = open_target("grpc://[::1]:9000/add/versions/3", options)
    assert (target.host, target.port, target.model, target.version) == ("::1", 9000, "add", 3)
