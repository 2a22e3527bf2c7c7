"""A built wheel installs elsewhere and brings its YAML."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building leaves files beside the sources.
    source = folder / "source"
    kept = shutil.ignore_patterns(".*", "logs", "savedmodels", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=kept)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("karpa_tf/", "karpa_tf-")) for name in names)
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "karpa_tf").rglob("*.yaml")}
    assert shipped and shipped <= set(names)
    assert "karpa_tf/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") or name.endswith("/LICENSE") for name in names)


def test_the_wheel_works_where_it_is_installed(wheel, tmp_path) -> None:
    target = tmp_path / "elsewhere"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import karpa_tf, karpa_tf.cli\n"
        f"assert karpa_tf.__file__.startswith({str(target)!r}), karpa_tf.__file__\n"
        "sys.exit(karpa_tf.cli.main(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mlm-gru" in done.stdout and "expected  " in done.stdout


def test_every_dependency_has_its_reason() -> None:
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = parser["options"]["install_requires"] + "".join(parser["options.extras_require"].values())
    for requirement in filter(None, (line.strip() for line in listed.splitlines())):
        if not requirement.startswith("#"):
            place = next(i for i, line in enumerate(lines) if line.strip() == requirement)
            assert lines[place - 1].strip().startswith("#"), requirement
