"""Kinds of model and of request that people bring, beyond the ordinary ones."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from karpa_tf.errors import UserError
from karpa_tf.export.loader import load_signature
from karpa_tf.serving import access, config_files, server
from karpa_tf.serving.observing import Recent
from karpa_tf.serving.options import ServeOptions
from karpa_tf.serving.registry import versions_in
from tests.serving.certificates import make_certificate
from tests.serving.conftest import SECONDS, Running, free_port, predict_over_grpc, save_add, until

FLOATS = tf.TensorSpec([None], tf.float32, "x")
TEXTS = tf.TensorSpec([None], tf.string, "text")


def save(folder: Path, function: Any, *specs: tf.TensorSpec) -> None:
    made = tf.function(function, input_signature=specs, autograph=False)
    module = tf.Module()
    module.made = made
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": made})


def save_tf1(folder: Path) -> None:
    """Several signatures, one of which takes a sparse tensor; inputs named like words of Python."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        weight = tf.compat.v1.get_variable("w", initializer=2.0, use_resource=False)
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        y = tf.compat.v1.placeholder(tf.float32, [None], "y")
        words = tf.compat.v1.placeholder(tf.string, [None], "words")
        matrix = tf.compat.v1.sparse_placeholder(tf.float32, [None, None], "matrix")
        session.run(tf.compat.v1.global_variables_initializer())
        info = tf.compat.v1.saved_model.utils.build_tensor_info
        define = tf.compat.v1.saved_model.build_signature_def
        cut = tf.compat.v1.string_split(words)
        names = {"self": info(x), "class": info(y)}
        signatures = {
            "serving_default": define({"x": info(x)}, {"y": info(x * weight)}),
            "python": define(names, {"difference": info(x - y)}),
            "same": define({"x": info(x)}, {"x": info(x)}),
            "sparse_in": define({"m": info(matrix)}, {"sum": info(tf.sparse.reduce_sum(matrix, 1))}),
            "sparse_out": define({"words": info(words)}, {"cut": info(cut)}),
        }
        builder = tf.compat.v1.saved_model.Builder(str(folder / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    images = tf.TensorSpec([None, None, None, 3], tf.float32, "image")
    save(
        folder / "shape",
        lambda image: {"mean": tf.reduce_mean(image, [1, 2]), "shape": tf.shape(image)},
        images,
    )
    save(folder / "ragged", lambda text: {"words": tf.strings.split(text)}, TEXTS)
    save(folder / "sparse", lambda text: {"words": tf.strings.split(text).to_sparse()}, TEXTS)
    float8 = tf.dtypes.experimental.float8_e5m2
    save(folder / "float8", lambda x: {"y": tf.cast(x, float8)}, FLOATS)
    quantized = lambda x: {"q": tf.quantization.quantize(x, 0.0, 1.0, tf.quint8)[0]}  # noqa: E731
    save(folder / "quantized", quantized, FLOATS)
    two = tf.constant(2.0)
    scaled = lambda x, scale=two: {"y": x * scale}  # noqa: E731
    save(folder / "default", scaled, FLOATS, tf.TensorSpec([], tf.float32, "scale"))
    names = tf.constant(["cold", "warm"])
    label = lambda x: {"label": tf.gather(names, tf.cast(x > 0, tf.int32))}  # noqa: E731
    save(folder / "label", label, FLOATS)
    anything = tf.TensorSpec(None, tf.float32, "x")
    save(folder / "any_shape", lambda x: {"shape": tf.shape(x), "rank": tf.rank(x), "x": x}, anything)
    one = lambda text: {"all": tf.strings.reduce_join(text, separator="\0") + "\0"}  # noqa: E731
    save(folder / "one_text", one, TEXTS)
    weights = tf.ones([2, 1])
    save(folder / "wide", lambda x: {"y": tf.matmul(x, weights)}, tf.TensorSpec(None, tf.float32, "x"))
    save(folder / "complex", lambda z: {"y": tf.math.real(z)}, tf.TensorSpec([None], tf.complex64, "z"))
    save(folder / "half", lambda h: {"y": h}, tf.TensorSpec([None], tf.float16, "h"))
    save_tf1(folder / "tf1")
    return folder


@pytest.fixture(scope="module")
def serving(kinds: Path) -> Iterator[Running]:
    with Running(kinds) as running:
        yield running


def ask(serving: Running, model: str, body: Any, status: int = 200) -> Any:
    answer = serving.post(f"/v1/models/{model}:predict", body)
    assert answer.status == status, answer.body
    return answer.json


def test_a_shape_is_an_output_like_others(serving) -> None:
    assert ask(serving, "shape", {"inputs": [[[[1, 2, 3]]]]})["outputs"] == {
        "mean": [[1.0, 2.0, 3.0]],
        "shape": [1, 1, 1, 3],
    }


def test_a_shape_of_an_input_of_any_rank(serving) -> None:
    for x, shape in ((3.0, []), ([[1.0, 2.0]], [1, 2]), ([], [0])):
        wanted = {"shape": shape, "rank": len(shape), "x": x}
        assert ask(serving, "any_shape", {"inputs": {"x": x}})["outputs"] == wanted


def test_one_text_is_an_output_like_others(serving) -> None:
    assert ask(serving, "one_text", {"inputs": ["a", "b"]})["outputs"] == "a\0b\0"
    with serving.channel() as channel:
        answer = predict_over_grpc(channel, "one_text", text=np.array([b"a", b"b"], object))["all"]
        assert (answer.shape, answer.item()) == ((), b"a\0b\0")


def test_the_page_offers_no_json_for_what_json_cannot_carry(serving) -> None:
    page = serving.get("/").body.decode()
    for model, said in (
        ("complex", "The input &quot;z&quot; is complex64, which JSON cannot carry; use gRPC."),
        ("half", "The input &quot;h&quot; is float16, which JSON cannot carry; use gRPC."),
        ("sparse", "The output &quot;words&quot; is sparse, which this server does not serve"),
    ):
        section = page.partition(f'<section id="{model}">')[2].partition("</section>")[0]
        assert said in section and "curl" not in section
        assert f"/v1/models/{model}/versions/1:predict" not in page
    assert "which JSON cannot carry" in ask(serving, "half", {"inputs": [1.0]}, 400)["error"]
    # A half that is an output is written.
    assert "/v1/models/float8/versions/1:predict" in page


def test_a_refusal_says_nothing_of_tensorflows_inside(serving) -> None:
    error = ask(serving, "wide", {"inputs": [[1, 2, 3]]}, 400)["error"]
    assert error.startswith("Matrix size-incompatible: In[0]: [1,3], In[1]: [2,1]"), error
    assert "{{" not in error and "[Op:" not in error


@pytest.mark.parametrize(("model", "word"), [("ragged", "ragged"), ("sparse", "sparse")])
def test_an_output_that_is_none_of_one_block_is_named(serving, model: str, word: str) -> None:
    error = ask(serving, model, {"instances": ["a b"]}, 501)["error"]
    assert f'The output "words" is {word}' in error and "export a plain tensor" in error


def test_numbers_of_eight_bits(serving) -> None:
    assert ask(serving, "float8", {"instances": [1.1, -3]})["predictions"] == [1.0, -3.0]
    with serving.channel() as channel:
        answer = predict_over_grpc(channel, "float8", x=np.array([1.1, -3], np.float32))
        assert answer["y"].astype(float).tolist() == [1.0, -3.0]
    error = ask(serving, "quantized", {"instances": [0.5]})
    assert "predictions" in error or "quint8" in error["error"]


def test_inputs_with_a_default_may_be_left_out(serving, kinds) -> None:
    assert ask(serving, "default", {"instances": [1, 2]})["predictions"] == [2.0, 4.0]
    assert ask(serving, "default", {"instances": [{"x": 1}, {"x": 2}]}, 200)["predictions"] == [2.0, 4.0]
    assert ask(serving, "default", {"inputs": {"x": [1, 2]}})["outputs"] == [2.0, 4.0]
    assert ask(serving, "default", {"inputs": {"x": [1, 2], "scale": 3}})["outputs"] == [3.0, 6.0]
    assert "Missing: ['x']" in ask(serving, "default", {"inputs": {"scale": 3}}, 400)["error"]
    many = {"inputs": {"x": [1.0] * 10_000}}  # read elsewhere
    assert ask(serving, "default", many)["outputs"] == [2.0] * 10_000
    with serving.channel() as channel:
        answer = predict_over_grpc(channel, "default", x=np.array([1, 2], np.float32))
        assert answer["y"].tolist() == [2.0, 4.0]
    assert load_signature(kinds / "default" / "1").predict([{"x": 1.5}]) == [{"y": 3.0}]


def test_a_signature_that_cannot_be_served_keeps_no_other_from_it(serving) -> None:
    assert ask(serving, "tf1", {"instances": [1, 2]})["predictions"] == [2.0, 4.0]
    body = {"signature_name": "python", "inputs": {"self": [3], "class": [1]}}
    assert ask(serving, "tf1", body)["outputs"] == [2.0]
    assert ask(serving, "tf1", {"signature_name": "same", "instances": [5]})["predictions"] == [5.0]
    error = ask(serving, "tf1", {"signature_name": "sparse_in", "inputs": {"m": [[1]]}}, 501)["error"]
    assert 'The input "m" is sparse' in error
    error = ask(serving, "tf1", {"signature_name": "sparse_out", "instances": ["a b"]}, 501)["error"]
    assert 'The output "cut" is sparse' in error


def test_strings_in_tensor_content_over_grpc(serving) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "label"
    tensor = request.inputs["x"]
    tensor.dtype = types_pb2.DT_STRING
    tensor.tensor_shape.dim.add(size=1)
    tensor.tensor_content = b"raw bytes"
    with serving.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "put strings into string_val" in caught.value.details()


# --- Versions and configurations ----------------------------------------------------------------------


def test_a_number_that_no_version_can_have_takes_nothing_down(models) -> None:
    with Running(models) as running:
        shutil.copytree(models / "add" / "2", models / "add" / "20240102030405123456")
        shutil.copytree(models / "add" / "2", models / "add" / "7")
        until(lambda: "7" in running.status(), "the new version is served")
        assert running.predict([1]) == [3] and set(running.status()) == {"1", "2", "7"}
    assert 2**63 - 1 not in versions_in(models / "add")
    (models / "add" / str(2**63 - 1)).mkdir()
    (models / "add" / ("9" * 100)).mkdir()
    assert sorted(versions_in(models / "add")) == [1, 2, 7, 2**63 - 1]


def test_a_base_path_that_is_a_version_is_a_sentence(models) -> None:
    version = models / "add" / "1"
    for given in ({"model_name": "m", "model_base_path": str(version)}, {"folder": version}):
        with pytest.raises(UserError, match=r"is itself a version.*name the folder that holds the versions"):
            Running(given.pop("folder", ""), **given)


def config(models: Path, version: int) -> str:
    policy = f"model_version_policy {{ specific {{ versions: {version} }} }}"
    entry = f'name: "add" base_path: "{models}/add" model_platform: "tensorflow" {policy}'
    return f"model_config_list {{ config {{ {entry} }} }}"


def test_the_configuration_is_read_again_on_its_own_clock(models, tmp_path) -> None:
    path = tmp_path / "models.config"
    path.write_text(config(models, 1))
    with Running(
        model_config_file=str(path), model_config_file_poll_wait_seconds=1, file_system_poll_wait_seconds=0
    ) as running:
        assert running.predict([1]) == [2]
        path.write_text(config(models, 2))
        until(lambda: running.status().get("2") == "AVAILABLE", "the changed file is followed")
        assert running.predict([1]) == [3]


def test_batching_files_have_all_fields_of_tensorflow_serving(tmp_path) -> None:
    path = tmp_path / "batching.config"
    path.write_text(
        "max_batch_size { value: 128 } batch_timeout_micros { value: 2000 } num_batch_threads { value: 2 }\n"
        'max_enqueued_batches { value: 3 } thread_pool_name { value: "x" } allowed_batch_sizes: 32\n'
        "pad_variable_length_inputs: true enable_large_batch_splitting { value: true }\n"
        "max_execution_batch_size { value: 32 }\n"
    )
    limits = config_files.read_batching(str(path), None, 4)
    assert (limits.rows, limits.request_rows, limits.threads, limits.lone_threads) == (32, 128, 2, 2)


def test_a_version_that_is_not_whole_says_what_it_lacks(kinds, tmp_path) -> None:
    shutil.copytree(kinds / "tf1", tmp_path / "tf1")
    shutil.rmtree(tmp_path / "tf1" / "1" / "variables")
    save_add(tmp_path / "add", 1)
    save_add(tmp_path / "cut", 1)
    (tmp_path / "add" / "1" / "variables" / "variables.index").unlink()
    (data,) = (tmp_path / "cut" / "1" / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[:3])
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words.txt"), tf.string, 0, tf.int64, -1, delimiter="\t"
        ),
        -1,
    )
    module = tf.Module()
    module.table = table
    module.made = tf.function(lambda text: {"id": table.lookup(text)}, input_signature=[TEXTS])
    tf.saved_model.save(module, str(tmp_path / "table" / "1"), signatures={"serving_default": module.made})
    (tmp_path / "table" / "1" / "assets" / "words.txt").unlink()
    lacks = {
        "tf1": "variables.index is missing",
        "add": "variables.index is missing",
        "cut": "is cut off",
        "table": "words.txt is missing",
    }
    with Running(tmp_path) as running:
        for name, word in lacks.items():
            (version,) = running.get(f"/v1/models/{name}").json["model_version_status"]
            assert version["state"] == "END" and word in version["status"]["error_message"], version


