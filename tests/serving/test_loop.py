"""The loop of examples/loop: its pieces, and all of it."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from karpa_tf.cli import _VERBS
from tests.documents import ROOT
from tests.serving.conftest import TEXTS, Running

LOOP = ROOT / "examples" / "loop"


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    return runpy.run_path(str(LOOP / "steps.py"))


def write_answers(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_traffic_is_of_no_row_that_is_learned_or_compared_with(
    steps: dict[str, Any], tmp_path: Path
) -> None:
    steps["prepare"](tmp_path)
    read = steps["read_table"]
    learned = [
        row for split in ("train", "validation", "test") for row in read(tmp_path / "first" / f"{split}.csv")
    ]
    assert {row["label"] for row in learned} == set(steps["KNOWN"])
    lines = (tmp_path / "traffic.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["text"] for line in lines]
    held = read(tmp_path / "held_new.csv")
    assert {row["label"] for row in held} == {steps["NEW"]} and len(held) >= 20
    assert not {*asked} & {row["text"] for row in [*learned, *held]}
    answers = {row["text"]: row["label"] for row in read(tmp_path / "answers.csv")}
    assert set(asked) == set(answers)
    new = [answers[text] == steps["NEW"] for text in asked]
    assert not any(new[:250]) and sum(new[250:500]) == 62 and 20 <= sum(new[500:]) < 60
    assert read(tmp_path / "held_known.csv") == read(tmp_path / "first" / "test.csv")
    again = tmp_path / "again"
    steps["prepare"](again)
    assert (again / "traffic.jsonl").read_bytes() == (tmp_path / "traffic.jsonl").read_bytes()


def test_a_person_is_asked_about_what_the_model_knows_least_of(steps: dict[str, Any], tmp_path: Path) -> None:
    sure = {"text": "sure", "label": "a", "confidence": 0.9}
    doubt = {"text": "doubt", "label": "b", "confidence": 0.4}
    answers = write_answers(tmp_path / "answers.jsonl", [sure, doubt])
    steps["unsure"](answers, tmp_path / "asked.csv", 1)
    assert steps["read_table"](tmp_path / "asked.csv") == [{"text": "doubt", "label": "b"}]
    # What the model itself says of unknown texts goes first.
    rows = [
        {**sure, "known": False, "unknown_score": 3.0},
        {**doubt, "known": True, "unknown_score": 1.0},
        {**doubt, "text": "third", "known": True, "unknown_score": 2.0},
    ]
    steps["unsure"](write_answers(answers, rows), tmp_path / "asked.csv", 2)
    assert [row["text"] for row in steps["read_table"](tmp_path / "asked.csv")] == ["sure", "third"]
    steps["write_table"](tmp_path / "right.csv", ["text", "label"], [("third", "c"), ("other", "d")])
    steps["label"](tmp_path / "asked.csv", tmp_path / "right.csv", tmp_path / "labelled.csv")
    assert steps["read_table"](tmp_path / "labelled.csv") == [{"text": "third", "label": "c"}]


def test_texts_go_from_the_traffic_through_the_servers_log(steps: dict[str, Any], tmp_path: Path) -> None:
    module = tf.Module()
    give = lambda text: {"label": tf.strings.substr(text, 5, 1), "text": text}  # noqa: E731
    module.first = tf.function(give, input_signature=[TEXTS])
    tf.saved_model.save(module, str(tmp_path / "first" / "1"), signatures={"serving_default": module.first})
    log = tmp_path / "requests.jsonl"
    traffic = [{"client": f"c{number % 3}", "text": f"text {number % 4}"} for number in range(9)]
    write_answers(tmp_path / "traffic.jsonl", traffic)
    with Running(tmp_path / "first", request_log=str(log)) as server:
        found = steps["send"](f"{server.rest}/v1/models/first", tmp_path / "traffic.jsonl", 1, 8)
    assert found == {"0": 1, "1": 2, "2": 2, "3": 2}
    steps["texts"](log, tmp_path / "texts.csv")
    assert [row["text"] for row in steps["read_table"](tmp_path / "texts.csv")] == [
        f"text {number}" for number in (1, 2, 3, 0)
    ]


@pytest.mark.slow
def test_the_loop_ends_with_version_2_which_knows_more(tmp_path: Path) -> None:
    command = [sys.executable, str(LOOP / "run.py"), "--folder", str(tmp_path / "loop")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = dict(re.findall(r"^(version \d on held_\w+).csv: accuracy ([\d.]+)$", done.stdout, re.MULTILINE))
    assert float(scores["version 2 on held_known"]) > float(scores["version 1 on held_known"]) - 0.02
    assert float(scores["version 2 on held_new"]) > 0.5
    # Each command stands there as a person types it.
    verbs = [shlex.split(line)[2] for line in done.stdout.splitlines() if line.startswith("$ karpa-tf ")]
    expected = {"train", "export", "rollout", "serve", "watch", "predict", "evaluate"}
    assert expected == set(verbs) <= set(_VERBS)
    assert re.search(r"^ALARM at text \d+: input", done.stdout, re.MULTILINE)
    sent = re.findall(r"^\d+ requests: (.*)$", done.stdout, re.MULTILINE)
    weather = [int((re.findall(r"HassGetWeather (\d+)", line) or ["0"])[0]) for line in sent]
    assert weather[0] == 0 < weather[1] < weather[2]
    versions = re.findall(r'requests_total.*status="OK",version="(\d)"\} (\d+)', done.stdout)
    assert {version for version, _ in versions} == {"1", "2"}
