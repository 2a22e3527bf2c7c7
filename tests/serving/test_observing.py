"""Metrics, the access log and the status page."""

from __future__ import annotations

import json

import numpy as np

from tests.serving.conftest import METRICS, Running, predict_over_grpc, samples


def test_metrics_count_what_was_asked(templates) -> None:
    with Running(templates) as server, server.channel() as channel:
        server.predict([1, 2])
        predict_over_grpc(channel, "add", x=np.array([1], np.float32))
        server.post("/v1/models/add:predict", {"instances": ["one"]})
        server.post("/v1/models/someone@example.com:predict", {"instances": [1]})
        assert b"# TYPE :tensorflow:serving:request_count counter" in server.get(METRICS).body
        # The name as the parser gives it back.
        counts = samples(server, ":tensorflow:serving:request_count_total")
        # A name that a client made up does not become a label.
        assert counts == {("add", "OK"): 2, ("add", "INVALID_ARGUMENT"): 1, ("", "NOT_FOUND"): 1}
        latency = samples(server, ":tensorflow:serving:request_latency_count")
        assert latency == {("predict", "REST", "add"): 1, ("predict", "GRPC", "add"): 1}
        assert samples(server, ":tensorflow:serving:runtime_latency_count")[("Predict", "add", "TF2")] == 2
        assert samples(server, ":tensorflow:serving:batch_rows_sum") == {("add",): 3}
        assert samples(server, ":tensorflow:serving:batching_session:queuing_latency_count") == {("add",): 2}
        assert samples(server, ":tensorflow:serving:model_versions")[("add", "AVAILABLE")] == 3
        assert samples(server, ":tensorflow:serving:queued_rows")[("add", "serving_default")] == 0
        assert samples(server, "process_resident_memory_bytes")


def test_metrics_move_or_go_with_the_monitoring_file(templates, tmp_path) -> None:
    config = tmp_path / "monitoring.config"
    config.write_text('prometheus_config { enable: true path: "/numbers" }')
    with Running(templates, monitoring_config_file=str(config)) as server:
        assert server.get("/numbers").status == 200
        assert server.get(METRICS).status == 404
    config.write_text("prometheus_config { enable: false }")
    with Running(templates, monitoring_config_file=str(config)) as server:
        assert server.get(METRICS).status == 404


def test_the_access_log_has_a_line_a_request(templates, tmp_path) -> None:
    log = tmp_path / "access.jsonl"
    with Running(templates, access_log=str(log)) as server, server.channel() as channel:
        server.predict([1, 2], where="/versions/1")
        predict_over_grpc(channel, "add", x=np.array([1], np.float32))
        server.get("/nowhere")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    first = lines[0]
    assert (first["entrypoint"], first["api"], first["status"]) == ("REST", "predict", "OK")
    assert (first["model"], first["version"], first["signature"]) == ("add", 1, "serving_default")
    assert (first["rows"], first["http_status"], first["bytes_in"]) == (2, 200, len('{"instances": [1, 2]}'))
    assert first["milliseconds"] > 0 and first["client"] == "127.0.0.1" and first["time"].startswith("20")
    assert lines[1]["entrypoint"] == "GRPC" and lines[1]["rows"] == 1
    assert (lines[2]["api"], lines[2]["http_status"]) == ("other", 404)


def test_the_status_page_shows_models_and_what_to_send(server) -> None:
    answer = server.get("/")
    page = answer.body.decode()
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for part in ("<h2>add</h2>", "<td>3<td>AVAILABLE", "float32 [?, 2]", "/v1/models/words:predict"):
        assert part in page
