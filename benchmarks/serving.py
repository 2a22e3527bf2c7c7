"""The embedded server under load: joined requests, a lone client, a minimal server, and a soak.

The model is a BERT classifier of MiniLM's size (6 layers, 384 wide, 12 heads) that has hardly been trained,
text in. All servers run side by side on loopback, each in a process of its own, and are asked in turn by the
same load generator; the best of the rounds counts. Ratios called middle are the middle ones of the rounds'.

* batching: 32 clients with one row each, and one lone client, with and without --enable_batching.
* minimal: the same load on a server of thirty lines that calls the SavedModel per request under aiohttp.
* overhead: the median of a lone client's request, less the median of a call of the signature in Python.
* soak: load while a version is swapped every ten seconds and hostile requests are mixed in; memory, failures.
* stall: the 99.9th percentile of a status request and of a small predict, beside each of a list of attacks
  and beside rightful batches of 32 MB; nobody reads the access log, and the log of inputs is on.

    python benchmarks/serving.py [--rounds 3] [--seconds 8] [--soak_seconds 600] [--only batching] [--stall]

The last line of the output is one JSON object; a ratio above 1 means that the first-named side is better.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gzip
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from karpa_tf.serving.load import Load, Rest, exchange, request_bytes

CLIENTS = 32
SIZES = ["--layers", "6", "--heads", "12", "--width", "384", "--sequence_length", "64"]
WORDS = [
    "please",
    "set",
    "the",
    "alarm",
    "in",
    "my",
    "kitchen",
    "for",
    "seven",
    "and",
    "play",
    "some",
    "music",
]


# --- The model and the servers --------------------------------------------------------------------


def make_model(folder: Path) -> Path:
    """Trains MiniLM's size for a moment, so that there is something to export; returns the model's folder."""
    rng = random.Random(0)
    rows = [f'"{text(rng)}",{rng.choice("abcdefgh")}' for _ in range(80)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    words = ["--data", str(folder / "rows.csv"), "--epochs", "1", "--vocabulary_size", "300", *SIZES]
    karpa("train", "bert-classifier", *words, "--precision", "float32", "--logs", str(folder / "logs"))
    run = str(folder / "logs" / "bert-classifier" / "1")
    karpa("export", run, "--to", str(folder / "savedmodels"), "--force")
    return folder / "savedmodels" / "bert-classifier"


def make_adder(folder: Path) -> Path:
    """A model that takes no time, as a SavedModel."""
    code = (
        "import sys, tensorflow as tf\n"
        "module = tf.Module()\n"
        "module.one = tf.Variable(1.0)\n"
        "spec = [tf.TensorSpec([None], tf.float32, 'x')]\n"
        "add = tf.function(lambda x: {'y': x + module.one}, input_signature=spec)\n"
        "tf.saved_model.save(module, sys.argv[1], signatures={'serving_default': add})\n"
    )
    path = folder / "add" / "1"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, stderr=subprocess.DEVNULL)
    return path.parent


def karpa(*words: str) -> None:
    """Runs a command of karpa-tf."""
    subprocess.run([sys.executable, "-m", "karpa_tf", *words], check=True, stdout=subprocess.DEVNULL)


def text(rng: random.Random) -> str:
    """A spoken command of 4 to 9 words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 9)))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, model: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers for a model."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if asyncio.run(ask_once(port, f"/v1/models/{model}", None)) == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"This server does not answer: {' '.join(command)}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def ours(model: Path, *flags: str) -> Iterator[tuple[int, int]]:
    """`karpa-tf serve` with one model; its port and process id."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "karpa_tf",
        "serve",
        "--port",
        str(free_port()),
        "--rest_api_port",
        str(port),
    ]
    command += [
        "--model_name",
        model.name,
        "--model_base_path",
        str(model),
        "--access_log",
        os.devnull,
        *flags,
    ]
    with running(command, port, model.name) as process:
        yield port, process.pid


@contextlib.contextmanager
def minimal(model: Path) -> Iterator[tuple[int, int]]:
    """The minimal server with one model."""
    port = free_port()
    command = [sys.executable, __file__, "--minimal", str(model / "1"), "--port", str(port)]
    with running(command, port, model.name) as process:
        yield port, process.pid


def serve_minimally(savedmodel: str, port: int) -> None:
    """What one would write first: aiohttp, and a call of the signature for every request."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)
    from aiohttp import web

    loaded = tf.saved_model.load(savedmodel)
    signature = loaded.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]

    def plain(value: Any) -> Any:
        value = value.numpy().tolist()
        return [item.decode() if isinstance(item, bytes) else item for item in value]

    async def predict(request: web.Request) -> web.Response:
        rows = (await request.json())["instances"]
        outputs = signature(**{name: tf.constant(rows)})
        columns = {key: plain(value) for key, value in outputs.items()}
        predictions = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return web.json_response({"predictions": predictions})

    async def status(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.add_routes([web.post("/v1/models/{model}:predict", predict), web.get("/v1/models/{model}", status)])
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None, access_log=None)


