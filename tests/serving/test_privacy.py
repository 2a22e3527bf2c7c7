"""The log of inputs holds no personal numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from karpa_tf.serving.privacy import describe_inputs, redact
from tests.serving.conftest import Running


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to ada.lovelace+x@example.co.uk, please", "write to [email], please"),
        ("MAX@EXAMPLE.COM", "[email]"),
        ("ä.ö@exämple.de!", "[email]!"),
        ("call +49 (0)30 / 1234-5678 now", "call [phone] now"),
        ("(555) 123-4567", "[phone]"),
        ("5551234567", "[phone]"),
        ("card 4111 1111 1111 1111, thanks", "card [card], thanks"),
        ("5500-0000-0000-0004", "[card]"),
        ("378282246310005", "[card]"),
        ("12345678901234567890123", "[number]"),
        ("٠١٢٣٤٥٦٧٨٩", "[phone]"),
        ("call 555.123.4567.", "call [phone]."),
        ("version 2.21.0 of 2026 costs 1,000", "version 2.21.0 of 2026 costs 1,000"),
        ("the [MASK] of 12 men", "the [MASK] of 12 men"),
    ],
)
def test_what_is_taken_out(text: str, kept: str) -> None:
    assert redact(text) == kept


def test_numbers_and_bytes_are_only_described() -> None:
    texts = np.empty(2, object)
    texts[:] = [b"mail a@b.de", b"\xff\xfe"]
    described = describe_inputs({"text": texts, "card": np.array([[4111111111111111]])})
    assert described == {
        "text": ["mail [email]", {"bytes": 2}],
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
    assert line["inputs"] == {"text": ["ask [email]"]}
    assert (line["model"], line["version"], line["signature"]) == ("words", 1, "serving_default")
