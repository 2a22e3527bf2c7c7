"""Answers as a real TensorFlow Serving gave them, recorded case by case in `recorded/cases.json`."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import math
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: F401  (json_format looks for it)

from tests.serving.conftest import SECONDS, Running
from tests.serving.recorded.models import write_models

DIFFERENCES = json.loads((Path(__file__).parents[2] / "docs" / "serving_differences.json").read_text("utf-8"))
BOOK = json.loads((Path(__file__).parent / "recorded" / "cases.json").read_text("utf-8"))
CASES = [(kind, case) for kind in ("rest", "grpc") for case in BOOK[kind]]
MESSAGES: dict[str, tuple[Any, Any]] = {
    "Predict": (predict_pb2.PredictRequest, predict_pb2.PredictResponse),
    "Classify": (classification_pb2.ClassificationRequest, classification_pb2.ClassificationResponse),
    "Regress": (regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
    "MultiInference": (inference_pb2.MultiInferenceRequest, inference_pb2.MultiInferenceResponse),
    "GetModelMetadata": (
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_metadata_pb2.GetModelMetadataResponse,
    ),
    "GetModelStatus": (
        get_model_status_pb2.GetModelStatusRequest,
        get_model_status_pb2.GetModelStatusResponse,
    ),
    "HandleReloadConfigRequest": (
        model_management_pb2.ReloadConfigRequest,
        model_management_pb2.ReloadConfigResponse,
    ),
}


class Replay:
    """Asks a server what was recorded."""

    def __init__(self, running: Running, channel: grpc.Channel, models: Path) -> None:
        self._running = running
        self._channel = channel
        self._models = str(models)

    def ask(self, kind: str, case: dict[str, Any], seconds: float = SECONDS) -> list[str]:
        """Returns in what the answer differs from the recorded one."""
        case = self._filled(case)
        compare = self._rest if kind == "rest" else self._grpc
        end = time.monotonic() + case.get("poll_s", 0)
        while (problems := compare(case, seconds)) and time.monotonic() < end:
            pass  # what was asked for needs a moment to come true
        return problems

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        return value.replace("${MODELS}", self._models) if isinstance(value, str) else value

    def _rest(self, case: dict[str, Any], seconds: float) -> list[str]:
        want = case["answer"]
        answer, raw = self._exchange(case, seconds)
        problems = []
        if answer.status != want["status"]:
            problems.append(f"status {answer.status}, not {want['status']}")
        if essence(answer.headers["Content-Type"]) != essence(want["content_type"]):
            problems.append(f"content type {answer.headers['Content-Type']}, not {want['content_type']}")
        for name, value in want.get("headers", {}).items():
            if answer.headers[name] != value:
                problems.append(f"{name} is {answer.headers[name]}, not {value}")
        text = raw.decode("utf-8", "surrogateescape")
        if "names" in want:
            return problems + [f"no metric {name}" for name in want["names"] if name not in text]
        if "text" in want:
            return problems + ["another body"] * (text.strip() != want["text"].strip())
        try:
            value = json.loads(text)
        except ValueError:
            return [*problems, "no JSON"]
        if "refusal" in want:
            right = isinstance(value, dict) and list(value) == ["error"] and type(value["error"]) is str
            return problems + ["not the form of a refusal"] * (not right)
        return problems + differences(want["json"], value)

    def _exchange(self, case: dict[str, Any], seconds: float) -> tuple[http.client.HTTPResponse, bytes]:
        body = case.get("body")
        if isinstance(body, dict):
            body = "".join(text * times for text, times in body["repeat"])
        data = base64.b64decode(case["body_b64"]) if "body_b64" in case else body and body.encode()
        if case.get("body_encoding") == "gzip":
            data = gzip.compress(data)
        headers = dict(case.get("headers") or {})
        if case.get("chunked"):
            headers["Transfer-Encoding"] = "chunked"
            parts = (data[:7], data[7:])
            data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        elif data is not None:
            headers["Content-Length"] = str(len(data))
        port = self._running.options.rest_api_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
        try:
            connection.putrequest(case["method"], case["path"], skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(data or None)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        return answer, gzip.decompress(raw) if answer.headers["Content-Encoding"] == "gzip" else raw

    def _grpc(self, case: dict[str, Any], seconds: float) -> list[str]:
        path = f"/{case['service']}/{case['method']}"
        try:
            if "request_raw_b64" in case:
                raw = base64.b64decode(case["request_raw_b64"])
                if case.get("streaming"):
                    got = b"".join(self._channel.stream_stream(path)(iter([raw]), timeout=seconds))
                else:
                    got = self._channel.unary_unary(path)(raw, timeout=seconds)
                answer: Any = base64.b64encode(got).decode()
            else:
                asked, given = MESSAGES[case["method"]]
                call = self._channel.unary_unary(path, asked.SerializeToString, given.FromString)
                message = json_format.ParseDict(case["request"], asked())
                answer = json_format.MessageToDict(call(message, timeout=seconds))
            code = "OK"
        except grpc.RpcError as error:
            code, answer = error.code().name, None
        if code != case["code"] or code != "OK":
            return [] if code == case["code"] else [f"{code}, not {case['code']}"]
        if "response_raw_b64" in case:
            return ["other bytes"] * (answer != case["response_raw_b64"])
        return differences(unpacked(case["response"]), unpacked(answer))


def essence(content_type: str | None) -> str:
    return (content_type or "").split(";")[0].strip().lower()


def differences(want: Any, got: Any, where: str = "$") -> list[str]:
    """Where two JSON values differ: numbers by more than 1e-6, and the wording of errors not at all."""
    if isinstance(want, dict) and isinstance(got, dict):
        keys = [f"{where}.{key} is only in one of them" for key in want.keys() ^ got.keys()]
        both = (want.keys() & got.keys()) - {"error_message", "errorMessage"}
        return keys + [
            line for key in sorted(both) for line in differences(want[key], got[key], f"{where}.{key}")
        ]
    if isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            return [f"{where} has {len(got)} items, not {len(want)}"]
        pairs = enumerate(zip(want, got, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    if {type(want), type(got)} <= {int, float}:
        if want == got or (want != want and got != got):
            return []
        if math.isfinite(want) and math.isfinite(got) and abs(want - got) <= 1e-6 * max(1.0, abs(want)):
            return []
    elif type(want) is type(got) and want == got:
        return []
    return [f"{where} is {got!r}, not {want!r}"]


# The field of each type in JSON's names, and how `struct` reads the same values out of one block.
PACKED = {
    "DT_FLOAT": ("floatVal", "f"),
    "DT_DOUBLE": ("doubleVal", "d"),
    "DT_HALF": ("halfVal", "H"),
    "DT_BFLOAT16": ("halfVal", "H"),
    "DT_INT8": ("intVal", "b"),
    "DT_INT16": ("intVal", "h"),
    "DT_INT32": ("intVal", "i"),
    "DT_UINT8": ("intVal", "B"),
    "DT_UINT16": ("intVal", "H"),
    "DT_UINT32": ("uint32Val", "I"),
    "DT_INT64": ("int64Val", "q"),
    "DT_UINT64": ("uint64Val", "Q"),
    "DT_BOOL": ("boolVal", "?"),
    "DT_COMPLEX64": ("scomplexVal", "f"),
    "DT_STRING": ("stringVal", ""),
}


def unpacked(value: Any) -> Any:
    """Replaces every tensor by its type, shape and values, whichever way they were packed."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("dtype") not in PACKED or "name" in value:
        return {key: unpacked(item) for key, item in value.items()}
    field, code = PACKED[value["dtype"]]
    shape = [int(dim.get("size", 0)) for dim in value.get("tensorShape", {}).get("dim", [])]
    values = [number(item, field) for item in value.get(field, [])]
    if code and value.get("tensorContent"):
        content = base64.b64decode(value["tensorContent"])
        values = [item for (item,) in struct.iter_unpack(f"<{code}", content)]
    missing = math.prod(shape) * (2 if value["dtype"] == "DT_COMPLEX64" else 1) - len(values)
    return {"dtype": value["dtype"], "shape": shape, "values": values + values[-1:] * max(missing, 0)}