# --- The load generator ---------------------------------------------------------------------------


async def ask_once(port: int, path: str, body: Any) -> int:
    """One request on a connection of its own; its status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return (await exchange(reader, writer, request_bytes(path, body)))[0]
    finally:
        writer.close()


async def load(
    port: int, model: str, clients: int, seconds: float, make_row: Callable[[random.Random], Any]
) -> dict:
    """Clients that each send one row, wait for the answer, and send the next."""

    def messages(number: int) -> list[bytes]:
        rng = random.Random(number)
        path = f"/v1/models/{model}:predict"
        return [request_bytes(path, {"instances": [make_row(rng)]}) for _ in range(64)]

    sent = Load(Rest("127.0.0.1", port, f"/v1/models/{model}"), messages, seconds)
    await sent.closed(clients)
    report = sent.report()
    return {
        "requests": report["requests"],
        "rows_per_second": report["rows_per_second"],
        "median_ms": report["latency_ms"]["p50"],
        "p99_ms": report["latency_ms"]["p99"],
        "failed": report["failed"],
    }


def run_load(port: int, model: str, clients: int, seconds: float, numbers: bool = False) -> dict:
    """The load, from a process of its own."""
    command = [sys.executable, __file__, "--load", model, "--port", str(port), "--clients", str(clients)]
    command += ["--seconds", str(seconds), *(["--numbers"] if numbers else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def middle_ratio(over: list[dict], under: list[dict], key: str) -> float:
    """The middle one of the rounds' ratios: the machine's speed drifts, by less within a round."""
    return statistics.median(a[key] / b[key] for a, b in zip(over, under, strict=True))


def best(results: list[dict], key: str, lower: bool = True) -> float:
    """The best round's figure."""
    return (min if lower else max)(result[key] for result in results)


# --- The measurements -----------------------------------------------------------------------------


