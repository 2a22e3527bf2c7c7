"""What stands in the documents, for the tests that run it, and the packages that the reference is of."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", EXAMPLES, *sorted(DOCS.rglob("*.md"))]

# The packages whose names are imported when they are asked for; and all that a script should use.
LAZY = ["data", "export", "meta", "models", "reports", "serving", "training", "watching"]
PACKAGES = [*LAZY, "errors", "privacy", "recipe", "settings"]


def python_blocks(page: Path) -> list[str]:
    """The blocks of Python in a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def files(page: Path) -> dict[str, str]:
    """The files that a page holds: blocks of Python that say below which path they are to be."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```", text, re.DOTALL))


def printed(script: str) -> list[str]:
    """What a script prints, as its comments say: `# -> ` and a line."""
    return re.findall(r"^ *# -> (.*)$", script, re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its titles, as GitHub writes them."""
    found: set[str] = set()
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for title in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found)
        found.add(f"{anchor}-{same}" if same else anchor)
    return found


def dead_links(page: Path) -> list[str]:
    """The links of a page into this repository that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```|^    .*$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    return dead
