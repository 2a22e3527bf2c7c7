"""What models cost: sizes that can be counted, requests that can be counted; no time is asserted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from karpa_tf.judging.costs import measure_costs
from karpa_tf.reports.model_card import costs_section
from karpa_tf.reports.tables import format_table


def test_models_are_measured_in_turn_with_the_same_rows(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def model(name: str, content: bytes) -> tuple[Path, object]:
        (tmp_path / name / "variables").mkdir(parents=True)
        (tmp_path / name / "variables" / "data").write_bytes(content)
        (tmp_path / name / "graph").write_bytes(b"g" * 100)

        def answer(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            asked.append((name, len(arrays["x"])))
            return {"y": arrays["x"] * 2}

        return tmp_path / name, answer

    noise = np.random.default_rng(0).bytes(50_000)
    models = {"dense": model("dense", noise), "sparse": model("sparse", bytes(50_000))}
    rows = {"x": np.arange(70.0)}
    costs = measure_costs(models, rows, {"dense": {"accuracy": 0.5}}, threads=3)  # type: ignore[arg-type]
    dense, sparse = costs.table["dense"], costs.table["sparse"]
    assert dense["accuracy"] == 0.5 and "accuracy" not in sparse
    assert dense["bytes"] == sparse["bytes"] == 50_100
    assert dense["gzip_bytes"] > 50_000 > 1000 > sparse["gzip_bytes"] > 0
    for name in ("request_ms", "cpu_s_1000_rows"):
        assert all(math.isfinite(row[name]) and row[name] >= 0 for row in (dense, sparse))
    assert "70 rows in requests of 32" in costs.how and "3 threads" in costs.how
    assert asked.count(("dense", 1)) == asked.count(("sparse", 1)) > 100
    # The last one of the three requests that all rows take has six.
    assert asked.count(("dense", 6)) == asked.count(("sparse", 6)) > 3
    timed = [name for name, size in asked if size == 1][-200:]
    assert timed == ["dense", "sparse"] * 100


def test_nothing_is_measured_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one at least"):
        measure_costs({"a": (tmp_path, lambda arrays: arrays)}, {"x": np.zeros(0)}, {}, threads=1)


def test_the_table_reads_the_same_in_a_terminal_and_on_a_model_card() -> None:
    table = {"a/1": {"accuracy": 0.98765, "bytes": 9_876_543}, "a/2": {"bytes": 1_000, "request_ms": 0.25}}
    assert format_table(table) == [
        "      accuracy     bytes request_ms",
        "a/1     0.9877 9,876,543           ",
        "a/2                1,000       0.25",
    ]
    card = costs_section({"table": table, "how": "by hand"})
    assert "| | accuracy | bytes | request_ms |\n|---|---|---|---|\n| a/1 | 0.9877 | 9,876,543 |  |" in card
    assert "| a/2 |  | 1,000 | 0.25 |" in card and "How: by hand." in card
    assert costs_section(None) == ""
