"""gRPC: prediction, metadata, status, reload, health, reflection and pings."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.conftest import SECONDS, Running, predict_over_grpc, save_add, until


@pytest.fixture(scope="module")
def channel(server):
    with server.channel() as channel:
        yield channel


def test_predict(channel) -> None:
    answer = predict_over_grpc(channel, "add", x=np.array([1, 2], np.float32))
    np.testing.assert_array_equal(answer["y"], np.array([4, 5], np.float32))
    answer = predict_over_grpc(channel, "words", text=np.array([b"a bc"], object))
    assert answer["words"].tolist() == [[b"a", b"bc"]]


def refused(channel: grpc.Channel, request: predict_pb2.PredictRequest) -> tuple[str, str]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=SECONDS)
    return caught.value.code().name, caught.value.details()


def test_refusals(channel) -> None:
    request = predict_pb2.PredictRequest()
    assert refused(channel, request) == ("INVALID_ARGUMENT", "The request must have a model_spec.")
    request.model_spec.name = "add"
    code, details = refused(channel, request)
    assert (code, details) == ("INVALID_ARGUMENT", "The signature takes the inputs ['x']. Received: [].")
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1]))
    assert refused(channel, request) == ("INVALID_ARGUMENT", '"x" must be float32. Received: int32.')
    # A few bytes that ask for terabytes.
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    request.inputs["x"].tensor_shape.dim[0].size = 1 << 40
    code, details = refused(channel, request)
    assert code == "INVALID_ARGUMENT" and "takes 1099511627776 values. Received: 1." in details
    request.model_spec.version.value = 7
    assert refused(channel, request)[0] == "NOT_FOUND"


def test_a_large_message_is_refused(templates) -> None:
    with Running(templates, max_request_bytes=1000) as running, running.channel() as channel:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "add"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros(1000, np.float32)))
        assert refused(channel, request)[0] == "RESOURCE_EXHAUSTED"


def test_status_names_what_failed(models) -> None:
    (models / "add" / "3").mkdir()
    (models / "add" / "3" / "saved_model.pb").write_bytes(b"garbage")
    with Running(models) as running, running.channel() as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "add"
        answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=SECONDS)
        first = answer.model_version_status[0]
        assert (first.version, first.State.Name(first.state)) == (3, "END")
        assert first.status.error_code == grpc.StatusCode.DATA_LOSS.value[0]
        assert "not a SavedModel" in first.status.error_message


def reload(channel: grpc.Channel, **paths: str) -> tuple[str, str]:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, path in paths.items():
        request.config.model_config_list.config.add(name=name, base_path=path, model_platform="tensorflow")
    try:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=SECONDS)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def test_reload_serves_other_models(models, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere" / "add"
    save_add(elsewhere, 1)
    with Running(models) as running, running.channel() as channel:
        add = str(models / "add")
        assert reload(channel, more=add) == ("OK", "")
        # Nothing asks for all versions any more: the newest.
        assert running.predict([1], model="more") == [3]
        assert running.status("more") == {"2": "AVAILABLE"}
        assert running.status("add") == {"2": "END", "1": "END"}
        # Refused ones change nothing, and the next right one is taken.
        code, details = reload(channel, more=add, other=str(elsewhere))
        assert code == "PERMISSION_DENIED" and "outside the folders" in details
        assert reload(channel, more=add, other=f"{models}/../elsewhere/add")[0] == "PERMISSION_DENIED"
        assert reload(channel, more=add, other=str(models / "missing"))[0] == "NOT_FOUND"
        assert reload(channel, more=add, other="add")[0] == "INVALID_ARGUMENT"
        assert running.predict([1], model="more") == [3]
        assert reload(channel, add=add, more=add) == ("OK", "")
        assert running.predict([1]) == [3]


def test_health_follows_the_models(models) -> None:
    served = {"model_name": "add", "model_base_path": str(models / "add")}
    with Running(**served) as running, running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        serving = health_pb2.HealthCheckResponse
        assert next(status for status in watch if status.status == serving.SERVING)
        for version in ("1", "2"):
            (models / "add" / version).rename(models / f".{version}")
        assert next(status for status in watch if status.status == serving.NOT_SERVING)


def test_reflection_lists_the_services(channel) -> None:
    names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= set(names)
    assert "grpc.health.v1.Health" in names


class Wire:
    """What lies between a client and a server, and counts HTTP/2's frames on their way back.

    Attributes:
        pongs: answers to pings.
        farewells: GOAWAY, by which a server ends a connection.
    """

    def __init__(self, server: socket.socket, client: socket.socket) -> None:
        self.pongs = self.farewells = 0
        self._ends = (server, client)
        for work in (self._there, self._back):
            threading.Thread(target=work, daemon=True).start()

    def _there(self) -> None:
        server, client = self._ends
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        self.cut()

    def _back(self) -> None:
        server, client = self._ends
        with contextlib.suppress(OSError), server.makefile("rb") as stream:
            # Length (24 bits), type, flags, stream.
            while len(head := stream.read(9)) == 9:
                body = stream.read(int.from_bytes(head[:3], "big"))
                self.pongs += head[3] == 6 and head[4] == 1
                self.farewells += head[3] == 7
                client.sendall(head + body)
        self.cut()

    def answers(self, pings: int) -> None:
        """Waits until so many more pings have been answered."""
        enough = self.pongs + pings
        until(lambda: self.pongs >= enough or self.farewells, f"{pings} pings are answered")
        assert not self.farewells, "the server has ended the connection"

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tapped(server: Running) -> Iterator[tuple[str, list[Wire]]]:
    """An address that leads to the server's, and what lies between, once somebody has called."""
    wires: list[Wire] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                wires.append(Wire(socket.create_connection(("127.0.0.1", server.options.port)), client))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", wires
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    for wire in wires:
        wire.cut()


@pytest.mark.slow  # gRPC's clients ping once a second at most
def test_pings_are_answered_during_a_long_call_and_between_calls(server, monkeypatch) -> None:
    """By itself gRPC ends the connection of a client that has pinged three times while nothing came."""
    entered, go = threading.Event(), threading.Event()
    batcher = server.server.registry.find("words", None, None).signature("").batcher
    run = batcher._run

    def slow(arrays):
        entered.set()
        assert go.wait(SECONDS)
        return run(arrays)

    monkeypatch.setattr(batcher, "_run", slow)
    options = [
        ("grpc.keepalive_time_ms", 500),
        ("grpc.keepalive_timeout_ms", SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    text = np.array([b"a bc"], object)
    with (
        tapped(server) as (address, wires),
        grpc.insecure_channel(address, options) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            answer = pool.submit(predict_over_grpc, channel, "words", text=text)
            assert entered.wait(SECONDS)
            (wire,) = until(lambda: wires, "the client has connected")
            wire.answers(5)
        finally:
            go.set()
        assert answer.result(SECONDS)["words"].tolist() == [[b"a", b"bc"]]
        wire.answers(3)
        assert predict_over_grpc(channel, "words", text=text)["words"].tolist() == [[b"a", b"bc"]]
        assert wires == [wire], "it is the same connection"
