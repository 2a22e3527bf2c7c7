"""TensorFlow Serving's REST API."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2

from karpa_tf.serving import answers, json_tensors, page, requests
from karpa_tf.serving.access import Tokens
from karpa_tf.serving.canary import CLIENT_ID
from karpa_tf.serving.examples import Limits
from karpa_tf.serving.json_tensors import is_little, rows_of
from karpa_tf.serving.model import Model
from karpa_tf.serving.observing import Call, Observer
from karpa_tf.serving.readers import Readers
from karpa_tf.serving.refusal import Refusal, invalid
from karpa_tf.serving.registry import Registry, State

_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_STATUS = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}")
_METADATA = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}/metadata")
_ACTION = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<api>predict|classify|regress)")
_INT64_MAX = 2**63 - 1

# Bytes up to which an answer is sent as one piece.
_WHOLE = 1 << 18
# Times what is written in the event loop a thread writes; what is larger is written by another process.
_IN_A_THREAD = 16

# Of all bodies that are held at one time, as many as this of the largest size.
_LARGEST_BODIES = 16

_NOT_FOUND = (
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"
)
# As TensorFlow Serving's, and the headers of tokens and of clients' names.
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET,POST",
    "Access-Control-Allow-Headers": f"Content-Type,Authorization,{CLIENT_ID}",
}
_NO_REQUEST = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class TimedServer(web.Server):
    """aiohttp's server, which by itself waits for ever for a connection's first request.

    Args:
        handler: answers requests.
        timeout: seconds that a new connection has for the head of its first one. Later ones have what
            `keepalive_timeout` says.
        **kwargs: those of `aiohttp.web.Server`.
    """

    def __init__(self, handler: Any, *, timeout: float, **kwargs: Any) -> None:
        super().__init__(self._heard, **kwargs)
        self._handler = handler
        self._timeout = timeout
        self._silent: dict[Any, asyncio.TimerHandle] = {}

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        self._silent[handler] = loop.call_later(self._timeout, _give_up, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        self._no_longer_silent(handler)
        super().connection_lost(handler, exc)

    async def _heard(self, request: web.BaseRequest) -> web.StreamResponse:
        self._no_longer_silent(request.protocol)
        return await self._handler(request)

    def _no_longer_silent(self, handler: Any) -> None:
        if timer := self._silent.pop(handler, None):
            timer.cancel()


def _give_up(transport: asyncio.Transport) -> None:
    transport.write(_NO_REQUEST)
    transport.close()


class RestApi:
    """Answers HTTP requests."""

    def __init__(
        self,
        registry: Registry,
        observer: Observer,
        tokens: Tokens,
        *,
        metrics_path: str,
        timeout: float,
        limits: Limits,
        readers: Readers,
        workers: Executor,
        cors: bool = False,
    ) -> None:
        self._registry = registry
        self._observer = observer
        self._tokens = tokens
        self._metrics_path = metrics_path
        self._timeout = timeout
        self._limits = limits
        self._readers = readers
        self._workers = workers
        self._cors = cors
        self._in_flight = 0
        self._held_bytes = 0
        self._drained: asyncio.Future[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request. Nothing that it brings raises an error here or is logged."""
        call = Call(
            "REST", "", request.remote or "", start=time.perf_counter(), identify=partial(_client, request)
        )
        self._in_flight += 1
        try:
            return await self._observed(request, call)
        finally:
            self._in_flight -= 1
            self._held_bytes -= call.bytes_in
            if self._drained and not self._drained.done() and not self._in_flight:
                self._drained.set_result(None)

    async def drain(self, seconds: float) -> None:
        """Waits until every request has its answer, also those of which only a part has come.

        Connections are closed with their answers, so that clients go elsewhere.
        """
        self._drained = asyncio.get_running_loop().create_future()
        if self._in_flight:
            await asyncio.wait({self._drained}, timeout=seconds)

    async def _observed(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            response = await self._answer(request, call)
        except Refusal as refusal:
            call.status = refusal.code
            response = _error(refusal)
        except asyncio.CancelledError:
            call.status = "CANCELLED"
            raise
        except Exception as error:
            # Its text may quote the request.
            call.status = "INTERNAL"
            response = _error(
                Refusal("INTERNAL", f"The server failed on this request: {type(error).__name__}.")
            )
        if self._drained or not request.content.is_eof() or request.content.exception():
            # What is left of the body would be taken for the next request.
            response.force_close()
        if self._cors:
            response.headers.update(_CORS)
        call.http_status = response.status
        if isinstance(response, web.Response):
            call.bytes_out = len(response.body) if isinstance(response.body, bytes) else 0
        self._observer.finished(call)
        return response

    async def _answer(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        # A proxy may send the whole address.
        path = unquote_to_bytes(re.sub(r"(?i)\Ahttps?://[^/?#]*", "", request.raw_path) or "/").decode(
            "utf-8", "replace"
        )
        if path in ("/healthz", "/readyz"):
            return self._health(path)
        if self._cors and request.method == "OPTIONS":
            return web.Response()
        if not self._tokens.accept(request.headers.get("Authorization")):
            response = _error(
                Refusal(
                    "UNAUTHENTICATED",
                    "Send a header Authorization: Bearer TOKEN with one of this server's tokens.",
                )
            )
            call.status = "UNAUTHENTICATED"
            if path == "/":
                # A browser asks for it: any name, and the token as the password.
                response.headers.add(
                    "WWW-Authenticate", 'Basic realm="karpa-tf serve: the token as password"'
                )
            return response
        if path == self._metrics_path:
            async with self._one_at_a_time:  # each more thread that writes makes the loop wait longer
                text = await asyncio.get_running_loop().run_in_executor(self._workers, self._observer.metrics)
            return web.Response(body=text, content_type="text/plain")
        if path == "/" and request.method in ("GET", "HEAD"):
            return page.respond(self._registry, self._observer, f"{request.scheme}://{request.host}")
        if not re.match(r"/v1/models(/|$|\?)", path):
            return web.Response(status=404, body=_NOT_FOUND, content_type="text/html")
        if request.method == "GET":
            if found := _STATUS.fullmatch(path):
                call.api = "status"
                return self._status(found, call)
            if found := _METADATA.fullmatch(path):
                call.api = "metadata"
                return self._metadata(found, call)
            if path == "/v1/models":
                raise invalid("The path must name a model: /v1/models/NAME.")
        elif request.method == "POST" and (found := _ACTION.fullmatch(path)):
            call.api = found["api"]
            return await self._act(request, found, call)
        raise invalid(
            f"There is no {request.method} {path[:200]}. Known: GET /v1/models/NAME, .../metadata, and POST "
            "/v1/models/NAME:predict, each also with /versions/N or /labels/LABEL after the name."
        )

    def _health(self, path: str) -> web.Response:
        """What an orchestrator asks, without a token: nothing is said but yes and no."""
        stuck = [name for name, signature in self._registry.signatures() if signature.batcher.stuck]
        if stuck:
            text = "a run takes longer than --max_run_seconds; only a new start ends it"
        elif path == "/readyz" and not self._registry.ready():
            text = "not every model has a version that answers"
        else:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=text + "\n")

    # --- Questions --------------------------------------------------------------------------------

    def _status(self, found: re.Match[str], call: Call) -> web.Response:
        versions = self._registry.status(found["name"], _number(found))
        call.model = found["name"]
        return _json(
            {
                "model_version_status": [
                    {
                        "version": str(version.number),
                        "state": State.Name(version.state),
                        "status": {
                            "error_code": version.error.code if version.error else "OK",
                            "error_message": version.error.message if version.error else "",
                        },
                    }
                    for version in versions
                ]
            }
        )

    def _metadata(self, found: re.Match[str], call: Call) -> web.Response:
        model = self._find(found, call)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.definitions)
        return _json(
            {
                "model_spec": {
                    "name": model.name,
                    "signature_name": "",
                    "version": str(model.version),
                },
                "metadata": {"signature_def": _to_json(signatures)},
            }
        )

    def _find(self, found: re.Match[str], call: Call) -> Model:
        model = self._registry.find(found["name"], _number(found), found["label"], call)
        call.found(model)
        return model

    # --- Predict, classify, regress ---------------------------------------------------------------

    async def _act(self, request: web.BaseRequest, found: re.Match[str], call: Call) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        body = await self._read(request, call, deadline)
        encoding = request.headers.get("Content-Encoding", "")
        small = call.bytes_in <= requests.SMALL and not requests.is_encoded(encoding)
        try:
            model = self._find(found, call)
        except Refusal:
            if small:  # what is wrong with the body comes first, as in TensorFlow Serving
                requests.signature_name(json_tensors.parse(b"".join(body)))
            raise
        signatures = {key: (each.inputs, each.defaults.keys()) for key, each in model.signatures.items()}
        if small:
            question = requests.read_rest(
                b"".join(body), encoding, call.api, model.name, signatures, self._limits
            )
        else:
            question = await self._readers.read_rest(
                body, encoding, call.api, model.name, signatures, deadline
            )
        del body
        signature = model.signature(question.signature)
        call.signature = question.signature or "serving_default"
        arrays = signature.completed(question.arrays)
        call.rows = rows_of(list(arrays.values()))
        self._observer.received(call, arrays, question.size)
        outputs = await signature.batcher.submit(arrays, deadline)
        self._observer.answered(call, outputs)

        rows = len(arrays["inputs"]) if call.api != "predict" else 0
        parts: Sequence[bytes | memoryview]
        if is_little(outputs):
            parts = answers.write_rest(call.api, question.by_rows, rows, outputs)
        elif is_little(outputs, _IN_A_THREAD):
            parts = await loop.run_in_executor(
                self._workers, answers.write_rest, call.api, question.by_rows, rows, outputs
            )
        else:
            parts = await self._readers.write_rest(call.api, question.by_rows, rows, outputs, deadline)
        if sum(map(len, parts)) <= _WHOLE:
            return web.Response(body=b"".join(parts), content_type="application/json")
        return await _in_parts(request, parts, call, _CORS if self._cors else {})

    async def _read(self, request: web.BaseRequest, call: Call, deadline: float) -> list[bytes]:
        length = request.content_length or 0
        if length > self._limits.bytes:
            raise requests.too_large(self._limits.bytes, length)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        chunks: list[bytes] = []
        try:
            # Most bodies have come with their headers; waiting for the others ends at the deadline.
            async with asyncio.timeout_at(None if request.content.is_eof() else deadline):
                async for chunk in request.content.iter_any():
                    chunks.append(chunk)
                    call.bytes_in += len(chunk)
                    self._held_bytes += len(chunk)
                    if call.bytes_in > self._limits.bytes:
                        raise requests.too_large(self._limits.bytes, call.bytes_in)
                    if self._held_bytes > _LARGEST_BODIES * self._limits.bytes:
                        raise Refusal(
                            "RESOURCE_EXHAUSTED", "Too much is being sent at once; try again later."
                        )
        except TimeoutError:
            raise Refusal("DEADLINE_EXCEEDED", "The body did not arrive in time.", 408) from None
        except (web.RequestPayloadError, ConnectionError):
            raise invalid(
                "The body is broken: it ended early, or is not encoded as its headers say."
            ) from None
        return chunks


