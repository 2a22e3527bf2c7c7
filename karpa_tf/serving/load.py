"""Requests to a server that speaks TensorFlow Serving's API, and how long they take.

Closed loop: some clients, each of which waits for its answer before it asks again. Open loop: requests at a
rate, whether or not earlier ones were answered; a request's time counts from when it was to be sent, so that
one which has to wait behind slow answers is not counted as quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.serving.options import LoadOptions

_FORMS = "http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME"
# Open loop: requests that are on their way at one time, and that wait to be; more are not sent.
_IN_FLIGHT, _WAITING = 1000, 10_000
# Different requests that are made before the first is sent; then they come again.
_MADE = 1024
# Seconds that a client waits after a connection that failed.
_PAUSE = 0.1
_TEXTS = ("a text", "one more text, which is longer", "and a third one: how long does it take to read this?")


@dataclass(frozen=True)
class Spec:
    """An input: its type, as `DT_FLOAT`, and its shape with None where any size will do; None: any shape."""

    dtype: str
    shape: tuple[int | None, ...] | None


class Connection(Protocol):
    """A way to a server, for one request at a time."""

    async def ask(self, message: bytes) -> str:
        """Sends a request and reads the answer; returns what went wrong in short, or nothing."""

    def close(self) -> None: ...


class Target(Protocol):
    """A signature of a model on a server."""

    async def connect(self) -> Connection:
        """Returns a new way to the server."""

    async def close(self) -> None:
        """Ends what its connections share."""

    async def signatures(self) -> dict[str, dict[str, Spec]]:
        """Returns the inputs of each signature; raises a UserError that says why there are none."""

    async def refusal(self, message: bytes) -> str:
        """Returns in words why the server refuses a request; nothing if it does not."""

    def message(self, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Spec]) -> bytes:
        """Returns a request for some rows."""


# --- REST -----------------------------------------------------------------------------------------


def request_bytes(path: str, body: Any, headers: str = "") -> bytes:
    """Returns a request as it goes over the wire; no body: GET."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode()
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    """Sends a request, reads the whole answer, and returns its status and body."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1."):
        raise ValueError
    if b"\r\ntransfer-encoding: chunked" in head:
        parts = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return int(head[9:12]), b"".join(parts)
    length = int(head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


@dataclass(frozen=True)
class Rest:
    """A model over REST.

    Attributes:
        host: of the server.
        port: of the server.
        path: of the model, and perhaps a version or a label of it.
        signature: that is asked for.
        headers: further lines of a request, each with its end.
        tls: how to check the server's certificate; None: no TLS.
    """

    host: str
    port: int
    path: str
    signature: str = ""
    headers: str = ""
    tls: ssl.SSLContext | None = None

    async def connect(self) -> _RestConnection:
        return _RestConnection(*await asyncio.open_connection(self.host, self.port, ssl=self.tls))

    async def close(self) -> None:
        pass

    def message(self, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Spec]) -> bytes:
        body = {"signature_name": self.signature, "instances": [_plain(row) for row in rows]}
        return request_bytes(f"{self.path}:predict", body, self.headers)

    async def refusal(self, message: bytes) -> str:
        status, body = await self.exchange(message)
        return "" if status == 200 else f"{status}, {_said(body)}"

    async def signatures(self) -> dict[str, dict[str, Spec]]:
        status, body = await self.exchange(request_bytes(f"{self.path}/metadata", None, self.headers))
        _check_entry(self, status == 401, status == 404, f"{status}, {_said(body)}" if status != 200 else "")
        found = json.loads(body)["metadata"]["signature_def"]["signature_def"]

        def spec(info: Any) -> Spec:
            shape = info["tensor_shape"]
            sizes = tuple(int(dim["size"]) for dim in shape["dim"])
            return Spec(info["dtype"], None if shape["unknown_rank"] else tuple(map(_size, sizes)))

        return {
            key: {name: spec(info) for name, info in sorted(value["inputs"].items())}
            for key, value in found.items()
        }

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Sends a request over a connection of its own; returns the status and the body of the answer.

        Raises:
            UserError: nobody answers, or not in HTTP.
        """
        connection = await _first(self.connect(), self)
        try:
            return await _first(connection.exchange(request), self)
        finally:
            connection.close()


