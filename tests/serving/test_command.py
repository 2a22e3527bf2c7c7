"""`karpa-tf serve` as a command: what it prints, how it stops, and what it says of wrong flags."""

from __future__ import annotations

import ast
import os
import signal
import socket
from pathlib import Path
from urllib.error import HTTPError

import pytest
import tensorflow as tf

from tests.serving.command import Command
from tests.serving.conftest import FLOATS, SECONDS, free_port, until


def test_it_says_where_it_listens_and_drains_on_sigterm(models) -> None:
    command = Command(models, "--json", "--access_log", "", "--rest_api_timeout_in_ms", SECONDS * 1000)
    ready = command.ready()
    assert ready["rest"] == f"http://127.0.0.1:{command.rest_port}"
    assert ready["models"] == {"add": [2, 1], "words": [1]}
    assert command.predict(1) == [3]
    # Half of a request is there when the signal comes, and the other half after it.
    with socket.create_connection(("127.0.0.1", command.rest_port), SECONDS) as connection:
        head = b"POST /v1/models/add:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n"
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        # The server reads the body now.
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(b'{"instances"')
        command.process.send_signal(signal.SIGTERM)
        assert command.process.stderr
        while "stopping" not in command.process.stderr.readline():
            pass
        connection.sendall(b": [5]}")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b'{"predictions":[7.0]}')
    out, err = command.process.communicate(timeout=SECONDS)
    assert (command.process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_ctrl_c_ends_with_130(models) -> None:
    command = Command(models)
    assert command.process.stdout
    lines = [command.process.stdout.readline() for _ in range(3)]
    assert lines[:2] == ["add: version 2, 1\n", "words: version 1\n"]
    assert lines[2].startswith("REST http://127.0.0.1:") and "stop with Ctrl-C" in lines[2]
    status, _, err = command.end(signal.SIGINT)
    assert status == 130 and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing"], "There is no folder missing"),
        (["."], "holds no model"),
        (["--port", "99999"], "--port must be at least 0 and at most 65535. Received: 99999."),
        (["--port", "0", "--rest_api_port", "0"], "nothing to listen on"),
        (["--port", "8501"], "must differ"),
        (["--rest_port", "1"], 'no option --rest_port; did you mean "--rest_api_port"?'),
        (["--max_request_bytes", "-1"], "--max_request_bytes must be at least 0. Received: -1."),
        (["--model_name", "m"], "--model_name and --model_base_path go together"),
        (["--model_name", "m", "--model_base_path", "nowhere"], "there is no folder"),
        (["--model_config_file", "none.config"], "none.config cannot be read: No such file or directory."),
        (["--monitoring_config_file", "wrong.config"], "wrong.config is not a MonitoringConfig"),
        (["--batching_parameters_file", "zero.config"], "max_batch_size must be at least 1. Received: 0."),
        (["--access_log", "no/such/folder/log"], "--access_log: no/such/folder/log cannot be written"),
    ],
)
def test_one_sentence_for_what_is_wrong(karpa, tmp_path, monkeypatch, words, sentence) -> None:
    (tmp_path / "wrong.config").write_text("prometheus_config { enabled: true }")
    (tmp_path / "zero.config").write_text("max_batch_size { value: 0 }")
    monkeypatch.chdir(tmp_path)
    result = karpa("serve", *words)
    assert result.status == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("karpa-tf: ") and sentence in line


def test_a_port_that_is_taken_is_said_before_models_load(karpa, models) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, other in (("--port", "--rest_api_port"), ("--rest_api_port", "--port")):
            result = karpa("serve", models, flag, port, other, free_port())
            assert result.status == 2
            assert f"{flag}: 127.0.0.1:{port} cannot be listened on: Address already in use" in result.err


def test_one_model_by_name(models) -> None:
    from tests.serving.conftest import Running

    with Running(model_name="mine", model_base_path=str(models / "add")) as server:
        # TensorFlow Serving's own default: the newest version.
        assert server.status("mine") == {"2": "AVAILABLE"}
        assert server.predict([1], model="mine") == [3]


def test_a_folder_of_versions_is_one_model(models) -> None:
    from tests.serving.conftest import Running

    with Running(models / "add") as server:
        assert server.predict([1]) == [3]


def test_serving_imports_no_keras_and_no_other_room() -> None:
    """tensorflow_text brings Keras along by itself; serving's own files name neither it nor a room."""
    import karpa_tf

    rooms = {"data", "models", "rl", "recipes", "training", "export"}
    for file in (Path(karpa_tf.__file__).parent / "serving").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            )
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                package, _, rest = name.partition(".")
                assert package not in ("keras", "keras_hub", "tf_keras"), file.name
                assert package != "karpa_tf" or rest.split(".")[0] not in rooms, file.name


def test_runs_that_do_not_end_stop_no_other_model(models) -> None:
    module = tf.Module()

    @tf.function(input_signature=[FLOATS])
    def count(x):
        end = 2_000_000_000_000
        step = lambda i, a: (i + 1, a + tf.cast(i, tf.float32))  # noqa: E731
        return {"y": tf.while_loop(lambda i, a: i < end, step, (tf.constant(0, tf.int64), x))[1]}

    module.count = count
    tf.saved_model.save(module, str(models / "endless" / "1"), signatures={"serving_default": count})
    # On one core TensorFlow by itself has one thread for the ops of all models.
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        command = Command(models, "--json", "--access_log", "", "--max_run_seconds", 0.5)
    finally:
        os.sched_setaffinity(0, allowed)

    def answers(model: str) -> int:
        try:
            assert command.predict(1, model) == [3]
        except HTTPError as error:
            return error.code
        return 200

    try:
        command.ready()
        assert answers("endless") == 504
        # A slow machine may take longer than half a second for the first one.
        until(lambda: answers("add") == 200, "another model answers beside it")
    finally:
        command.process.kill()
        command.process.communicate(timeout=SECONDS)