# --- HTTP ---------------------------------------------------------------------------------------------


def test_a_proxy_may_send_the_whole_address(serving) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serving.options.rest_api_port, timeout=SECONDS)
    connection.request("GET", "http://models.example:80/v1/models/tf1")
    assert connection.getresponse().status == 200
    connection.close()


def test_pages_of_other_origins_may_ask_if_that_is_wanted(kinds, serving) -> None:
    def preflight(running: Running) -> http.client.HTTPResponse:
        port = running.options.rest_api_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        connection.request("OPTIONS", "/v1/models/tf1:predict", headers={"Origin": "http://a.example"})
        answer = connection.getresponse()
        connection.close()
        return answer

    with Running(kinds, rest_api_enable_cors_support=True) as running:
        answer = preflight(running)
        assert answer.status == 200 and answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Authorization,x-client-id" in answer.headers["Access-Control-Allow-Headers"]
        for body in ({"instances": [1]}, {"instances": ["x"]}, {"instances": [1.0] * 10_000}):
            answer = running.post("/v1/models/tf1:predict", body, {"Origin": "http://a.example"})
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert preflight(serving).headers["Access-Control-Allow-Origin"] is None


def test_health_needs_no_token_and_says_what_is_wrong(models, tmp_path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"secret").hexdigest() + "\n")
    with Running(models, token_file=str(tokens)) as running, running.channel() as channel:
        assert running.get("/healthz").status == running.get("/readyz").status == 200
        stub = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse

        def state(model: str) -> int:
            return stub.Check(health_pb2.HealthCheckRequest(service=model), timeout=SECONDS).status

        until(lambda: state("add") == serving.SERVING, "the model's health is there")
        (models / "words").rename(models / ".words")
        (models / "words" / "1").mkdir(parents=True)
        (models / "words" / "1" / "saved_model.pb").write_bytes(b"broken")
        until(lambda: running.get("/healthz").status == 200, "it lives")
        with pytest.raises(grpc.RpcError) as caught:
            state("nothing")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        signature = running.server.registry.find("add").signature("")
        signature.batcher._overdue = 1
        answer = running.get("/healthz")
        assert answer.status == 503 and b"--max_run_seconds" in answer.body
        signature.batcher._overdue = 0


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_and_unix_sockets(models, tmp_path) -> None:
    paths = {"grpc_socket_path": str(tmp_path / "g"), "rest_api_socket_path": str(tmp_path / "r")}
    with Running(models, port=0, rest_api_port=0, **paths) as running:
        with grpc.insecure_channel(f"unix:{paths['grpc_socket_path']}") as channel:
            answer = predict_over_grpc(channel, "add", x=np.array([1], np.float32))
            assert answer["y"].tolist() == [3]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(paths["rest_api_socket_path"])
            connection.sendall(b"GET /v1/models/add HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert running.server.description()["rest"] is None
    with Running(models, host="::1") as running:
        url = http.client.HTTPConnection("::1", running.options.rest_api_port, timeout=SECONDS)
        url.request("GET", "/v1/models/add")
        assert url.getresponse().status == 200
        url.close()
        with grpc.insecure_channel(f"[::1]:{running.options.port}") as channel:
            assert predict_over_grpc(channel, "add", x=np.array([1], np.float32))["y"].tolist() == [3]
    with pytest.raises(UserError, match="nothing to listen on"):
        ServeOptions(port=0, rest_api_port=0)


def test_a_withdrawn_token_is_refused_and_a_new_certificate_served(models, tmp_path) -> None:
    tokens, certificate, key = tmp_path / "tokens", tmp_path / "cert.pem", tmp_path / "key.pem"
    old, new = (hashlib.sha256(token).hexdigest() + "\n" for token in (b"old", b"new"))
    tokens.write_text(old)
    make_certificate(certificate, key)
    files = {"tls_certificate_file": str(certificate), "tls_key_file": str(key), "token_file": str(tokens)}

    def rest(token: str) -> int:
        context = ssl._create_unverified_context()
        port = running.options.rest_api_port
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)
        connection.request("GET", "/v1/models/add", headers={"Authorization": f"Bearer {token}"})
        status = connection.getresponse().status
        connection.close()
        return status

    def served(port: int) -> str:
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=SECONDS).strip()

    with Running(models, **files) as running:
        assert (rest("old"), rest("new")) == (200, 401)
        tokens.write_text("not a hash\n")  # what cannot be read changes nothing
        tokens.write_text(new)
        until(lambda: (rest("old"), rest("new")) == (401, 200), "the withdrawn token is refused")
        before = certificate.read_text().strip()
        ports = (running.options.rest_api_port, running.options.port)
        assert [served(port) for port in ports] == [before, before]
        make_certificate(certificate, key)
        after = certificate.read_text().strip()
        until(lambda: [served(port) for port in ports] == [after, after], "the new certificate is served")
        assert before != after


