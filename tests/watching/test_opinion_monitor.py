"""The opinion monitor of examples/opinion-monitor: its pieces, and all of it."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from karpa_tf.cli import _VERBS
from tests.documents import ROOT

MONITOR = ROOT / "examples" / "opinion-monitor"
RULES = ROOT / "deploy" / "watch" / "alerts.yml"


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    return runpy.run_path(str(MONITOR / "steps.py"))


def texts_of(stream: Path) -> list[str]:
    return [json.loads(line)["text"] for line in stream.read_text(encoding="utf-8").splitlines()]


def test_the_stream_is_of_sentences_that_nobody_learns_and_shifts_where_it_should(
    steps: dict[str, Any], tmp_path: Path
) -> None:
    steps["prepare"](tmp_path, None, "delivery", "negative")
    topic, polarity = (steps["read_table"](tmp_path / f"{task}.csv") for task in ("topic", "polarity"))
    assert [row["text"] for row in topic] == [row["text"] for row in polarity]
    assert len({row["text"] for row in topic}) == len(topic) == 2_000
    stream = texts_of(tmp_path / "stream.jsonl")
    assert not {*stream} & {row["text"] for row in topic}
    known = {row["text"]: row for row in steps["sentences"](4_000)}
    before, after = (
        Counter((known[text]["topic"], known[text]["polarity"]) for text in part)
        for part in (stream[: steps["BEFORE"]], stream[steps["BEFORE"] :])
    )
    assert before["delivery", "negative"] / before.total() < 0.1
    assert 0.3 < after["delivery", "negative"] / after.total() < 0.45
    again = tmp_path / "again"
    steps["prepare"](again, None, "delivery", "negative")
    assert texts_of(again / "stream.jsonl") == stream


def test_a_table_of_ones_own_is_taken_and_a_wrong_one_refused(steps: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    rows = [(f"text {n}", "food" if n % 2 else "rooms", "good" if n % 3 else "bad") for n in range(60)]
    steps["write_table"](table, ["text", "topic", "polarity"], rows)
    steps["prepare"](tmp_path / "mine", table, "food", "bad")
    assert set(texts_of(tmp_path / "mine" / "stream.jsonl")) <= {text for text, _, _ in rows}
    with pytest.raises(SystemExit, match=r"No sentence is of food awful: .* are of food bad, food good"):
        steps["prepare"](tmp_path / "other", table, "food", "awful")
    steps["write_table"](table, ["text", "label"], [("a", "b")])
    with pytest.raises(SystemExit, match="takes a table with the columns text, topic, polarity"):
        steps["prepare"](tmp_path / "other", table, "food", "bad")


def test_the_rule_fires_when_a_watcher_has_its_alarm(
    steps: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    model = "http://127.0.0.1:8501/v1/models/multi-task"
    names = [f"{model} polarity", f"{model} topic"]
    series: list[dict[str, float]] = [{}, {}, *({n: 0.0 for n in names} for _ in range(3))]
    series += [{names[0]: 0.0, names[1]: 1.0}, {names[0]: 1.0, names[1]: 1.0}]
    (tmp_path / "alarms.json").write_text(json.dumps(series))
    steps["rule"](tmp_path, RULES)
    said = capsys.readouterr().out
    (test,) = steps["rule_test"](RULES, series)["tests"]
    assert [case["eval_time"] for case in test["alert_rule_test"]] == ["4m", "5m", "6m"]
    assert [len(case["exp_alerts"]) for case in test["alert_rule_test"]] == [0, 1, 2]
    assert "WatchSharesMoved fires in minute 5m, 6m" in said or "not tested, there is no promtool" in said
    with pytest.raises(ValueError, match="There was no alarm"):
        steps["rule_test"](RULES, series[:5])
    monkeypatch.setenv("PATH", str(tmp_path))
    steps["rule"](tmp_path, RULES)
    assert "not tested, there is no promtool" in capsys.readouterr().out


@pytest.mark.slow
def test_the_monitor_says_that_the_opinion_has_moved(tmp_path: Path) -> None:
    command = [sys.executable, str(MONITOR / "run.py"), "--folder", str(tmp_path / "opinions")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    alarms = re.findall(r"^(\w+): ALARM at text ([\d,]+): shares, (.*), since", done.stdout, re.MULTILINE)
    first = {task: (int(text.replace(",", "")), said) for task, text, said in reversed(alarms)}
    assert set(first) == {"topic", "polarity"}
    assert all(1_200 < text < 1_600 for text, _ in first.values())
    assert "delivery up" in first["topic"][1] and "negative up" in first["polarity"][1]
    assert "promtool" in done.stdout
    verbs = [shlex.split(line)[2] for line in done.stdout.splitlines() if line.startswith("$ karpa-tf ")]
    assert {"train", "export", "serve", "watch"} == set(verbs) <= set(_VERBS)
    page = (tmp_path / "opinions" / "polarity.html").read_text(encoding="utf-8")
    assert "negative" in page and "<svg" in page
