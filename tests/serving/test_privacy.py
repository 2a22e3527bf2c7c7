"""The log of inputs holds no personal numbers."""

from __future__ import annotations

import json

import numpy as np

from karpa_tf.serving.privacy import describe_inputs
from tests.serving.conftest import Running


def test_numbers_and_bytes_are_only_described() -> None:
    texts = np.empty(2, object)
    texts[:] = [b"mail a@b.de", b"\xff\xfe"]
    described = describe_inputs({"text": texts, "card": np.array([[4111111111111111]])})
    assert described == {
        "text": ["mail [EMAIL]", {"bytes": 2}],
        "card": {"dtype": "int64", "shape": [1, 1]},
    }


def test_inputs_are_logged_only_when_asked_for(templates, tmp_path) -> None:
    secret = "ask ada@example.com"
    access, inputs = tmp_path / "access.jsonl", tmp_path / "inputs.jsonl"
    with Running(templates, access_log=str(access)) as server:
        server.post("/v1/models/words:predict", {"instances": [secret]})
        server.post(f"/v1/models/{secret.replace(' ', '')}:predict", {"instances": [secret]})
        server.post("/v1/models/words:predict", f'{{"instances": ["{secret}"'.encode())
    assert "ada" not in access.read_text(encoding="utf-8")
    with Running(templates, request_log=str(inputs)) as server:
        server.post("/v1/models/words:predict", {"instances": [secret]})
    (line,) = [json.loads(line) for line in inputs.read_text(encoding="utf-8").splitlines()]
    assert line["inputs"] == {"text": ["ask [EMAIL]"]}
    assert (line["model"], line["version"], line["signature"]) == ("words", 1, "serving_default")