def test_a_browser_gives_the_token_as_a_password() -> None:
    tokens = access.Tokens([hashlib.sha256(b"secret").hexdigest().encode()])

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert tokens.accept(basic("anybody:secret")) and tokens.accept(basic(":secret"))
    assert not any(
        map(tokens.accept, (basic("secret:"), basic("secret"), "Basic !", "Basic", "Digest secret"))
    )


# --- The status page ----------------------------------------------------------------------------------


def test_the_page_says_what_is_joined_and_what_was_answered(serving) -> None:
    for x in ([1, 1, 1], [-1]):
        ask(serving, "label", {"instances": x})
    page = serving.get("/").body.decode()
    section = page.split('<section id="label">')[1].split("</section>")[0]
    assert "Requests are not joined: no assets.extra/rowwise.json" in section
    assert "median" in section and "99th percentile" in section
    assert "Labels of the last 10 minutes: warm 75%, cold 25%." in section
    assert "[MASK]" not in page
    text = serving.get("/monitoring/prometheus/metrics").body.decode()
    line = next(line for line in text.splitlines() if "signature_joined{" in line and '"label"' in line)
    assert line.endswith(" 0.0") and "rowwise.json" in line


def test_labels_that_clients_make_up_take_no_memory() -> None:
    recent = Recent()
    for number in range(3):
        labels = np.empty(900, object)
        labels[:] = [b"%d" % (number * 900 + i) for i in range(900)]
        recent.add_labels(labels)
    assert len(recent._labels[-1][1]) == 1000