@dataclass(frozen=True)
class _RestConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        return await exchange(self.reader, self.writer, request)

    async def ask(self, message: bytes) -> str:
        status, _ = await exchange(self.reader, self.writer, message)
        return "" if status == 200 else f"HTTP {status}"

    def close(self) -> None:
        self.writer.close()


def _said(body: bytes) -> str:
    """Returns the sentence of a refusal."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["error"])
    return body.decode("utf-8", "replace")[:200] or "without a word"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}


def _size(size: int) -> int | None:
    return None if size < 0 else size


# --- gRPC -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grpc:
    """A model over gRPC; all requests go over one HTTP/2 connection, side by side.

    Attributes:
        host: of the server.
        port: of the server.
        model: its name.
        version: of the model; None: the newest, or that of the label.
        label: of a version; empty: none.
        signature: that is asked for.
        token: that the server wants; empty: none.
        roots: PEM certificates that the server's is checked with; None: no TLS.
    """

    host: str
    port: int
    model: str
    version: int | None = None
    label: str = ""
    signature: str = ""
    token: str = ""
    roots: bytes | None = None
    _channels: list[Any] = field(default_factory=list, repr=False)

    async def connect(self) -> _GrpcConnection:
        import grpc

        if not self._channels:
            where, options = f"{self.host}:{self.port}", [("grpc.max_receive_message_length", -1)]
            if self.roots is None:
                self._channels.append(grpc.aio.insecure_channel(where, options=options))
            else:
                secure = grpc.ssl_channel_credentials(self.roots or None)
                self._channels.append(grpc.aio.secure_channel(where, secure, options=options))
        metadata = [("authorization", f"Bearer {self.token}")] if self.token else []
        return _GrpcConnection(self._channels[0], metadata)

    async def close(self) -> None:
        while self._channels:  # each belongs to the loop that it was made in
            await self._channels.pop().close()

    def _named(self, request: Any) -> Any:
        request.model_spec.name = self.model
        if self.version is not None:
            request.model_spec.version.value = self.version
        elif self.label:
            request.model_spec.version_label = self.label
        return request

    def message(self, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Spec]) -> bytes:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = self._named(predict_pb2.PredictRequest())
        request.model_spec.signature_name = self.signature
        for name, spec in inputs.items():
            kind = tf.as_dtype(number_of(spec.dtype))
            request.inputs[name].CopyFrom(tf.make_tensor_proto([row[name] for row in rows], kind))
        return request.SerializeToString()

    async def refusal(self, message: bytes) -> str:
        return (await self._call("Predict", message))[0]

    async def signatures(self) -> dict[str, dict[str, Spec]]:
        from tensorflow.core.framework import types_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2 as api

        request = self._named(api.GetModelMetadataRequest(metadata_field=["signature_def"]))
        wrong, body = await self._call("GetModelMetadata", request.SerializeToString())
        _check_entry(self, wrong.startswith("UNAUTHENTICATED"), wrong.startswith("NOT_FOUND"), wrong)
        found = api.SignatureDefMap()
        api.GetModelMetadataResponse.FromString(body).metadata["signature_def"].Unpack(found)

        def spec(info: Any) -> Spec:
            shape = info.tensor_shape
            sizes = None if shape.unknown_rank else tuple(_size(dim.size) for dim in shape.dim)
            return Spec(types_pb2.DataType.Name(info.dtype), sizes)

        return {
            key: {name: spec(info) for name, info in sorted(value.inputs.items())}
            for key, value in found.signature_def.items()
        }

    async def _call(self, method: str, message: bytes) -> tuple[str, bytes]:
        """Returns what went wrong in words, or nothing, and the answer."""
        import grpc

        connection = await self.connect()
        try:
            return "", await connection.call(method, message, 30)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise _nobody(self, "no connection over gRPC") from None
            return f"{error.code().name}, {error.details()}", b""
        finally:
            await self.close()


@dataclass(frozen=True)
class _GrpcConnection:
    channel: Any
    metadata: list[tuple[str, str]]

    async def call(self, method: str, message: bytes, timeout: float | None = None) -> bytes:
        call = self.channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
        return await call(message, timeout=timeout, metadata=self.metadata)

    async def ask(self, message: bytes) -> str:
        import grpc

        try:
            await self.call("Predict", message)
        except grpc.RpcError as error:
            return str(error.code().name)
        return ""

    def close(self) -> None:
        pass  # it is everybody's


# --- The address ----------------------------------------------------------------------------------


def open_target(url: str, options: LoadOptions, takes: str = "load-test takes") -> Target:
    """Returns what a URL names: a model on a server.

    Args:
        url: `http://HOST:PORT/v1/models/NAME` or `grpc://HOST:PORT/NAME`, perhaps with `/versions/N` or
            `/labels/LABEL` behind it; https and grpcs: with TLS.
        options: signature, token and certificates.
        takes: how the sentence on another URL begins.

    Raises:
        UserError: it is no such URL, or a file cannot be read.
    """
    parts = urlsplit(url if "://" in url else f"//{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    path = parts.path.rstrip("/").removesuffix(":predict").removeprefix("/v1/models").strip("/").split("/")
    kinds = {"http": 8501, "https": 8501, "grpc": 8500, "grpcs": 8500}
    told = path[1:]
    known = told == [] or (len(told) == 2 and told[0] in ("labels", "versions"))
    known = known and (told[:1] != ["versions"] or told[1].isdecimal())
    if parts.scheme not in kinds or not host or not path[0] or not known or parts.query:
        raise UserError(f"{takes} {_FORMS}, perhaps with /versions/N behind it. Received: {url}.")
    token = _read(options.token_file).decode().strip() if options.token_file else ""
    port, rest = port or kinds[parts.scheme], parts.scheme.startswith("http")
    if rest:
        tls = None
        if parts.scheme == "https":
            roots = _read(options.ca_file).decode() if options.ca_file else None
            tls = ssl.create_default_context(cadata=roots)
        headers = f"Authorization: Bearer {token}\r\n" if token else ""
        return Rest(host, port, f"/v1/models/{'/'.join(path)}", options.signature, headers, tls)
    checked = _read(options.ca_file) if options.ca_file else b""
    version = int(told[1]) if told and told[0] == "versions" else None
    label = told[1] if told and told[0] == "labels" else ""
    return Grpc(
        host,
        port,
        path[0],
        version,
        label,
        options.signature,
        token,
        checked if parts.scheme == "grpcs" else None,
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def inputs_of(target: Target, signature: str) -> dict[str, Spec]:
    """Returns the inputs of a signature, as the server describes it.

    Raises:
        UserError: nobody answers, or there is no such model or signature.
    """
    found = asyncio.run(target.signatures())
    if signature not in found:
        raise UserError(
            f'The model has no signature "{signature}"{did_you_mean(signature, found)} It has: '
            f"{', '.join(sorted(found))}."
        )
    return found[signature]


async def _first(work: Any, target: Any) -> Any:
    """Returns what a first exchange gives, or says in a sentence why there was none."""
    try:
        return await asyncio.wait_for(work, 30)
    except (TimeoutError, OSError) as error:
        raise _nobody(target, getattr(error, "strerror", None) or str(error) or "no answer in 30 s") from None
    except (ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise UserError(
            f"What answers at {target.host}:{target.port} does not speak HTTP: is that the port of gRPC, or "
            "one that wants https?"
        ) from None


def _nobody(target: Any, reason: str) -> UserError:
    return UserError(
        f"Nobody answers at {target.host}:{target.port} ({reason}); start the server, or give its port."
    )


def _check_entry(target: Any, no_token: bool, unknown: bool, wrong: str) -> None:
    where = f"The server at {target.host}:{target.port}"
    if no_token:
        raise UserError(f"{where} wants a token: give the file that holds it with --token_file.")
    if unknown:
        raise UserError(f"{where} does not serve this model ({wrong}).")
    if wrong:
        raise UserError(f"{where} does not describe the model: {wrong}.")


# --- Requests -------------------------------------------------------------------------------------


def number_of(dtype: str) -> int:
    """Returns TensorFlow's number of a type that is called as `DT_FLOAT` is."""
    from tensorflow.core.framework import types_pb2

    return int(types_pb2.DataType.Value(dtype))


