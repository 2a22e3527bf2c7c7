"""What contributors read: the forms, the citation file, and the targets that CONTRIBUTING.md names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from karpa_tf import __version__

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def fits(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", schema]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True)


def test_the_forms_keep_to_the_schema_of_their_host(tmp_path) -> None:
    assert len(FORMS) == 3
    done = fits("vendor.github-issue-forms", *FORMS)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FORMS[0].read_text(encoding="utf-8").replace("textarea", "text"), encoding="utf-8")
    assert fits("vendor.github-issue-forms", wrong).returncode == 1


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_asks_for_the_doctor(form) -> None:
    asked = {entry["id"]: entry for entry in yaml.safe_load(form.read_text(encoding="utf-8"))["body"]}
    assert "`karpa-tf doctor --json`" in asked["doctor"]["attributes"]["label"]


def test_the_citation_file_is_of_this_version() -> None:
    path = ROOT / "CITATION.cff"
    done = fits("vendor.citation-file-format", path)
    assert done.returncode == 0, done.stdout
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["version"] == __version__


def test_the_make_targets_that_are_named_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = re.findall(r"(?:`|    )make ([a-z -]+?)(?:`|  | [A-Z])", text)
    named = {target for words in commands for target in words.split()}
    assert {"setup", "test", "lint", "type", "test-all", "bench"} <= named <= targets