# --- The process --------------------------------------------------------------------------------------


def test_threads_follow_the_share_of_cores(monkeypatch, tmp_path) -> None:
    quota = tmp_path / "cpu.max"
    real = Path.read_text

    def read(path: Path, *arguments: Any, **options: Any) -> str:
        return real(quota if str(path) == "/sys/fs/cgroup/cpu.max" else path, *arguments, **options)

    monkeypatch.setattr(server.Path, "read_text", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for text, cores in (("150000 100000", 2), ("50000 100000", 1), ("6400000 100000", 64)):
        quota.write_text(text)
        assert server.usable_cores() == cores
    quota.write_text("max 100000")
    assert server.usable_cores() >= 1


@pytest.mark.slow
def test_a_server_that_still_loads_ends_when_it_is_told_to(tmp_path) -> None:
    """Its warm-up would take for ever; nothing ends the thread, and the process does not wait for it."""
    loop = lambda x: {  # noqa: E731
        "y": tf.while_loop(lambda i, y: i < x[0], lambda i, y: (i + 1, y), [tf.constant(0.0), x])[1]
    }
    save(tmp_path / "models" / "loop", loop, FLOATS)
    save_add(tmp_path / "models" / "add", 1)
    from karpa_tf.export import Signature
    from karpa_tf.export.savedmodel import write_warmup

    extra = tmp_path / "models" / "loop" / "1" / "assets.extra"
    extra.mkdir()
    write_warmup(extra, "loop", "serving_default", Signature(loop, {"x": FLOATS}), [{"x": float("inf")}])
    ports = ["--port", "0", "--rest_api_port", str(free_port())]
    command = [sys.executable, "-m", "karpa_tf", "serve", str(tmp_path / "models"), *ports]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "add version 1 is served" in line:  # the next one never is
            break
    process.send_signal(signal.SIGHUP)  # not a reason to end
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    process.stderr.close()