def measure_batching(arguments: argparse.Namespace, folder: Path) -> tuple[dict, dict]:
    """Batching on, batching off and the minimal server, with 32 clients and with one."""
    model = Path(arguments.model) if arguments.model else make_model(folder)
    results: dict[tuple[str, int], list[dict]] = {}
    with ours(model) as on, ours(model, "--enable_batching", "false") as off, minimal(model) as least:
        servers = {"on": on[0], "off": off[0], "minimal": least[0]}
        for port in servers.values():
            run_load(port, model.name, CLIENTS, arguments.seconds / 4)  # every shape has been seen once
        for number in range(arguments.rounds):
            for clients in (CLIENTS, 1):
                # Now forwards, now backwards: who comes after whom must not matter.
                for name, port in list(servers.items())[:: -1 if number % 2 else 1]:
                    result = run_load(port, model.name, clients, arguments.seconds)
                    results.setdefault((name, clients), []).append(result)
                    print(f"round {number + 1}, {clients} clients, {name}: {result}", flush=True)
    values = {
        f"{name}_{clients}_{key}": best(rounds, key, lower=key != "rows_per_second")
        for (name, clients), rounds in results.items()
        for key in ("rows_per_second", "median_ms", "p99_ms")
    }
    values["failed"] = sum(result["failed"] for rounds in results.values() for result in rounds)
    many = f"{CLIENTS}_"
    on, off = results["on", CLIENTS], results["off", CLIENTS]
    on_1, off_1, minimal_1 = (results[name, 1] for name in ("on", "off", "minimal"))
    return {
        "batching_on_to_off_rows": values[f"on_{many}rows_per_second"] / values[f"off_{many}rows_per_second"],
        "batching_on_to_off_rows_middle": middle_ratio(on, off, "rows_per_second"),
        "batching_on_to_off_p99": values[f"off_{many}p99_ms"] / values[f"on_{many}p99_ms"],
        "batching_on_to_off_lone_client": values["off_1_median_ms"] / values["on_1_median_ms"],
        "batching_on_to_off_lone_client_middle": middle_ratio(off_1, on_1, "median_ms"),
        "ours_to_minimal_rows": values[f"on_{many}rows_per_second"]
        / values[f"minimal_{many}rows_per_second"],
        "ours_to_minimal_lone_client": values["minimal_1_median_ms"] / values["on_1_median_ms"],
        "ours_to_minimal_lone_client_middle": middle_ratio(minimal_1, on_1, "median_ms"),
    }, values


def measure_overhead(arguments: argparse.Namespace, folder: Path) -> tuple[dict, dict]:
    """What a request over REST takes beyond a call in Python, of a model that takes no time itself."""
    model = make_adder(folder)
    rest, direct = [], []
    with ours(model) as (port, _), minimal(model) as (least, _):
        run_load(port, model.name, 1, 2, numbers=True)
        minimally = []
        for number in range(arguments.rounds):
            rest.append(run_load(port, model.name, 1, arguments.seconds / 2, numbers=True)["median_ms"])
            minimally.append(run_load(least, model.name, 1, arguments.seconds / 2, numbers=True)["median_ms"])
            done = subprocess.run(
                [sys.executable, __file__, "--direct", str(model / "1")], check=True, stdout=subprocess.PIPE
            )
            direct.append(float(done.stdout))
            print(f"round {number + 1}: REST {rest[-1]}, minimal {minimally[-1]}, direct {direct[-1]} ms")
    values = {
        "rest_median_ms": min(rest),
        "minimal_median_ms": min(minimally),
        "direct_median_ms": min(direct),
        "rest_overhead_ms": min(rest) - min(direct),
    }
    return {"overhead_below_1.5_ms": 1.5 / values["rest_overhead_ms"]}, values