def made_rows(inputs: Mapping[str, Spec]) -> list[dict[str, Any]]:
    """Returns rows that fit a signature: short texts, and zeros.

    Raises:
        UserError: a shape is not known well enough.
    """
    for name, spec in inputs.items():
        if not spec.shape or spec.shape[0] is not None:
            raise UserError(
                f'Of "{name}" it is not known what a row is; give rows with --input. Its shape: {spec.shape}.'
            )

    def value(spec: Spec, text: str) -> Any:
        made: Any = {"DT_STRING": text, "DT_BOOL": False}.get(spec.dtype, 0)
        for size in reversed((spec.shape or ())[1:]):
            made = [made] * (1 if size is None else size)
        return made

    return [{name: value(spec, text) for name, spec in inputs.items()} for text in _TEXTS]


def make_messages(
    target: Target, inputs: Mapping[str, Spec], rows: Sequence[Mapping[str, Any]], rows_per_request: int
) -> list[bytes]:
    """Returns requests of so many rows each, in turn; raises a UserError if the server refuses the first.

    Args:
        target: that they are for.
        inputs: of its signature.
        rows: the values by input; they begin again where there are too few.
        rows_per_request: how many.
    """
    again = itertools.cycle(rows)
    count = min(math.lcm(len(rows), rows_per_request) // rows_per_request, _MADE)
    messages = [target.message([*itertools.islice(again, rows_per_request)], inputs) for _ in range(count)]
    if wrong := asyncio.run(target.refusal(messages[0])):
        raise UserError(f"The server refuses the first request: {wrong.rstrip('.')}.")
    return messages


# --- The load -------------------------------------------------------------------------------------


class Load:
    """Sends requests and notes how long each took.

    Args:
        target: that is asked.
        messages: returns the requests of a client by its number; they come again and again.
        seconds: after which no more are sent.
        requests: most that are sent; 0: any number.
        timeout: seconds after which one is given up.
    """

    def __init__(
        self,
        target: Target,
        messages: Callable[[int], Sequence[bytes]],
        seconds: float,
        requests: int = 0,
        timeout: float = 30.0,
    ) -> None:
        self._target, self._messages = target, messages
        self._seconds, self._most, self._timeout = seconds, requests or math.inf, timeout
        self._sent = 0
        self._idle: list[Connection] = []
        self._elapsed = 0.0
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.errors: Counter[str] = Counter()

    async def closed(self, clients: int) -> None:
        """Has clients ask, each one waiting for its answer."""
        with contextlib.suppress(OSError):  # who cannot connect is counted when it asks
            self._idle += [await self._target.connect() for _ in range(clients)]
        begin = time.perf_counter()

        async def client(number: int) -> None:
            for message in itertools.cycle(self._messages(number)):
                now = time.perf_counter()
                if now - begin >= self._seconds or self._sent >= self._most:
                    return
                self._sent += 1
                if not await self._ask(message, now):
                    await asyncio.sleep(_PAUSE)

        await asyncio.gather(*map(client, range(clients)))
        await self._end(begin)

    async def open(self, rate: float) -> None:
        """Sends requests at a rate, a second, evenly spaced."""
        begin = time.perf_counter()
        free, tasks = asyncio.Semaphore(_IN_FLIGHT), set[asyncio.Task[None]]()

        async def one(message: bytes, planned: float) -> None:
            async with free:
                self.late.append(time.perf_counter() - planned)
                await self._ask(message, planned)

        for number, message in enumerate(itertools.cycle(self._messages(0))):
            planned = number / rate
            if planned >= self._seconds or number >= self._most:
                break
            wait = begin + planned - time.perf_counter()
            # Who is behind lets the others have their turn all the same.
            await asyncio.sleep(max(wait, 0))
            self._sent += 1
            if len(tasks) >= _IN_FLIGHT + _WAITING:
                self.errors["not sent"] += 1
                continue
            task = asyncio.create_task(one(message, begin + planned))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        await self._end(begin)

    async def _end(self, begin: float) -> None:
        self._elapsed = time.perf_counter() - begin
        for connection in self._idle:
            connection.close()
        await self._target.close()

    async def _ask(self, message: bytes, since: float) -> bool:
        """Sends a request over a connection that is free; returns whether there was one."""
        connection, wrong = None, "no connection"
        try:
            async with asyncio.timeout(self._timeout - (time.perf_counter() - since)):
                connection = self._idle.pop() if self._idle else await self._target.connect()
                wrong = "connection lost"
                wrong = await connection.ask(message)
        except TimeoutError:
            wrong = "timeout"
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except (ValueError, IndexError):
            wrong = "no HTTP"
        else:
            self._idle.append(connection)
            connection = None
        if wrong:
            self.errors[wrong] += 1
        else:
            self.latencies.append(time.perf_counter() - since)
        if connection:
            connection.close()
        return wrong not in ("no connection", "UNAVAILABLE")

    def report(self, rows: int = 1) -> dict[str, Any]:
        """Returns what came of it; times and rates are of requests that were answered.

        Args:
            rows: of a request.
        """
        ordered, late = sorted(self.latencies), sorted(self.late)
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        return {
            "seconds": self._elapsed,
            "requests": self._sent,
            "answered": len(ordered),
            "failed": self.errors.total(),
            "errors": dict(self.errors.most_common()),
            "requests_per_second": len(ordered) / self._elapsed,
            "rows_per_second": rows * len(ordered) / self._elapsed,
            "latency_ms": {name: percentile(ordered, share) for name, share in shares.items()},
            **(
                {"sent_late_ms": {"p50": percentile(late, 0.5), "p99": percentile(late, 0.99)}}
                if late
                else {}
            ),
        }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Returns milliseconds that a share of sorted seconds does not exceed; None of none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3 if ordered else None


def run(target: Target, messages: Sequence[bytes], options: LoadOptions) -> dict[str, Any]:
    """Sends requests as options say, and returns what came of it.

    Args:
        target: that is asked.
        messages: the requests, which come again and again.
        options: how many, how long, which loop.
    """

    # Clients do not begin with the same one.
    def turned(number: int) -> Sequence[bytes]:
        place = number % len(messages)
        return [*messages[place:], *messages[:place]]

    load = Load(target, turned, options.seconds, options.requests, options.timeout)
    asyncio.run(load.open(options.rate) if options.rate else load.closed(options.clients))
    closed = {"loop": "closed", "clients": options.clients}
    loop = {"loop": "open", "rate": options.rate} if options.rate else closed
    return {**loop, "rows": options.rows, **load.report(options.rows)}


def format_report(report: Mapping[str, Any]) -> list[str]:
    """Returns what a `report` says, in lines for people."""
    loop = f"{report['rate']:g} a second" if report["loop"] == "open" else f"{report['clients']} clients"
    sent, failed = report["requests"], report["failed"]
    lines = [
        f"{report['loop']} loop, {loop}: {sent:,} requests in {report['seconds']:.1f} s, {failed:,} failed",
        *(f"  {count:,} x {kind}" for kind, count in report["errors"].items()),
        f"{report['rows_per_second']:,.1f} rows/s in {report['requests_per_second']:,.1f} requests/s",
    ]
    for name in ("latency_ms", "sent_late_ms"):
        numbers = [f"{key} {value:.2f}" for key, value in report.get(name, {}).items() if value is not None]
        lines += [f"{name.removesuffix('_ms').replace('_', ' ')}: {', '.join(numbers)} ms"] * bool(numbers)
    return lines
