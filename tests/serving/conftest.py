"""Tiny models and a server in this process, for the tests of serving."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import pytest
import tensorflow as tf
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from karpa_tf.serving.in_process import free_port
from karpa_tf.serving.options import ServeOptions
from karpa_tf.serving.server import Server

# Patience for a loaded machine; nothing waits longer than it must.
SECONDS = 120
METRICS = "/monitoring/prometheus/metrics"
FLOATS = tf.TensorSpec([None], tf.float32, "x")
TEXTS = tf.TensorSpec([None], tf.string, "text")


class Add(tf.Module):
    """serving_default: y = x + amount. pairs: two inputs, two outputs. total: an output without rows."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = tf.Variable(amount)

    @tf.function(input_signature=[FLOATS])
    def add(self, x):
        return {"y": x + self.amount}

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float32, "a"), tf.TensorSpec([None], tf.int64, "b")]
    )
    def pairs(self, a, b):
        return {"sum": tf.reduce_sum(a, axis=1), "twice": b * 2}

    @tf.function(input_signature=[FLOATS])
    def total(self, x):
        return {"total": tf.reduce_sum(x)}


class Words(tf.Module):
    """serving_default: the words of a text, padded with "", and their lengths, padded with 0."""

    @tf.function(input_signature=[TEXTS])
    def split(self, text):
        words = tf.strings.split(text)
        return {
            "words": words.to_tensor(""),
            "lengths": tf.ragged.map_flat_values(tf.strings.length, words).to_tensor(),
        }


def save_add(base_path: Path, version: int, amount: float | None = None) -> Path:
    """Writes a version of Add that appears whole; it adds its number unless told otherwise."""
    module = Add(float(version) if amount is None else amount)
    hidden = base_path.parent / f".{base_path.name}-{version}"
    signatures = {"serving_default": module.add, "pairs": module.pairs, "total": module.total}
    tf.saved_model.save(module, str(hidden), signatures=signatures)
    base_path.mkdir(parents=True, exist_ok=True)
    return hidden.rename(base_path / str(version))


def save_words(base_path: Path) -> Path:
    """Writes version 1 of Words."""
    module = Words()
    tf.saved_model.save(module, str(base_path / "1"), signatures={"serving_default": module.split})
    return base_path / "1"


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved once, copied by the tests that change them."""
    folder = tmp_path_factory.mktemp("templates")
    for version in (1, 2, 3):
        save_add(folder / "add", version)
    save_words(folder / "words")
    return folder


@pytest.fixture
def models(templates: Path, tmp_path: Path) -> Path:
    """A folder of models: add with versions 1 and 2, words with version 1."""
    for name in ("add/1", "add/2", "words/1"):
        shutil.copytree(templates / name, tmp_path / "models" / name)
    return tmp_path / "models"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits for a condition, and returns what it returned."""
    deadline = time.monotonic() + SECONDS
    while not (result := condition()):
        assert time.monotonic() < deadline, f"in {SECONDS} s this did not come true: {what}"
        threading.Event().wait(0.02)
    return result


class Answer:
    """What REST answered."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A server in a thread of this process."""

    def __init__(self, folder: Path | str = "", **options: Any) -> None:
        ports = {"port": free_port(), "rest_api_port": free_port()}
        settings = {"access_log": "", "file_system_poll_wait_seconds": 0.05, **ports, **options}
        self.options = ServeOptions(**settings)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = self.call(self._make(str(folder)))
        self.rest = f"http://127.0.0.1:{self.options.rest_api_port}"
        self.grpc = f"127.0.0.1:{self.options.port}"

    async def _make(self, folder: str) -> Server:
        server = Server(self.options, folder)
        await server.start()
        return server

    def call(self, work: Any) -> Any:
        """Runs a coroutine in the server's loop."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)
        except BaseException:
            self._end()
            raise

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Sends GET."""
        return self.send(Request(self.rest + path, headers=headers or {}))

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """Sends POST; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(Request(self.rest + path, data, headers or {}))

    def send(self, request: Request, **options: Any) -> Answer:
        """Sends a request."""
        try:
            with urlopen(request, timeout=SECONDS, **options) as response:
                return Answer(response.status, response.headers, response.read())
        except HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def predict(self, x: list[float], model: str = "add", where: str = "") -> list[float]:
        """Asks a version of `add`."""
        answer = self.post(f"/v1/models/{model}{where}:predict", {"instances": x})
        assert answer.status == 200, answer.body
        return answer.json["predictions"]

    def status(self, model: str = "add") -> dict[str, str]:
        """The state of each version."""
        answer = self.get(f"/v1/models/{model}")
        return {v["version"]: v["state"] for v in answer.json.get("model_version_status", [])}

    def channel(self) -> grpc.Channel:
        """A gRPC channel to it."""
        return grpc.insecure_channel(self.grpc)

    def stop(self) -> None:
        """Drains it."""
        self.call(self.server.stop())
        self._end()

    def _end(self) -> None:
        if self.loop.is_running():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def samples(server: Running, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values, by those of its labels in the order of their names."""
    text = server.get(METRICS).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name
    }


def predict_over_grpc(channel: grpc.Channel, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Asks serving_default."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=SECONDS)
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


@pytest.fixture(scope="module")
def server(templates: Path) -> Iterator[Running]:
    """A server that the tests of a module only ask."""
    with Running(templates) as running:
        yield running
