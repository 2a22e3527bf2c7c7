"""The example of customer service: its steps, its chat page, and all of it."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import tensorflow as tf

from karpa_tf.cli import _VERBS
from tests.conftest import SCREENSHOTS
from tests.documents import ROOT
from tests.serving.conftest import TEXTS, Running

EXAMPLE = ROOT / "examples" / "customer-service"


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE / "steps.py"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that answer as the recipes do: what has "lamp" in it is known."""
    folder = tmp_path_factory.mktemp("models")
    classifier, retriever = tf.Module(), tf.Module()

    def classify(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "known": tf.strings.regex_full_match(text, ".*lamp.*"),
            "label": tf.fill(tf.shape(text), "light"),
        }

    def retrieve(text: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = tf.strings.join(["<b>Answer</b> to: ", text])[:, None]
        return {"entry": answers, "answer": answers, "score": tf.ones(tf.shape(answers))}

    for name, module, function in (
        ("bert-classifier", classifier, classify),
        ("retriever", retriever, retrieve),
    ):
        module.first = tf.function(function, input_signature=[TEXTS])
        signatures = {"serving_default": module.first}
        tf.saved_model.save(module, str(folder / name / "1"), signatures=signatures)
    return folder


@contextmanager
def chatting(server: str) -> Iterator[str]:
    """The program behind the page, in a process of its own; yields its address."""
    shared = runpy.run_path(str(ROOT / "examples" / "shared.py"))
    port = shared["free_port"]()
    with shared["running"]("python", EXAMPLE / "chat.py", server, "--port", port, ready="Chat"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Running]:
    with Running(models) as running:
        yield running


@pytest.fixture(scope="module")
def chat(server: Running) -> Iterator[str]:
    with chatting(server.rest) as address:
        yield address


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(Request(f"{url}/ask", body), timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_what_is_known_is_answered_and_the_rest_passed_on(chat: str) -> None:
    status, found = post(chat, json.dumps({"text": " my lamp "}).encode())
    assert status == 200 and found["known"] and found["label"] == "light"
    assert found["reply"] == found["entry"] == "<b>Answer</b> to: my lamp" and found["score"] == 1
    status, found = post(chat, json.dumps({"text": "the moon"}).encode())
    assert status == 200 and not found["known"] and "passed it on" in found["reply"]
    for wrong in (b"", b"[]", b'{"text": 1}', b'{"text": " "}', json.dumps({"text": "x" * 1001}).encode()):
        status, found = post(chat, wrong)
        assert status == 400 and 'Send {"text": "..."}' in found["error"]


def test_a_server_that_is_gone_is_a_sentence(models: Path) -> None:
    with Running(models) as gone:
        address = gone.rest
    with chatting(address) as chat:
        status, found = post(chat, b'{"text": "my lamp"}')
    assert status == 502 and "does not answer now" in found["error"]


def test_answers_are_counted_by_what_version_1_knows(
    steps: dict[str, Any], chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps["write_table"](tmp_path / "first" / "train.csv", ["text", "label"], [("a lamp", "light")])
    asked = [("lamp on", "light"), ("on", "light"), ("lamp of the moon", "moon"), ("moon", "moon")]
    steps["write_table"](tmp_path / "answers.csv", ["text", "label"], asked)
    steps["ANSWERS"]["light"] = "<b>Answer</b> to: lamp on"
    found = steps["ask"](chat, tmp_path, 0, 0)
    assert found == {
        (True, "right"): 1,
        (True, "person"): 1,
        (False, "wrong"): 1,
        (False, "person"): 1,
    }
    said = capsys.readouterr().out
    assert "2 questions of what came later: 0 answered right, 1 wrong, 1 passed on to a person" in said
    assert steps["ask"](chat, tmp_path, 3, 0) == {(False, "person"): 1}


def test_entries_have_the_answers_of_their_intents(steps: dict[str, Any], tmp_path: Path) -> None:
    read, write = steps["read_table"], steps["write_table"]
    rows = [(f"text {number}", f"label_{number % 22}") for number in range(3000)]
    write(tmp_path / "data" / "train.csv", ["text", "label"], rows)
    write(tmp_path / "data" / "test.csv", ["text", "label"], [("held", "label_1"), ("late", "label_0")])
    folder = tmp_path / "out"
    steps["prepare"](tmp_path / "data", folder)
    steps["entries"](folder)
    entries = read(folder / "entries.csv")
    assert len({row["entry"] for row in entries}) == len(entries) > 1000
    assert {row["answer"] for row in entries} >= {"Help page: label 1."}
    parts = [read(folder / "first" / f"{split}.csv") for split in ("train", "validation")]
    first = {row["text"] for part in parts for row in part}
    asked = read(folder / "answers.csv")
    assert not first & {row["text"] for row in asked} and len(asked) == 850
    new = [row["label"] in ("label_0", "label_19") for row in asked]
    assert not any(new[:250]) and sum(new) == 100
    assert [row["text"] for row in read(folder / "first" / "test.csv")] == ["held"]
    # What a person has labelled is behind the entries.
    write(folder / "labelled.csv", ["text", "label"], [("late", "label_0"), ("lamp", "HassTurnOn")])
    steps["more"](folder)
    more = read(folder / "entries_2.csv")
    assert more[:-2] == entries and [row["entry"] for row in more[-2:]] == ["asked-1", "asked-2"]
    assert [row["answer"] for row in more[-2:]] == ["Help page: label 0.", steps["ANSWERS"]["HassTurnOn"]]
    assert len(set(steps["ANSWERS"].values())) == len(steps["ANSWERS"])


@pytest.mark.slow
def test_the_chat_page_with_keys_alone_and_on_a_phone(browser, chat: str) -> None:
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 360, "height": 640}, base_url=chat)
    page.set_default_timeout(120_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto("/")
    log = page.get_by_role("log")
    page.keyboard.type("Where is my lamp?")  # the field has the focus
    page.keyboard.press("Enter")
    log.get_by_text("<b>Answer</b> to: Where is my lamp?").wait_for()
    assert log.locator("b").count() == 0  # text stays text
    assert page.get_by_label("Your question").evaluate("field => field === document.activeElement")
    page.keyboard.type("Where is the moon?")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button
    log.get_by_text("passed it on").wait_for()
    assert log.locator("p").count() == 4 and log.locator("p.person").count() == 1
    for number in range(9):
        page.keyboard.type(f"lamp {number} " + "x" * 60)
        page.keyboard.press("Enter")
        log.get_by_text(f"to: lamp {number} ").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.get_by_role("button", name="Send").is_visible()
    assert log.locator("p").last.evaluate("p => p.getBoundingClientRect().bottom <= innerHeight")
    assert all(url.startswith(chat) for url in requests) and complaints == []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "chat.png")
    page.close()


@pytest.mark.slow
def test_the_page_says_what_went_wrong_and_keeps_the_question(browser) -> None:
    with chatting("http://127.0.0.1:1") as chat:  # where no server is
        page = browser.new_page(base_url=chat)
        page.goto("/")
        page.get_by_label("Your question").fill("my lamp")
        page.get_by_role("button", name="Send").click()
        page.locator("p.error").get_by_text("does not answer now").wait_for()
        assert page.get_by_label("Your question").input_value() == "my lamp"
        page.close()


@pytest.mark.slow
def test_the_example_answers_in_the_end_what_it_did_not_know(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "run.py"), "--folder", str(tmp_path / "service")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    verbs = [shlex.split(line)[2] for line in done.stdout.splitlines() if line.startswith("$ karpa-tf ")]
    assert {"train", "export", "serve", "predict"} == set(verbs) <= set(_VERBS)
    counted = r"^(\d+) questions of .*: (\d+) answered right, (\d+) wrong, (\d+) passed on to a person$"
    found = [[int(x) for x in row] for row in re.findall(counted, done.stdout, re.MULTILINE)]
    (asked, right, *_), (late, none, _, passed), (again, still, *_), (rest, learned, *_) = found
    assert right > 0.8 * asked and none == 0 and passed > 0.5 * late
    assert still > 0.8 * again and learned > 0.7 * rest
