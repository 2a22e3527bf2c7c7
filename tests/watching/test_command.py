"""`karpa-tf watch` on a run, its export and a server: the same figures; what is wrong, in a sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from karpa_tf.judging.reference import read_reference
from karpa_tf.serving.in_process import free_port
from tests.conftest import make_intents
from tests.serving.conftest import Running

OPTIONS = ["--follow", "false", "--window", 40, "--baseline", 30, "--every", 20, "--false_alarms", 100]


@pytest.fixture(scope="module")
def exported(classified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("watched")
    assert main(["export", str(classified), "--to", str(folder)]) == 0
    return folder / "bert-classifier" / "1"


def events(result: Any) -> list[dict[str, Any]]:
    assert result.status == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_run_its_export_and_a_server_say_the_same(
    karpa, classified: Path, exported: Path, tmp_path: Path
) -> None:
    reference = read_reference(exported / "assets.extra" / "reference.json")
    assert list(reference.labels) == ["music", "timer", "weather"] and reference.score == "uncertainty"
    assert reference.counts.sum() == 30  # the validation rows
    assert (classified / "assets" / "reference.json").is_file()
    lines = [text for text, _ in make_intents(60, seed=4)]
    source, log = tmp_path / "texts.txt", tmp_path / "requests.jsonl"
    source.write_text("".join(f"{line}\n" for line in lines))
    of_run = events(karpa("watch", classified, source, *OPTIONS, "--json"))
    assert [event["event"] for event in of_run if event["event"] != "alarm"][:2] == ["report", "baseline"]
    assert of_run[-1]["text"] == 60 and set(of_run[-1]["levels"]) == {"shares", "input"}
    assert sum(row["share"] for row in of_run[-1]["shares"].values()) == pytest.approx(1, abs=1e-3)
    board = ["--tensorboard", tmp_path / "board"]
    assert events(karpa("watch", exported, source, *OPTIONS, *board, "--json")) == of_run
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))
    with Running(exported.parents[1], request_log=str(log)) as server:
        url, from_export = f"{server.rest}/v1/models/bert-classifier", ["--reference", exported]
        assert events(karpa("watch", url, source, *OPTIONS, *from_export, "--json")) == of_run
        # The log of what others asked is watched as well, and what the watcher asks does not come into it.
        for begin in range(0, 60, 20):
            body = {"instances": [{"text": line} for line in lines[begin : begin + 20]]}
            assert server.post("/v1/models/bert-classifier:predict", body).status == 200
        for _ in range(2):
            of_log = events(karpa("watch", url, log, *OPTIONS, *from_export, "--json"))
            assert [event["text"] for event in of_log if event["event"] == "baseline"] == [30]
            assert of_log[-1]["text"] == 60
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing/latest"], "There is no run"),
        (["ftp://a/v1/models/m"], "watch takes http://HOST:PORT/v1/models/NAME"),
        (["grpc://127.0.0.1:1/m"], "watch asks a server over REST"),
        (["http://127.0.0.1:{port}/v1/models/m"], "Nobody answers at 127.0.0.1"),
        (["{exported}", "{exported}/nothing"], "cannot be read: No such file"),
        (["{exported}", "--reference", "{exported}/assets"], "--reference takes a reference.json"),
        (["{run}", "--signature", "other"], "--signature is of a SavedModel or a server, and"),
        (["{exported}", "--baseline", "5"], "--baseline must be at least 20"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    karpa, classified: Path, exported: Path, words: list[str], says: str
) -> None:
    places = {"port": free_port(), "run": classified, "exported": exported}
    result = karpa("watch", *(word.format(**places) for word in words))
    assert result.status == 2 and says in result.err and result.err.count("\n") == 1, result.err


def test_a_server_is_watched_without_tensorflow() -> None:
    code = (
        "import sys; from karpa_tf.watching import watch, models, ShareAlarm; import karpa_tf.cli; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_of_other_outputs_is_refused(karpa, tagged: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    result = karpa("watch", tagged, tmp_path / "a.txt")
    assert result.status == 2 and re.search("watch takes a classifier, .* gives tokens, tags", result.err)


@pytest.mark.slow
def test_the_page_fits_a_desk_and_a_phone(browser, tmp_path: Path) -> None:
    from karpa_tf.watching.options import WatchOptions
    from karpa_tf.watching.page import page
    from karpa_tf.watching.watch import run
    from tests.conftest import SCREENSHOTS
    from tests.watching.helpers import SMALL, model, reference, texts

    source = tmp_path / "texts.txt"
    lines = [*texts(150, 0.5), *texts(150, 0.95, seed=1), *texts(80, 0.95, seed=2, longer=25)]
    source.write_text("".join(f"{line}\n" for line in lines))
    given = WatchOptions(**{**SMALL, "follow": False})  # type: ignore[arg-type]
    watcher = run(model(), "words", str(source), given, lambda event: None, reference=reference())
    shown: dict[str, Any] = {
        "report": watcher.report(),
        "reports": watcher.reports,
        "last": watcher.last,
        "texts": 380,
    }
    shown |= {"skipped": {"broken JSON": 2}, "dropped": 0, "baseline": ""}
    (tmp_path / "page.html").write_text(page("words", shown, "n"))
    complaints: list[str] = []
    for name, width in (("desk", 1100), ("phone", 390)):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto((tmp_path / "page.html").as_uri())
        assert tab.locator("svg").count() == 2 and tab.locator(".on").count() == 2
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=SCREENSHOTS / f"watch-{name}.png", full_page=True)
        tab.close()
    assert complaints == []
