"""TLS and bearer tokens, on REST and gRPC alike."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from karpa_tf.errors import UserError
from karpa_tf.serving.access import read_tokens
from karpa_tf.serving.options import ServeOptions
from karpa_tf.serving.server import Server
from tests.serving.certificates import make_certificate
from tests.serving.conftest import SECONDS, Running, predict_over_grpc, until

TOKEN = "a-token-of-many-random-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
X = np.array([1], np.float32)


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    lines = ["# who may ask", hashlib.sha256(b"another").hexdigest(), ""]
    lines.append(f"{hashlib.sha256(TOKEN.encode()).hexdigest().upper()}  ada")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_without_a_token_nothing_is_answered(templates, token_file) -> None:
    with Running(templates, token_file=token_file) as server:
        for path in ("/", "/v1/models/add", "/v1/models/nope", "/monitoring/prometheus/metrics", "/nowhere"):
            answer = server.get(path)
            assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        for wrong in ("Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff", TOKEN):
            answer = server.post("/v1/models/add:predict", {"instances": [1]}, {"Authorization": wrong})
            assert answer.status == 401
            assert TOKEN not in answer.body.decode()
        answer = server.post("/v1/models/add:predict", {"instances": [1]}, BEARER)
        assert (answer.status, answer.json) == (200, {"predictions": [4]})
        assert server.get("/", BEARER).status == 200


def test_grpc_asks_for_the_same_token(templates, token_file) -> None:
    with Running(templates, token_file=token_file) as server, server.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            predict_over_grpc(channel, "add", x=X)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED

        class Bearer(grpc.UnaryUnaryClientInterceptor):
            def intercept_unary_unary(self, continuation, details, request):
                return continuation(
                    details._replace(metadata=[("authorization", f"Bearer {TOKEN}")]), request
                )

        allowed = grpc.intercept_channel(channel, Bearer())
        assert predict_over_grpc(allowed, "add", x=X)["y"].tolist() == [4]
        # Load balancers ask for the health of the server, and have no token.
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_token_file_that_would_let_nobody_or_everybody_in(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN}\n")
    with pytest.raises(UserError, match=r"line 1 of .* does not begin with a SHA-256") as caught:
        read_tokens(str(path))
    assert TOKEN not in str(caught.value)
    path.write_text("# nobody\n")
    with pytest.raises(UserError, match="holds no token"):
        Server(ServeOptions(token_file=str(path)), str(tmp_path))
    assert not read_tokens(str(path)).accept(f"Bearer {TOKEN}")
    assert not read_tokens(str(path)).accept(None)
    assert read_tokens("").accept(None)
    with pytest.raises(UserError, match=r"--token_file: .*missing cannot be read: No such file"):
        read_tokens(str(tmp_path / "missing"))


def test_an_emptied_file_refuses_everybody_and_a_broken_one_changes_nothing(
    templates, token_file, caplog
) -> None:
    with Running(templates, token_file=token_file) as server:

        def status() -> int:
            return server.post("/v1/models/add:predict", {"instances": [1]}, BEARER).status

        path, good = Path(token_file), Path(token_file).read_text(encoding="utf-8")
        assert status() == 200
        path.write_text("")
        until(lambda: status() == 401, "nobody is let in")
        assert server.get("/v1/models/add").status == 401
        path.write_text(good)
        until(lambda: status() == 200, "the token is accepted again")
        # At once, so that nobody reads it while it is empty.
        garbage = path.with_name("garbage")
        garbage.write_text("garbage\n")
        garbage.replace(path)
        until(lambda: "what was read before stays: --token_file: line 1" in caplog.text, "it is said")
        assert status() == 200
        path.unlink()
        until(lambda: "cannot be read: No such file" in caplog.text, "it is said")
        assert status() == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder / "cert.pem", folder / "key.pem")
    return {"tls_certificate_file": str(folder / "cert.pem"), "tls_key_file": str(folder / "key.pem")}


def test_tls_on_both_ports(templates, certificate) -> None:
    with Running(templates, **certificate) as server:
        assert server.server.description()["rest"].startswith("https://")
        trusted = ssl.create_default_context(cafile=certificate["tls_certificate_file"])
        url = server.rest.replace("http:", "https:") + "/v1/models/add:predict"
        answer = server.send(Request(url, b'{"instances": [1]}'), context=trusted)
        assert answer.json == {"predictions": [4]}
        with pytest.raises((URLError, ConnectionError)):
            server.get("/v1/models/add")
        credentials = grpc.ssl_channel_credentials(Path(certificate["tls_certificate_file"]).read_bytes())
        with grpc.secure_channel(server.grpc, credentials) as channel:
            assert predict_over_grpc(channel, "add", x=X)["y"].tolist() == [4]
        with server.channel() as channel, pytest.raises(grpc.RpcError):
            predict_over_grpc(channel, "add", x=X)


def test_files_that_are_no_certificate(templates, certificate, tmp_path) -> None:
    (tmp_path / "key.pem").write_text("nonsense")
    with pytest.raises(UserError, match="cannot be used"):
        Running(templates, **(certificate | {"tls_key_file": str(tmp_path / "key.pem")}))
    with pytest.raises(UserError, match=r"--tls_key_file: .*missing.pem cannot be read"):
        Running(templates, **(certificate | {"tls_key_file": str(tmp_path / "missing.pem")}))
    with pytest.raises(UserError, match="go together"):
        Running(templates, tls_key_file=certificate["tls_key_file"])


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_load_test_speaks_tls_to_whom_it_can_check(karpa, templates, certificate, tmp_path, scheme) -> None:
    with Running(templates, **certificate) as server:
        port = server.options.rest_api_port if scheme == "https" else server.options.port
        where = f"{scheme}://localhost:{port}/{'v1/models/' if scheme == 'https' else ''}add"
        words = ["load-test", where, "--requests", 8, "--clients", 2, "--json"]
        result = karpa(*words, "--ca_file", certificate["tls_certificate_file"])
        assert result.status == 0 and (result.json["answered"], result.json["failed"]) == (8, 0), result.err
        # The system's authorities have not signed it.
        result = karpa(*words)
        assert result.status == 2 and f"Nobody answers at localhost:{port}" in result.err
        result = karpa("load-test", where.replace("s:", ":", 1), "--requests", 8)
        assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
