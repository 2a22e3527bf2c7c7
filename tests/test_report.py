"""`karpa-tf report`: one file, with all that there is to know of a run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest


class Page(HTMLParser):
    """What a page asks for, and its titles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.asked: list[str] = []
        self.words: list[str] = []
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self._in_title = tag == "h2"
        if tag in ("script", "link", "iframe"):
            self.asked.append(tag)
        self.asked += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:image/")]

    def handle_endtag(self, tag) -> None:
        self._in_title = False

    def handle_data(self, data) -> None:
        self.words.append(data)
        if self._in_title:
            self.titles.append(data)


def test_a_report_holds_all_and_asks_for_nothing(digits, karpa, tmp_path) -> None:
    path = tmp_path / "digits.html"
    done = karpa("report", digits, "--html", path, "--explain", 1, "--json")
    assert done.status == 0, done.err
    assert done.json["report"] == str(path) and done.json["bytes"] == path.stat().st_size
    page = Page(path.read_text(encoding="utf-8"))
    assert page.asked == []
    assert page.titles[:5] == ["Figures", "Data", "Settings", "Curves", "Held-out rows"]
    assert {"Explanations", "Pictures", "Where it was made"} <= set(page.titles)
    words = "\n".join(page.words)
    metrics = json.loads((digits / "metrics.json").read_text())
    assert f"{metrics['accuracy']:.4g}" in words and "most frequent" in words and "robust_accuracy" in words
    assert "95 % interval" in words and "karpa-tf " in words
    assert "learning_rate" in words and "s of processor time; " in words and "(not measured)" in words
    assert path.read_text().count("<polyline") == 4, "accuracy and loss, of training and validation"


def test_the_report_of_a_table_shows_the_table(frozen, karpa) -> None:
    run = frozen / "q-learning" / "1"
    assert karpa("report", run).status == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "Values of states" in page.titles and "optimal" in "".join(page.words)
    assert re.search(r"an episode of return \d", "".join(page.words)), "its film"


def test_the_report_of_texts_shows_and_explains_the_worst(classified, karpa, tmp_path) -> None:
    path = tmp_path / "texts.html"
    assert karpa("report", classified, "--html", path, "--explain", 1).status == 0
    words = "\n".join(Page(path.read_text(encoding="utf-8")).words)
    assert ("tf-idf + svm" in words and "probability of the truth" in words) or "Worst answers" not in words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--groups", "city"], "--groups does not go with this run: its rows have no further columns."),
        (["--html", "/proc/none/report.html"], "/proc/none/report.html cannot be written"),
    ],
)
def test_what_is_wrong_is_a_sentence(digits, karpa, words, sentence) -> None:
    done = karpa("report", digits, "--explain", 0, *words)
    assert done.status == 2 and sentence in done.err


def test_a_run_that_has_not_ended_has_no_report(karpa, tmp_path) -> None:
    run = tmp_path / "mnist-mlp" / "1"
    (run / "assets").mkdir(parents=True)
    (run / "config.yaml").write_text("format: 1\n")
    done = karpa("report", run)
    assert done.status == 2 and "has not ended: go on with" in done.err


@pytest.mark.slow
def test_a_report_fits_a_phone(digits, karpa, tmp_path, browser) -> None:
    path = Path(tmp_path / "report.html")
    assert karpa("report", digits, "--html", path, "--explain", 1).status == 0
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("img").count() >= 2
    page.close()