async def _in_parts(
    request: web.BaseRequest, parts: Sequence[bytes | memoryview], call: Call, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Sends a large answer piece by piece, no faster than the client takes it."""
    call.bytes_out = sum(map(len, parts))
    response = web.StreamResponse(headers=headers)
    response.content_type = "application/json"
    response.content_length = call.bytes_out
    if not request.content.is_eof() or request.content.exception():
        response.force_close()
    await response.prepare(request)
    for part in parts:
        for begin in range(0, len(part), _WHOLE):
            await response.write(memoryview(part)[begin : begin + _WHOLE])
            # A client that reads as fast as this writes would have the loop to itself.
            await asyncio.sleep(0)
    await response.write_eof()
    return response


def _client(request: web.BaseRequest) -> str:
    """Returns what a canary's share goes by: what the client calls itself, else its address."""
    return request.headers.get(CLIENT_ID) or request.remote or ""


def _number(found: re.Match[str]) -> int | None:
    if found["version"] is None:
        return None
    if int(found["version"]) > _INT64_MAX:
        raise invalid("The version is larger than any version can be.")
    return int(found["version"])


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _error(refusal: Refusal) -> web.Response:
    # A path that is not UTF-8 may be quoted in it.
    message = refusal.message[:2000].encode("utf-8", "replace").decode()
    response = web.Response(
        status=refusal.http_status, body=orjson.dumps({"error": message}), content_type="application/json"
    )
    if refusal.code == "UNAUTHENTICATED":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _to_json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