def call_directly(savedmodel: str) -> float:
    """Median milliseconds of a call of the signature in this process, NumPy in and out."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    import tensorflow as tf

    loaded = tf.saved_model.load(savedmodel)
    signature = loaded.signatures["serving_default"]
    x = np.zeros(1, np.float32)
    times = []
    for _ in range(3000):
        start = time.perf_counter()
        signature(x=tf.constant(x))["y"].numpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1000:]) * 1e3


# --- The soak -------------------------------------------------------------------------------------

HOSTILE = 1000


def measure_soak(arguments: argparse.Namespace, folder: Path) -> tuple[dict, dict]:
    """Load, swaps and hostile requests at once."""
    seconds = arguments.soak_seconds
    source = make_adder(folder)
    model = folder / "soak" / "add"
    shutil.copytree(source / "1", model / "1")
    flags = ["--file_system_poll_wait_seconds", "1", "--max_request_bytes", "1000000"]
    with ours(model, *flags, "--rest_api_timeout_in_ms", "2000") as (port, pid):
        result = asyncio.run(soak(port, pid, model, source / "1", seconds, arguments.hostile))
    print(result, flush=True)
    return {"soak_below_2_percent_growth": 1.02 / max(result["memory_growth"], 1e-9)}, result


async def soak(port: int, pid: int, model: Path, source: Path, seconds: float, hostile: int) -> dict:
    """Returns what the soak counted."""
    begin = time.monotonic()
    swaps, memory, odd = 0, [], []
    refused = 0
    rng = random.Random(0)
    makers = [huge, cut_off, wrong_type, deep, slow, bomb, no_http, escaped_quotes, packed_lists]

    async def swap() -> None:
        nonlocal swaps
        while time.monotonic() - begin < seconds - 5:
            await asyncio.sleep(10)
            new = max(int(path.name) for path in model.iterdir()) + 1
            hidden = model.parent / f".{new}"
            await asyncio.to_thread(shutil.copytree, source, hidden)
            hidden.rename(model / str(new))
            swaps += 1
            # The old one's folder goes when the new one answers.
            while await ask_once(port, f"/v1/models/add/versions/{new}:predict", {"instances": [1]}) != 200:
                await asyncio.sleep(0.1)
            await asyncio.to_thread(shutil.rmtree, model / str(new - 1))

    async def watch() -> None:
        while time.monotonic() - begin < seconds:
            memory.append((time.monotonic() - begin, resident_bytes(pid)))
            await asyncio.sleep(1)

    async def strike(number: int) -> None:
        nonlocal refused
        make = makers[number % len(makers)]
        status = await make(port, rng)
        refused += 400 <= status < 500
        if not 400 <= status < 500:
            odd.append((make.__name__, status))

    async def attack() -> None:
        strikes = []
        for number in range(hostile):
            await asyncio.sleep(max(0.0, begin + number * (seconds - 8) / hostile - time.monotonic()))
            # Side by side: the slow ones take seconds.
            strikes.append(asyncio.create_task(strike(number)))
        await asyncio.gather(*strikes)

    loaded, *_ = await asyncio.gather(
        load(port, "add", 4, seconds, lambda rng: rng.random()), swap(), watch(), attack()
    )
    # After the first swaps everything that is loaded once has been loaded.
    warm = [size for at, size in memory if seconds * 0.2 <= at <= seconds * 0.3]
    last = [size for at, size in memory if at >= seconds * 0.9]
    return {
        "seconds": seconds,
        "requests": loaded["requests"],
        "failed": loaded["failed"],
        "p99_ms": loaded["p99_ms"],
        "swaps": swaps,
        "hostile_requests": hostile,
        "hostile_refused_with_4xx": refused,
        "hostile_otherwise": odd[:5],
        "memory_mb_after_warm_up": statistics.median(warm) / 1e6,
        "memory_mb_at_the_end": statistics.median(last) / 1e6,
        "memory_growth": statistics.median(last) / statistics.median(warm),
    }


def resident_bytes(pid: int) -> int:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


HEAD = b"POST /v1/models/add:predict HTTP/1.1\r\nHost: a\r\n"


async def raw(port: int, *parts: bytes, pause: float = 0.0, close: bool = False) -> int:
    """Sends bytes as they are; returns the status of the answer, or 499 if it was us who hung up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)
        if close:
            return 499
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        return int(head[9:12])
    except ConnectionError:
        return 0
    finally:
        writer.close()


async def huge(port: int, rng: random.Random) -> int:
    return await raw(port, HEAD + b"Content-Length: 100000000000\r\n\r\n")


async def cut_off(port: int, rng: random.Random) -> int:
    if rng.random() < 0.5:
        return await raw(port, HEAD + b'Content-Length: 500\r\n\r\n{"inst', close=True)
    return await raw(port, HEAD + b'Content-Length: 17\r\n\r\n{"instances": [1.')


