"""What the documents show runs as it stands."""

from __future__ import annotations

import re
import runpy
import shlex
import signal
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from karpa_tf.child_runs import REMOVED
from karpa_tf.cli import _VERBS, _options_by_recipe, _verb_parser
from karpa_tf.compare import CompareOptions
from karpa_tf.recipe import all_recipes
from karpa_tf.report import ReportOptions
from karpa_tf.search.options import SearchOptions
from karpa_tf.serving.options import LoadOptions, RolloutOptions, ServeOptions
from karpa_tf.settings import types_of
from karpa_tf.watching.options import WatchOptions
from tests.documents import DOCS, PACKAGES, PAGES, ROOT, dead_links, files, printed, python_blocks
from tests.serving.command import Command


def test_the_page_of_benchmarks_is_what_its_script_makes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "benchmarks_page.py"))
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == script["page"]()


def flags_of(words: list[str]) -> set[str]:
    """The flags that a command takes, as far as its words say which recipe it is."""
    verb, recipes = words[0], all_recipes()
    common = {"--help", "--logs", "--json"}
    if verb == "train":
        recipe = recipes.get(words[1])
        each = [recipe] if recipe else recipes.values()
        fields = {f"--{name}" for one in each for name in types_of(one.about.settings)}
        return common | fields | {"--config", "--resume", "--seeds"}
    if verb == "prune":
        return flags_of(["train", "any"]) | set(REMOVED)
    if verb == "ensemble":
        return common | {"--weights"}
    if verb == "interpolate":
        return {*common, "--lambda", "--data2", "--decide", "--soup"}
    if verb == "distill":
        return flags_of(["train", "any"]) | {"--into"}
    if verb == "serve":
        return common | {f"--{name}" for name in types_of(ServeOptions)}
    if verb == "rollout":
        return common | {f"--{name}" for name in types_of(RolloutOptions)}
    if verb == "search":
        return flags_of(["train", words[1]]) | {f"--{name}" for name in types_of(SearchOptions)}
    if verb == "compare":
        return common | {f"--{name}" for name in types_of(CompareOptions)}
    if verb == "report":
        return common | {f"--{name}" for name in types_of(ReportOptions)}
    if verb == "runs":
        return common | {"--sort", "--where", "--yes"}
    if verb == "watch":
        return common | {f"--{name}" for name in types_of(WatchOptions)}
    if verb == "load-test":
        return common | {"--input"} | {f"--{name}" for name in types_of(LoadOptions)}
    if verb in ("evaluate", "predict", "explain", "play", "export"):
        return common | set(_options_by_recipe(verb)) | set(_verb_parser(verb).flags)
    return common | {"--like", "--host", "--port"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_flags_that_they_show(page: Path) -> None:
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for command in re.findall(r"karpa-tf ([a-z-]+(?: [^`\n#|&;]*)?)", text):
        words = command.split()
        if words[0] in _VERBS and words[1:]:
            flags = {word.split("=")[0].rstrip(".,:)") for word in words if re.match(r"--\w", word)}
            assert flags <= flags_of(words), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_errors_are_quoted_as_they_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if "## What can go wrong" not in text:
        return
    code = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "karpa_tf").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", re.sub(r"\{[^{}]*\}", "{}", code))
    table = text.partition("## What can go wrong")[2].partition("\n## ")[0]
    for quoted in re.findall(r"^\| `([^`]*\.\.\.[^`]*)`", table, re.MULTILINE):
        for part in re.split(r"\.\.\.|\b[NM]\b", quoted):
            assert part.strip() in code, quoted