def number(item: Any, field: str) -> Any:
    """JSON of protobuf has large and unusual numbers as strings."""
    if field in ("int64Val", "uint64Val"):
        return int(item)
    return float(item) if isinstance(item, str) and field != "stringVal" else item


@contextmanager
def replaying(folder: Path) -> Iterator[Replay]:
    """Serves the models that were recorded."""
    write_models(folder)
    with (
        Running(
            model_config_file=str(folder / "models.config"),
            monitoring_config_file=str(folder / "monitoring.config"),
            allow_version_labels_for_unavailable_models=True,
        ) as running,
        running.channel() as channel,
    ):
        yield Replay(running, channel, folder)


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    with replaying(tmp_path_factory.mktemp("recorded") / "models") as replay:
        yield replay


# They change what is served, each from where the one before has left it.
RELOADS = [(kind, case) for kind, case in CASES if case["id"].startswith("reload-")]
OTHERS = [(kind, case) for kind, case in CASES if not case["id"].startswith("reload-")]


def test_reloads_one_after_the_other(tmp_path: Path) -> None:
    assert len(RELOADS) > 5 and all(case["id"] not in DIFFERENCES for _, case in RELOADS)
    with replaying(tmp_path / "models") as replay:
        problems = {case["id"]: replay.ask(kind, case) for kind, case in RELOADS}
    assert {name: found for name, found in problems.items() if found} == {}


@pytest.mark.parametrize(("kind", "case"), OTHERS, ids=[f"{kind}-{case['id']}" for kind, case in OTHERS])
def test_it_answers_as_tensorflow_serving(replay: Replay, kind: str, case: dict[str, Any]) -> None:
    different = case["id"] in DIFFERENCES
    # One of the listed differences is a stream that goes on for as long as one listens.
    problems = replay.ask(kind, case, 2 if different else SECONDS)
    if different:
        assert problems, "it is listed in docs/serving_differences.json, and does not differ"
    else:
        assert not problems


def test_the_listed_differences_are_few_and_are_cases() -> None:
    ids = {case["id"] for _, case in CASES}
    assert len(CASES) == 321 and set(DIFFERENCES) <= ids
    assert sum(case["id"] in DIFFERENCES for _, case in CASES) <= 20


def test_no_wording_of_a_refusal_was_recorded() -> None:
    text = json.dumps(BOOK)
    assert '"error":' not in text and '"details"' not in text
