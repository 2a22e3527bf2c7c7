"""Answers as a real TensorFlow Serving gave them, recorded case by case in ../shared/tfserving."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.serving.conftest import Running

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "tfserving"
DIFFERENCES = json.loads((ROOT / "docs" / "serving_differences.json").read_text(encoding="utf-8"))
BOOK = (
    json.loads((SHARED / "conformance.json").read_text(encoding="utf-8"))
    if (SHARED / "conformance.json").is_file()
    else {"rest": [], "grpc": []}
)
CASES = [(kind, case) for kind in ("rest", "grpc") for case in BOOK[kind]]

recorded = pytest.mark.skipif(not CASES, reason="the recorded cases are not in ../shared/tfserving")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tfserving_{name}", SHARED / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfserving") / "models"
    load("make_models").main(str(folder))
    for name in ("models.config", "monitoring.config"):
        text = (SHARED / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("${MODELS}", str(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def running(recorded_models: Path) -> Iterator[Running]:
    with Running(
        model_config_file=str(recorded_models / "models.config"),
        monitoring_config_file=str(recorded_models / "monitoring.config"),
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def replay(running: Running, recorded_models: Path) -> Any:
    program = load("replay")
    modules = program.grpc_modules()
    channel = running.channel()
    models = str(recorded_models)

    def ask(kind: str, case: dict[str, Any]) -> list[str]:
        """Returns in what the answer differs from the recorded one."""
        deadline = time.monotonic() + case.get("poll_s", 0)
        while True:
            if kind == "rest":
                result = program.compare_rest(case, program.send_rest(running.rest, case, models), models)
            else:
                result = program.compare_grpc(case, program.send_grpc(modules, channel, case, models), models)
            if not result.problems or time.monotonic() >= deadline:
                return result.problems

    yield ask
    channel.close()


@recorded
@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}-{case['id']}" for kind, case in CASES])
def test_it_answers_as_tensorflow_serving(replay: Any, kind: str, case: dict[str, Any]) -> None:
    different = case["id"] in DIFFERENCES
    # One of the listed differences is a stream that goes on for as long as one listens.
    problems = replay(kind, case | {"timeout_s": 2} if different else case)
    if different:
        assert problems, "it is listed in docs/serving_differences.json, and does not differ"
    else:
        assert not problems


@recorded
def test_the_listed_differences_are_few_and_are_cases() -> None:
    ids = {case["id"] for _, case in CASES}
    assert set(DIFFERENCES) <= ids
    assert sum(case["id"] in DIFFERENCES for _, case in CASES) <= 20