@pytest.fixture
def houses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of docs/recipes.md in a working directory, and a table for it."""
    found = files(DOCS / "recipes.md")
    assert set(found) == {"houses/__init__.py", "houses/recipe.py"}
    (tmp_path / "houses").mkdir()
    for name, code in found.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    random = np.random.default_rng(0)
    size, age, rooms = random.uniform(40, 200, 300), random.uniform(0, 50, 300), random.integers(1, 7, 300)
    price = 3000 * size - 1000 * age + 10_000 * rooms + random.normal(0, 5000, 300)
    table = np.stack([size, age, rooms, price], axis=1)
    np.savetxt(tmp_path / "houses.csv", table, delimiter=",", header="size,age,rooms,price", comments="")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_from_nothing_runs_to_a_served_model(houses: Path, karpa) -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    block = text[text.index("every command works") :]
    commands = [shlex.split(line)[1:] for line in re.findall(r"^    (karpa-tf .*)$", block, re.MULTILINE)]
    assert [words[0] for words in commands] == ["train", "train", "evaluate", "predict", "export", "serve"]
    for words in commands[:-1]:
        result = karpa(*words, "--json")
        assert result.status == 0, result.err
        if words[0] == "evaluate":
            report = result.json
            assert report["metrics"]["rmse"] < report["baselines"]["mean"]["rmse"] / 4
        if words[0] == "predict":
            price = result.json["predictions"][0]["price"]
    assert any((houses / "logs" / "houses" / "1" / "train").glob("events.out.tfevents.*"))
    command = Command(*commands[-1][1:], "savedmodels", "--json")
    command.ready()
    assert command.predict([120, 3, 5], "houses") == pytest.approx([price], rel=1e-5)
    assert command.end(signal.SIGTERM)[0] == 0
    with (houses / "houses.csv").open("a") as file:
        file.write("1,2,3,4\n")
    result = karpa("train", "./houses", "--resume", "houses/latest", "--epochs", 50)
    assert result.status == 2 and "is not the data that" in result.err
    (houses / "houses.csv").write_text("size,price\nlarge,1\n")
    result = karpa("train", "./houses")
    assert result.status == 2 and "houses.csv is no table of numbers" in result.err
    (houses / "houses.csv").write_text("size,price\n" + "1,2\n" * 3)
    result = karpa("train", "./houses")
    assert result.status == 2 and "must have 20 rows at least" in result.err
    result = karpa("train", "./houses", "--units", 0)
    assert result.status == 2 and "--units must be at least 1. Received: 0." in result.err


def test_the_step_of_ones_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (script,) = python_blocks(DOCS / "training.md")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    runpy.run_path(str(tmp_path / "script.py"))
    assert "critic_loss" in capsys.readouterr().out
    assert list((tmp_path / "my_gan" / "checkpoints").glob("step-*.npz"))


def test_the_page_on_python_is_a_script_that_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    script = "\n".join(python_blocks(DOCS / "python.md"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    runpy.run_path(str(tmp_path / "script.py"))
    assert capsys.readouterr().out.splitlines() == printed(script)
    assert list((tmp_path / "my_run" / "train").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_documents_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One title\n\n## Two `words`, here\n\n## One title\n")
    page = tmp_path / "page.md"
    live = "[a](other.md) [b](other.md#two-words-here) [c](other.md#one-title-1) [d](#here) [e](https://example.org)"
    page.write_text(f"# Here\n\n{live}\n\n    [code](of.md)\n")
    assert dead_links(page) == []
    page.write_text("# Here\n\n[a](gone.md) [b](other.md#three) [c](#there)\n")
    assert dead_links(page) == ["gone.md", "other.md#three", "#there"]


@pytest.mark.slow
def test_the_site_has_every_page_and_public_name_and_no_dead_link(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    done = subprocess.run(
        [sys.executable, "scripts/make_docs.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr, done.stderr
    pages = {file: Page(file) for file in tmp_path.rglob("*.html")}
    assert {tmp_path / "index.html", tmp_path / "docs" / "python.html"} <= set(pages)
    for name in PACKAGES:
        api = pages[tmp_path / "api" / "karpa_tf" / f"{name}.html"]
        assert set(import_module(f"karpa_tf.{name}").__all__) <= api.ids, name
    dead = [
        f"{file.relative_to(tmp_path)}: {link}"
        for file, page in pages.items()
        for link in page.links
        if not re.match("[a-z]+:", link) and not leads_somewhere(file, link, pages)
    ]
    assert dead == []


class Page(HTMLParser):
    """What a page of HTML links to, and what can be linked to in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def leads_somewhere(file: Path, link: str, pages: dict[Path, Page]) -> bool:
    path, _, anchor = link.partition("#")
    target = (file.parent / path).resolve() if path else file
    return target.is_file() and (not anchor or target not in pages or anchor in pages[target].ids)
