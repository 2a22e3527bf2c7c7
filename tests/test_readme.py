"""The README's script runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_the_script_of_the_readme_runs(tmp_path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "savedmodels" / "mine" / "1" / "saved_model.pb").is_file()


def test_the_script_of_the_readme_fits_its_pieces_together(tmp_path, monkeypatch, text_file) -> None:
    """The same lines on a text of the tests, so that the fast tests cover them too."""
    (script,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    script = script.replace('"embedded"', repr(str(text_file))).replace("8000", "200")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(README), "exec"), {})
    assert (tmp_path / "savedmodels" / "mine" / "1" / "saved_model.pb").is_file()


def test_every_page_that_the_readme_names_exists() -> None:
    for page in re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / page).is_file(), page
