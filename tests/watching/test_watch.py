"""`karpa-tf watch`: what it reads, keeps, says and survives."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from karpa_tf.errors import UserError
from karpa_tf.judging.reference import Reference
from karpa_tf.serving.in_process import free_port
from karpa_tf.watching import watch
from karpa_tf.watching.lines import File, Skipped, StandardInput, rows_of
from karpa_tf.watching.models import Local
from karpa_tf.watching.options import WatchOptions
from karpa_tf.watching.outputs import Webhook
from karpa_tf.watching.page import page
from karpa_tf.watching.watcher import OTHER, Watcher
from tests.watching.helpers import SMALL, model, reference, texts

ROOT = Path(__file__).parents[2]


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(source: Path, of: Reference | None = None, **options: Any) -> tuple[list[dict[str, Any]], Watcher]:
    events: list[Any] = []
    given = WatchOptions(**{**SMALL, "follow": False, **options})
    watcher = watch.run(model(), "words", str(source), given, events.append, reference=of)
    return events, watcher


@pytest.fixture(scope="module")
def known() -> Reference:
    return reference()


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.txt", [*texts(150, 0.5), *texts(150, 0.95, seed=1)])


# --- What is said ---------------------------------------------------------------------------------


def test_a_change_of_opinion_raises_an_alarm_that_names_texts(shifted: Path, known: Reference) -> None:
    events, watcher = run(shifted, known)
    assert [event["event"] for event in events].count("report") == 300 // SMALL["every"]
    (alarm,) = (event for event in events if event["event"] == "alarm")
    assert (alarm["kind"], alarm["direction"]) == ("shares", "bad down")
    assert 130 <= alarm["began"] <= 170 and 150 < alarm["text"] < 230
    assert len(alarm["samples"]) == 3 and all("good" in row["text"] for row in alarm["samples"])
    last = watcher.report()
    assert last["on"] == {"shares": ["bad down"], "input": []}
    good = last["shares"]["good"]
    assert good["low"] <= good["share"] <= good["high"]
    # Nine in ten were labelled rightly: of what is predicted so often, all is good.
    assert good["share"] >= good["predicted"] > 0.85 and 0.35 < good["normal"] < 0.65
    lines = watch.format_event(alarm)
    assert lines[0].startswith("ALARM at text ") and "  good: good x" in lines[-1]


def test_other_input_raises_another_alarm(tmp_path: Path, known: Reference) -> None:
    source = write(tmp_path / "texts.txt", [*texts(100, 0.5), *texts(100, 0.5, seed=1, longer=20)])
    events, _ = run(source, known)
    alarm, *more = (event for event in events if event["event"] == "alarm")
    assert {one["kind"] for one in (alarm, *more)} == {"input"}
    assert {one["direction"] for one in (alarm, *more)} == {"less sure", "some less sure"}
    assert all(len(row["text"]) > 34 for row in alarm["samples"])


def test_an_alarm_is_over_when_the_shares_are_back(tmp_path: Path, known: Reference) -> None:
    parts = [texts(120, 0.5), texts(100, 1.0, seed=1), texts(160, 0.5, seed=2)]
    events, watcher = run(write(tmp_path / "a.txt", [line for part in parts for line in part]), known)
    assert [e["event"] for e in events if e["event"] in ("alarm", "over")][:2] == ["alarm", "over"]
    assert watcher.alarms["shares"] >= 1


def test_without_a_reference_shares_are_not_corrected_and_that_is_said(shifted: Path, capsys) -> None:
    events, watcher = run(shifted)
    assert "words has no reference.json of held-out rows" in capsys.readouterr().err
    report = watcher.report()
    assert set(report["levels"]) == {"shares"}
    assert all(row["share"] == row["predicted"] for row in report["shares"].values())
    assert [event["kind"] for event in events if event["event"] == "alarm"] == ["shares"]


def test_labels_that_nobody_named_are_those_of_the_baseline() -> None:
    watcher = Watcher(WatchOptions(**{**SMALL, "baseline": 20}))
    for number in range(20):
        watcher.add("text", "ab"[number % 2], 0.1)
    assert watcher.labels == ["a", "b", OTHER]
    found = [event for _ in range(9) for event in watcher.add("new", "c", 0.1)]
    assert watcher.report()["shares"][OTHER]["predicted"] == pytest.approx(9 / 29, abs=1e-4)
    assert [event["direction"] for event in found if event["event"] == "alarm"] == [f"{OTHER} up"]


def test_samples_are_redacted(tmp_path: Path) -> None:
    lines = [*texts(80, 0.3), *(f"good, write to ada{number}@example.com" for number in range(40))]
    state = tmp_path / "state.json"
    events, _ = run(write(tmp_path / "texts.txt", lines), state=str(state))
    (alarm,) = (event for event in events if event["event"] == "alarm")
    assert {row["text"] for row in alarm["samples"]} == {"good, write to [EMAIL]"}
    assert "@example.com" not in state.read_text()


# --- What is read ---------------------------------------------------------------------------------

REQUEST = {"time": "2026-01-01", "model": "words", "version": 1, "signature": "serving_default"}


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("plain text\r", [{"text": "plain text"}]),
        ('{"text": "of an object", "id": 7}', [{"text": "of an object"}]),
        (json.dumps({**REQUEST, "inputs": {"text": ["one", "two"]}}), [{"text": "one"}, {"text": "two"}]),
        ('{"text": "broken', "broken JSON"),
        ('{"other": "x"}', "without the inputs"),
        ('{"text": 7}', "no text"),
        ('{"text": " "}', "no text"),
        ("  ", "blank"),
        (json.dumps({**REQUEST, "model": "digits", "inputs": {"image": {}}}), "another model's"),
        (json.dumps({**REQUEST, "inputs": {"text": [{"bytes": 3}]}}), "no text"),
        (json.dumps({**REQUEST, "inputs": {"image": {"shape": [1]}}}), "without the inputs"),
        ("[" * 100_000, [{"text": "[" * 100_000}]),
        ('{"a":' * 100_000, "broken JSON"),
    ],
)
def test_rows_of_a_line(line: str, rows: list[dict[str, str]] | str) -> None:
    if isinstance(rows, list):
        assert rows_of(line.encode(), {"text": True}, "words") == rows
    else:
        with pytest.raises(Skipped, match=rows):
            rows_of(line.encode(), {"text": True}, "words")


def test_two_inputs_need_an_object() -> None:
    both = {"text": True, "text_b": True}
    assert rows_of(b'{"text_b": "b", "text": "a"}', both) == [{"text": "a", "text_b": "b"}]
    with pytest.raises(Skipped, match="no JSON object"):
        rows_of(b"a", both)
    for line, reason in ((None, "too long"), (b"\xff", "not UTF-8")):
        with pytest.raises(Skipped, match=reason):
            rows_of(line, {"text": True})


def test_broken_lines_are_counted_skipped_and_said_once(tmp_path: Path, capsys) -> None:
    lines = ['{"text": "good"}', '{"text": ', "", '{"text": "bad"}', '{"text": ', "good"]
    _, watcher = run(write(tmp_path / "a.jsonl", lines))
    assert watcher.texts == 3 and dict(watcher.skipped) == {"broken JSON": 2, "blank": 1}
    assert capsys.readouterr().err.count("The first reason of its kind: broken JSON.") == 1


def test_a_row_that_the_model_refuses_is_counted(tmp_path: Path) -> None:
    def picky(rows: Sequence[Any]) -> list[dict[str, Any]]:
        if any("refuse" in row["text"] for row in rows):
            raise UserError("no")
        return [{"label": "a", "probabilities": [1.0]} for _ in rows]

    source = write(tmp_path / "a.txt", ["one", "refuse this", "two"])
    given = WatchOptions(**{**SMALL, "follow": False})
    watcher = watch.run(Local({"text": True}, ["a"], picky), "m", str(source), given, lambda event: None)
    assert (watcher.texts, dict(watcher.skipped)) == (2, {"refused by the model": 1})


def test_a_model_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    tagger = Local({"text": True}, [], lambda rows: [{"tokens": ["a"], "tags": ["O"]} for _ in rows])
    with pytest.raises(
        UserError, match=r"watch takes a classifier, .* and m gives tokens, tags; name another"
    ):
        watch.run(tagger, "m", str(tmp_path), WatchOptions(), print)


def test_a_pipe_is_read_as_it_comes() -> None:
    read, write_end = os.pipe()
    lines = StandardInput(read)
    os.write(write_end, b"one\ntw")
    assert [line.text for line in lines.read()] == [b"one"]
    os.write(write_end, b"o\nlast")
    assert [line.text for line in lines.read()] == [b"two"]
    os.close(write_end)
    assert [line.text for line in lines.read()] == [b"last"] and lines.read() == []
    os.close(read)


def everything(lines: File) -> list[bytes | None]:
    found = []
    while some := lines.read():
        found += [line.text for line in some]
    return found


def test_a_rotated_log_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    log = write(tmp_path / "log", ["1", "2"])
    lines = File(log, follow=False)
    (*_, last) = lines.read()
    with log.open("a") as file:
        file.write("3\n")
    log.rename(tmp_path / "log.1")
    write(log, ["4"])
    assert everything(lines) == [b"3", b"4"]
    assert lines.notes == [f"{log} was rotated; {log} is read."]
    # The same for one that was not running meanwhile, and missed two rotations.
    (tmp_path / "log.1").rename(tmp_path / "log.2")
    log.rename(tmp_path / "log.1")
    write(log, ["5", "6"])
    for number, name in enumerate(("log.2", "log.1", "log")):
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    assert everything(File(log, follow=False, place=last.place)) == [b"3", b"4", b"5", b"6"]


def test_a_truncated_log_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = write(tmp_path / "log", ["first line", "second"])
    lines = File(log, follow=False)
    (*_, last) = lines.read()
    write(log, ["new"])
    assert everything(lines) == [b"new"] and "was truncated" in lines.notes[0]
    write(log, ["other text", "of more bytes"])
    again = File(log, follow=False, place=last.place)
    assert everything(again) == [b"other text", b"of more bytes"]
    assert "is not what was read before" in again.notes[0]


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path) -> None:
    log = write(tmp_path / "log", ["a", "x" * (3 << 20), "b"])
    assert everything(File(log, follow=False)) == [b"a", None, b"b"]
    with pytest.raises(UserError, match="cannot be read: No such file"):
        File(tmp_path / "nothing")


def test_a_followed_file_is_waited_for(tmp_path: Path) -> None:
    log = write(tmp_path / "log", ["1"])
    lines = File(log)
    assert [line.text for line in lines.read()] == [b"1"]
    with log.open("a") as file:
        file.write("2")  # not yet a line
        file.flush()
        timer = threading.Timer(0.05, lambda: (file.write("3\n"), file.flush()))
        timer.start()
        assert [line.text for line in lines.read()] == [b"23"]
        timer.join()


# --- What survives --------------------------------------------------------------------------------


def kept(state: Path) -> Any:
    return json.loads(state.read_text())


def test_a_watcher_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, shifted: Path, known: Reference
) -> None:
    unbroken, _ = run(shifted, known, state=str(tmp_path / "unbroken.json"))
    command = [sys.executable, "-m", "tests.watching.helpers", str(shifted), str(tmp_path / "state.json")]
    said: list[dict[str, Any]] = []
    for stop in (1, 6, 12, None):  # it is killed when it has said so much
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout
        for number, line in enumerate(process.stdout, 1):
            if line.endswith("\n"):
                said.append(json.loads(line))
            if number == stop:
                process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert process.returncode == 0
    assert kept(tmp_path / "state.json") == kept(tmp_path / "unbroken.json")
    # What was said last may be said again; nothing is missing, and nothing else is said.
    assert [event for event in unbroken if event not in said] == []
    assert [event for event in said if event not in unbroken] == []


def test_state_is_whole_at_every_line(tmp_path: Path, known: Reference) -> None:
    """A watcher that begins again after each line is where one that never stopped is."""
    lines = [*texts(70, 0.5), "{broken", *texts(50, 1.0, seed=3)]
    source, state = tmp_path / "a.txt", tmp_path / "state.json"
    source.touch()
    given = WatchOptions(
        **{**SMALL, "baseline": 40, "follow": False, "state": str(state), "false_alarms": 100}
    )
    for begin in range(0, len(lines), 10):
        with source.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines[begin : begin + 10]))
        watch.run(model(), "words", str(source), given, lambda event: None, reference=known)
    by_parts = kept(state)
    state.unlink()
    watch.run(model(), "words", str(source), given, lambda event: None, reference=known)
    assert by_parts == kept(state) and by_parts["watcher"]["texts"] == 120


def test_state_of_other_options_is_refused(tmp_path: Path, shifted: Path) -> None:
    state = tmp_path / "state.json"
    run(shifted, state=str(state))
    with pytest.raises(UserError, match=r"--state is of a watcher with another window: .* 61, and it had 60"):
        run(shifted, state=str(state), window=61)
    state.write_text("{}")
    with pytest.raises(UserError, match="is not what a watcher wrote"):
        run(shifted, state=str(state))


# --- Where it goes --------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Any]:
    """A server that takes JSON, and refuses as often as it is told to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked += 1
            if server.refuse >= server.asked:
                self.send_error(503)
                return
            server.taken.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    class Server(HTTPServer):
        asked, refuse = 0, 0
        taken: list[Any]

    server = Server(("127.0.0.1", 0), Handler)
    server.taken = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_alarms_are_posted(receiver: Any, shifted: Path, known: Reference) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    events, _ = run(shifted, known, webhook=url)
    alarms = [event for event in events if event["event"] == "alarm"]
    assert receiver.taken == [{"model": "words", **alarm} for alarm in alarms] and alarms


