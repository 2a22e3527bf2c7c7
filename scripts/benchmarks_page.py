"""Runs benchmarks, keeps what they print, and makes docs/benchmarks.md of it.

    python scripts/benchmarks_page.py run overhead --rounds 8   runs benchmarks/overhead.py, keeps its figures
    python scripts/benchmarks_page.py run serving --stall       parts of one benchmark are kept apart
    python scripts/benchmarks_page.py                           writes the page again

What is kept lies in benchmarks/results/, a file a command: its JSON with machine, date and commit. Run it on
quiet cores, with nothing changed since the last commit.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

`scripts/benchmarks_page.py` makes this page of what the benchmarks printed (`benchmarks/results/`). A ratio
above 1 means that karpa_tf is better, or within its bound; the head of each script says what it compares.
Earlier figures, beside PyTorch, Hugging Face and Stable-Baselines3 too, are in the [notes](notes/) and on the
pages of the recipes.
"""


def main(words: list[str]) -> int:
    """Runs a benchmark, or none, and writes the page."""
    if words[:1] == ["run"] and words[1:]:
        record(words[1], words[2:])
    elif words:
        print(__doc__)
        return 2
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


def record(name: str, options: list[str]) -> None:
    """Runs a benchmark and keeps its last line, which is one JSON object."""
    script = f"benchmarks/{name}.py"
    running = subprocess.Popen(
        [sys.executable, ROOT / script, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    last = ""
    for line in running.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    if running.wait():
        raise SystemExit(f"{script} ended with status {running.returncode}; nothing is kept.")
    keep(json.loads(last), shlex.join(["python", script, *options]))


def keep(result: dict[str, Any], command: str) -> None:
    """Writes a benchmark's result with what it was measured on."""
    kept = (":!docs/benchmarks.md", ":!benchmarks/results")  # what this script itself writes
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *kept)
    result |= {
        "command": command,
        "commit": _git("rev-parse", "--short", "HEAD") + (" and changes" if changed else ""),
        "date": date.today().isoformat(),
        "machine": _machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", command.removeprefix("python benchmarks/").replace(".py", "")).strip("-")
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def page() -> str:
    """Returns the page that the kept results make."""
    text = HEAD
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    for result in kept:
        title = ast.get_docstring(ast.parse(_script(result["benchmark"]).read_text(encoding="utf-8"))) or ""
        text += (
            f"\n## {result['benchmark']}\n\n{title.splitlines()[0]}\n\n    {result['command']}\n\n"
            f"{result['machine']}; {result['date']}, commit {result['commit']}.\n"
        )
        if ratios := result.get("ratios"):
            text += "\n| ratio | |\n|---|---|\n"
            text += "".join(f"| `{key}` | {value:.3g} |\n" for key, value in ratios.items())
        rows = "".join(f"| `{key}` | {_figure(value)} |\n" for key, value in _flat(result["values"]))
        text += f"\n<details><summary>values</summary>\n\n| value | |\n|---|---|\n{rows}\n</details>\n"
    missing = sorted(
        {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {result["benchmark"] for result in kept}
    )
    if missing:
        text += f"\n## Not kept yet\n\n{', '.join(f'`{name}`' for name in missing)}.\n"
    return text


def _script(name: str) -> Path:
    return ROOT / "benchmarks" / f"{name}.py"


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields values by name; of nested ones the names stand one behind the other."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}: ")
        else:
            yield f"{before}{key}", value


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _machine() -> str:
    """Returns the CPU's name, whether it multiplies bfloat16, and how many cores may be used."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.findall(r"^model name\s*: (.*)$", facts, re.MULTILINE)[0]
    bfloat16 = "with" if "avx512_bf16" in facts else "without"
    return f"{len(os.sched_getaffinity(0))} cores of {name}, {bfloat16} AVX-512 bf16"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
