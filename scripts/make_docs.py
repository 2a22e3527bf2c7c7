"""Makes the site of the documents: the pages as HTML, and the reference of the API from the docstrings.

    python scripts/make_docs.py build/docs

README.md and docs/*.md keep their places, and so does whatever of this repository they link to; README.md is
index.html. The reference is in api/.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import markdown2
import pdoc

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "data",
    "errors",
    "export",
    "meta",
    "models",
    "privacy",
    "recipe",
    "reports",
    "serving",
    "settings",
    "training",
    "watching",
]
MODULES = [f"karpa_tf.{name}" for name in NAMES]
EXTRAS = ["code-friendly", "cuddled-lists", "fenced-code-blocks", "header-ids", "tables"]
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; margin: 0; display: flex; color: #222; background: #fff }}
nav {{ padding: 1rem; min-width: 11rem; line-height: 1.8 }} nav a {{ display: block }}
main {{ padding: 1rem 2rem; max-width: 52rem; min-width: 0 }} a {{ color: #05c }}
pre {{ background: #f4f4f4; padding: .7rem; overflow-x: auto }} code {{ font-size: .9em }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ border: 1px solid #ccc; padding: .3rem .6rem }}
img {{ max-width: 100% }}
</style></head><body><nav>{nav}</nav><main>
{body}
</main></body></html>
"""


def main(target: Path) -> None:
    """Writes the site into a folder, which it empties first."""
    shutil.rmtree(target, ignore_errors=True)
    pdoc.render.configure(docformat="google", show_source=False, include_undocumented=False)
    # pdoc looks for public names in the module itself, which gets them when they are asked for.
    for module in map(import_module, MODULES):
        for name in module.__all__:
            setattr(module, name, getattr(module, name))
    # Where they come from is not listed once more.
    pdoc.pdoc(*MODULES, *(f"!{module}." for module in MODULES), output_directory=target / "api")
    for page in (target / "api").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        ids = set(re.findall(r'id="([^"]+)"', text))
        for link, anchor, words in set(re.findall(r'(<a href="#([^"]+)">(.*?)</a>)', text)):
            if anchor not in ids:  # what a class has from Keras, which has no entry here
                text = text.replace(link, words)
        page.write_text(text, encoding="utf-8")
    write_pages(target, [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def write_pages(target: Path, pages: list[Path]) -> None:
    """Writes pages, and whatever of the repository they link to."""
    menu, waiting, done = list(pages), list(pages), set[Path]()
    while waiting:
        page = waiting.pop()
        if page in done:
            continue
        done.add(page)
        place = target / place_of(page)
        place.parent.mkdir(parents=True, exist_ok=True)
        if page.is_file() and page.suffix != ".md":
            shutil.copy(page, place)
            continue
        body = markdown2.markdown(text_of(page), extras=EXTRAS)
        found = {link: file_of(page, link) for link in re.findall(r'(?:href|src)="([^"]+)"', body)}
        links = {link: to for link, to in found.items() if to}
        waiting += links.values()
        for link, to in links.items():
            anchor = link.partition("#")[2]
            new = relative(place, target / place_of(to)) + (f"#{anchor}" if anchor else "")
            body = body.replace(f'="{link}"', f'="{new}"')
        titles = {to: title_of(to) for to in menu}
        nav = [f'<a href="{relative(place, target / place_of(to))}">{titles[to]}</a>' for to in menu]
        nav.append(f'<a href="{relative(place, target / "api" / "index.html")}">API reference</a>')
        place.write_text(PAGE.format(title=title_of(page), nav="".join(nav), body=body), encoding="utf-8")


def place_of(file: Path) -> Path:
    """Returns where a file of the repository, or the list of a folder, is in the site."""
    path = file.relative_to(ROOT)
    if file.is_dir():
        return path / "index.html"
    if path == Path("README.md"):
        return Path("index.html")
    return path.with_suffix(".html") if path.suffix == ".md" else path


def file_of(page: Path, link: str) -> Path | None:
    """Returns the file of the repository that a link leads to: a folder's README.md, or a folder without."""
    path = html.unescape(link).partition("#")[0]
    if not path or re.match(r"[a-z]+:", path):
        return None
    file = ((page if page.is_dir() else page.parent) / path).resolve()
    file = file / "README.md" if (file / "README.md").is_file() else file
    return file if file.exists() and file.is_relative_to(ROOT) else None


def relative(page: Path, to: Path) -> str:
    return Path(os.path.relpath(to, page.parent)).as_posix()


def text_of(page: Path) -> str:
    """Returns the Markdown of a page; of a folder the list of its pages."""
    if page.is_file():
        return page.read_text(encoding="utf-8")
    pages = [f"- [{title_of(file)}]({file.name})" for file in sorted(page.glob("*.md"))]
    return "\n".join([f"# {page.name}", "", *pages])


def title_of(page: Path) -> str:
    first = next((line for line in text_of(page).splitlines() if line.startswith("# ")), page.stem)
    return html.escape(first.removeprefix("# ").replace("`", "").partition(":")[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