def test_a_webhook_that_refuses_is_asked_again_and_then_left(receiver: Any) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/"
    receiver.refuse = 2
    webhook = Webhook(url, pause=0.001)
    webhook.post({"n": 1})
    webhook.close()
    assert (receiver.taken, receiver.asked, webhook.sent, webhook.dropped) == ([{"n": 1}], 3, 1, 0)
    receiver.refuse = 100
    webhook = Webhook(url, pause=0.001)
    webhook.post({"n": 2})
    webhook.close()
    assert (receiver.asked, webhook.sent, webhook.dropped) == (8, 0, 1)


def test_a_webhook_that_does_not_answer_stops_nothing(shifted: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("karpa_tf.watching.outputs._PAUSE", 0.001)
    monkeypatch.setattr("karpa_tf.watching.outputs._LAST_WORDS", 0.05)
    monkeypatch.setattr(Webhook.close, "__defaults__", (0.05,))
    _, watcher = run(shifted, webhook=f"http://127.0.0.1:{free_port()}/")
    said = capsys.readouterr().err
    assert watcher.texts == 300 and "has not taken: 1." in said and "Texts: 300; alarms: 1." in said
    webhook = Webhook(f"http://127.0.0.1:{free_port()}/", pause=60)
    for number in range(150):  # it holds a hundred, and one is being tried
        webhook.post({"n": number})
    assert webhook.dropped >= 49
    webhook.close(0)
    assert webhook.dropped == 150
    with pytest.raises(UserError, match="--webhook takes http://HOST/PATH"):
        WatchOptions(webhook="ftp://a/b")


def test_metrics_and_page(tmp_path: Path, shifted: Path, known: Reference) -> None:
    port, seen = free_port(), {}

    def say(event: Any) -> None:
        # While it watches: what is shown is what was known before this batch.
        if event["text"] == 300 and event["event"] == "report":
            for path in ("/", "/metrics"):
                with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                    seen[path] = (answer.headers, answer.read().decode())

    file = tmp_path / "watch.prom"
    given = WatchOptions(**SMALL, follow=False, metrics_port=port, metrics_file=str(file))
    watch.run(model(), "words", str(shifted), given, say, reference=known)
    headers, html = seen["/"]
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "<script" not in html
    assert "alarm: bad down" in html and html.count("<svg") == 2 and "Last alarms" in html
    assert 'karpa_tf_watch_alarm{kind="shares",model="words"} 1.0' in seen["/metrics"][1]
    text = file.read_text()
    assert 'karpa_tf_watch_texts_total{model="words"} 300.0' in text
    assert 'karpa_tf_watch_share{label="good",model="words"}' in text
    # Every metric that the rules ask for is there.
    rules = yaml.safe_load((ROOT / "deploy" / "watch" / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"karpa_tf_watch_\w+", rule["expr"])}
    found = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | {"karpa_tf_watch_skipped_lines_total"}
    assert asked and asked <= found


def test_markup_in_texts_and_labels_stays_text() -> None:
    watcher = Watcher(WatchOptions(**{**SMALL, "baseline": 20}))
    for number in range(60):
        watcher.add("<b>text</b>", "<i>" if number > 30 else "a", 0.1)
    snapshot = {"report": watcher.report(), "reports": list(watcher.reports), "last": list(watcher.last)}
    snapshot |= {"texts": 60, "skipped": {"<u>": 1}, "dropped": 0, "baseline": ""}
    html = page("<model>", snapshot, "n")
    assert "&lt;b&gt;text" in html and not any(tag in html for tag in ("<b>", "<i>", "<u>", "<model>"))
    assert "No text yet" in page("m", {}, "n")


def test_promtool_accepts_the_rules() -> None:
    if not shutil.which("promtool"):
        pytest.skip("there is no promtool: Debian has it in prometheus")
    rules = str(ROOT / "deploy" / "watch" / "alerts.yml")
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