async def wrong_type(port: int, rng: random.Random) -> int:
    bodies = ['["x"]', "[null]", "[[1], 2]", "{}", "[true]", '[{"y": 1}]', "[[1], [2, 3]]", '["\\ud800"]']
    body = f'{{"instances": {rng.choice(bodies)}}}'.encode()
    return await raw(port, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


async def deep(port: int, rng: random.Random) -> int:
    body = b'{"instances": ' + b"[" * rng.randint(2000, 200_000)
    return await raw(port, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


async def slow(port: int, rng: random.Random) -> int:
    return await raw(port, HEAD + b"Content-Length: 20\r\n\r\n", b"{", b'"', b"i", pause=0.1)


async def bomb(port: int, rng: random.Random) -> int:
    body = bomb_body()
    head = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    return await raw(port, HEAD + head + body)


@functools.cache
def bomb_body() -> bytes:
    """20 MB as 20 kB."""
    return gzip.compress(b"[" * 20_000_000)


async def escaped_quotes(port: int, rng: random.Random) -> int:
    return await raw(port, ATTACKS["escaped_quotes"]()[1])


async def packed_lists(port: int, rng: random.Random) -> int:
    return await raw(port, packed_lists_body())


@functools.cache
def packed_lists_body() -> bytes:
    return ATTACKS["gzip_lists"]()[1]


async def no_http(port: int, rng: random.Random) -> int:
    return await raw(port, rng.randbytes(200) + b"\r\n\r\n")


# --- Who holds up the others ----------------------------------------------------------------------

MB32 = 32 << 20
LONGEST_MS = 50.0


def make_varied(folder: Path) -> Path:
    """Models whose requests can be large, or take long for some values."""
    code = (
        "import sys, tensorflow as tf\n"
        "def save(name, spec, function):\n"
        "    made = tf.function(function, input_signature=[spec], autograph=False)\n"
        "    module = tf.Module()\n"
        "    module.made = made\n"
        "    tf.saved_model.save(module, f'{sys.argv[1]}/{name}/1', signatures={'serving_default': made})\n"
        "def loop(x):\n"
        "    a = tf.random.stateless_normal([100, 100], [1, 2])\n"
        "    _, a = tf.while_loop(lambda i, a: i < x[0], lambda i, a: (i + 1, 0.01 * a @ a), [0.0, a])\n"
        "    return {'y': x + 0 * tf.reduce_sum(a)}\n"
        "save('add', tf.TensorSpec([None], tf.float32, 'x'), lambda x: {'y': x + 1})\n"
        "save('wide', tf.TensorSpec([None, None], tf.float32, 'x'), lambda x: {'y': x + 1})\n"
        "save('echo', tf.TensorSpec([None, None], tf.string, 'text'), lambda text: {'text': text})\n"
        "save('loop', tf.TensorSpec([None], tf.float32, 'x'), loop)\n"
    )
    path = folder / "varied"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, stderr=subprocess.DEVNULL)
    return path


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def numbers_of(size: int) -> bytes:
    """A batch of rows of 784 numbers, as JSON of about this size."""
    rng = random.Random(0)
    row = "[" + ",".join(f"{rng.random():.4f}" for _ in range(784)) + "]"
    return f'{{"instances":[{",".join([row] * (size // (len(row) + 1)))}]}}'.encode()


def predict_message(model: str, tensor: bytes) -> bytes:
    """A PredictRequest by hand: its one input `x` or `text` is a TensorProto given as bytes."""
    name = b"text" if model == "echo" else b"x"
    return field(1, field(1, model.encode())) + field(2, field(1, name) + field(2, tensor))


def field(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's form."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A whole number in protobuf's form."""
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def dims(*sizes: int) -> bytes:
    """A TensorShapeProto as a field of a TensorProto."""
    return field(2, b"".join(field(2, b"\x08" + varint(size)) for size in sizes))


# By name: what is sent over REST (bytes) or gRPC (a message to Predict), again and again. The first ones are
# of public reports; those from `lone_backslashes` on are their relatives.
ATTACKS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "nothing": lambda: ("rest", b""),
    "escaped_quotes": lambda: ("rest", post("/v1/models/add:predict", b'{"instances": ' + b'\\"' * 20_000)),
    "gzip_lists": lambda: (
        "rest",
        post(
            "/v1/models/add:predict",
            gzip.compress(b'{"instances": [' + b"[]," * 10_000_000 + b"[]]}"),
            "Content-Encoding: gzip\r\n",
        ),
    ),
    "grpc_repeated_string": lambda: (
        "grpc",
        predict_message("echo", b"\x08\x07" + dims(1, 1 << 20) + field(8, b"x" * 700)),
    ),
    "rightful_32_mb": lambda: ("rest", post("/v1/models/wide:predict", numbers_of(MB32 - 100_000))),
    "rightful_32_mb_grpc": lambda: (
        "grpc",
        predict_message("wide", b"\x08\x01" + dims(10_000, 784) + field(5, bytes(10_000 * 784 * 4))),
    ),
    "slow_values": lambda: ("rest", post("/v1/models/loop:predict", b'{"instances": [3000]}')),
    "lone_backslashes": lambda: (
        "rest",
        post("/v1/models/add:predict", b'{"instances": NaN, "' + b'\\\\"' * 2_000_000),
    ),
    "nan_32_mb": lambda: (
        "rest",
        post("/v1/models/add:predict", b'{"instances": [' + b"NaN," * 8_000_000 + b"NaN]}"),
    ),
    "deep": lambda: ("rest", post("/v1/models/add:predict", b'{"instances": ' + b"[" * 5_000_000)),
    "many_strings": lambda: (
        "rest",
        post("/v1/models/echo:predict", b'{"instances": [[' + b'"",' * 250_000 + b'""]]}'),
    ),
    "too_many_strings": lambda: (
        "rest",
        post("/v1/models/echo:predict", b'{"instances": [[' + b'"",' * 10_000_000 + b'""]]}'),
    ),
    "gzip_zeros": lambda: (
        "rest",
        post("/v1/models/add:predict", gzip.compress(bytes(1 << 30)), "Content-Encoding: x-gzip\r\n"),
    ),
    "grpc_dims": lambda: (
        "grpc",
        predict_message("wide", b"\x08\x01" + field(2, b"\x12\x00" * 8_000_000)),
    ),
    "grpc_empty_strings": lambda: (
        "grpc",
        predict_message("echo", b"\x08\x07" + dims(1, 8_000_000) + b"\x42\x00" * 8_000_000),
    ),
    "digits_in_the_log_of_inputs": lambda: (
        "rest",
        post("/v1/models/echo:predict", b'{"instances": [["' + b"1 " * 4_000_000 + b'a"]]}'),
    ),
    "metrics": lambda: ("rest", b"GET /monitoring/prometheus/metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
}


def attack(name: str, rest: int, rpc: int, seconds: float) -> None:
    """Sends one attack from two connections, again and again. Runs in a process of its own."""
    kind, data = ATTACKS[name]()
    if not data:
        time.sleep(seconds)
        return
    print("ready", flush=True)
    asyncio.run(strike_rest(rest, data, seconds) if kind == "rest" else strike_grpc(rpc, data, seconds))


async def strike_rest(port: int, data: bytes, seconds: float) -> None:
    end = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < end:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await exchange(reader, writer, data)
            writer.close()

    await asyncio.gather(one(), one())


async def strike_grpc(port: int, data: bytes, seconds: float) -> None:
    import grpc

    end = time.monotonic() + seconds
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        async def one() -> None:
            while time.monotonic() < end:
                with contextlib.suppress(grpc.RpcError):
                    await call(data)

        await asyncio.gather(one(), one())


async def probe(port: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a status request and of a small predict, asked in turn over kept connections."""
    questions = {
        "status": b"GET /v1/models/add HTTP/1.1\r\nHost: a\r\n\r\n",
        "predict": request_bytes("/v1/models/add:predict", {"instances": [1.0]}),
    }
    times: dict[str, list[float]] = {name: [] for name in questions}
    end = time.perf_counter() + seconds

    async def ask(name: str, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            assert (await exchange(reader, writer, data))[0] == 200
            times[name].append((time.perf_counter() - start) * 1e3)
            await asyncio.sleep(0.003)
        writer.close()

    await asyncio.gather(*(ask(name, data) for name, data in questions.items()))
    return times


def measure_stall(arguments: argparse.Namespace, folder: Path) -> tuple[dict, dict]:
    """How long others wait while one client sends the worst that it can."""
    models = make_varied(folder)
    pipe = folder / "access.log"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # and never read
    rest, rpc = free_port(), free_port()
    command = [sys.executable, "-m", "karpa_tf", "serve", str(models), "--port", str(rpc)]
    command += ["--rest_api_port", str(rest), "--access_log", str(pipe)]
    command += ["--request_log", str(folder / "inputs.log")]
    values: dict[str, Any] = {}
    with running(command, rest, "add"):
        for name in ATTACKS:
            if arguments.attack_names and name not in arguments.attack_names.split(","):
                continue
            striker = [sys.executable, __file__, "--attack", name, "--port", str(rest), "--rpc", str(rpc)]
            striking = subprocess.Popen(
                [*striker, "--seconds", str(arguments.seconds + 1)], stdout=subprocess.PIPE
            )
            assert striking.stdout is not None
            striking.stdout.readline()  # it has made what it sends
            times = asyncio.run(probe(rest, arguments.seconds))
            striking.wait()
            for question, taken in times.items():
                taken.sort()
                values[f"{name}_{question}_p999_ms"] = taken[int(len(taken) * 0.999)]
                values[f"{name}_{question}_median_ms"] = statistics.median(taken)
            print(
                f"{name}: {', '.join(f'{k} {v:.1f}' for k, v in values.items() if k.startswith(name))}",
                flush=True,
            )
    os.close(unread)
    worst = max(value for key, value in values.items() if key.endswith("_p999_ms"))
    return {"stall_below_50_ms": LONGEST_MS / worst}, values


MEASUREMENTS = {
    "batching": measure_batching,
    "overhead": measure_overhead,
    "soak": measure_soak,
    "stall": measure_stall,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="Length of a round for each side.")
    parser.add_argument("--soak_seconds", type=float, default=600.0)
    parser.add_argument("--hostile", type=int, default=HOSTILE, help="Hostile requests in the soak.")
    parser.add_argument("--model", help="A model's folder to use, in place of one trained for a moment.")
    parser.add_argument("--only", choices=list(MEASUREMENTS), help="Run one measurement.")
    parser.add_argument("--stall", action="store_true", help="The same as --only stall.")
    parser.add_argument(
        "--smoke", action="store_true", help="A moment of overhead and stall: whether it runs, not how fast."
    )
    parser.add_argument("--attack_names", default="", help="Of the stalls, only these, with commas.")
    # Used by this script itself, for the processes that it starts.
    parser.add_argument("--minimal", help=argparse.SUPPRESS)
    parser.add_argument("--direct", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--rpc", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.minimal:
        serve_minimally(arguments.minimal, arguments.port)
        return
    if arguments.direct:
        print(call_directly(arguments.direct))
        return
    if arguments.load:
        make_row = (lambda rng: rng.random()) if arguments.numbers else text
        work = load(arguments.port, arguments.load, arguments.clients, arguments.seconds, make_row)
        print(json.dumps(asyncio.run(work)))
        return

    if arguments.attack:
        attack(arguments.attack, arguments.port, arguments.rpc, arguments.seconds)
        return
    wanted = [arguments.only] if arguments.only else list(MEASUREMENTS)
    if arguments.stall:
        wanted = ["stall"]
    if arguments.smoke:
        wanted = ["overhead", "stall"]
        arguments.rounds, arguments.seconds = 1, 0.5
        arguments.attack_names = "nothing,escaped_quotes,grpc_repeated_string"

    ratios: dict[str, float] = {}
    values: dict[str, Any] = {}
    for name, measurement in MEASUREMENTS.items():
        if name in wanted:
            with tempfile.TemporaryDirectory() as folder:
                more_ratios, more_values = measurement(arguments, Path(folder))
            ratios |= more_ratios
            values |= {f"{name}_{key}": value for key, value in more_values.items()}
    print(f"\n{'value':<48}{'':>12}")
    for name, value in values.items():
        print(f"{name:<48}{value:>12,.2f}" if isinstance(value, float) else f"{name:<48}{value!s:>12}")
    print(f"\n{'ratio (above 1: better)':<48}")
    for name, value in ratios.items():
        print(f"{name:<48}{value:>12.2f}")
    print(json.dumps({"benchmark": "serving", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()
