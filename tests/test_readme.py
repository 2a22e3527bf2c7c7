"""The README's script runs as it stands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.documents import ROOT, python_blocks

README = ROOT / "README.md"


@pytest.mark.slow
def test_the_script_of_the_readme_runs(tmp_path) -> None:
    (script,) = python_blocks(README)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "savedmodels" / "mine" / "1" / "saved_model.pb").is_file()


def test_the_script_of_the_readme_fits_its_pieces_together(tmp_path, monkeypatch, text_file) -> None:
    """The same lines on a text of the tests, so that the fast tests cover them too."""
    (script,) = python_blocks(README)
    script = script.replace('"embedded"', repr(str(text_file))).replace("8000", "200")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(README), "exec"), {})
    assert (tmp_path / "savedmodels" / "mine" / "1" / "saved_model.pb").is_file()
