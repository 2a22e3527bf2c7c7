from __future__ import annotations

import configparser
import importlib
from importlib import metadata
from pathlib import Path

import pytest

from karpa_tf import doctor


@pytest.fixture
def wrong(tmp_path):
    """Returns a function that says what is wrong."""
    return lambda: [check for check in doctor.check(str(tmp_path / "logs"))["checks"] if not check["ok"]]


def test_packages_that_are_missing_or_too_old_are_named_with_their_mend(wrong, monkeypatch) -> None:
    required = ["no-such-package>=1.5", "numpy>=99", 'no-such-extra; extra == "dev"', "packaging>=20"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    missing, old = wrong()
    assert "no-such-package" in missing["name"] and missing["mend"] == "pip install 'no-such-package>=1.5'"
    assert old["name"] == f"numpy {metadata.version('numpy')} (>=99)"
    assert old["mend"] == "pip install 'numpy>=99'"


def test_a_package_that_cannot_be_imported_is_named_with_its_reason(wrong, monkeypatch) -> None:
    def broken(name: str, *more, load=importlib.import_module):
        if name == "tqdm":
            raise ImportError("tqdm.so: undefined symbol")
        return load(name, *more)

    monkeypatch.setattr(metadata, "requires", lambda name: ["tqdm>=4"])
    monkeypatch.setattr(importlib, "import_module", broken)
    (only,) = wrong()
    assert only["name"] == "tqdm: ImportError: tqdm.so: undefined symbol"


def test_a_source_that_was_never_installed_is_one_line(wrong, monkeypatch) -> None:
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "version", missing)
    (only,) = wrong()
    assert only["name"].startswith("karpa-tf: ") and only["mend"] == "pip install 'karpa-tf'"


def test_logs_that_cannot_be_written_are_noticed(wrong, tmp_path) -> None:
    (tmp_path / "logs").write_text("a file")
    (only,) = wrong()
    assert "give write access" in only["mend"]


def test_what_an_extra_would_add_is_no_fault(karpa, tmp_path, monkeypatch) -> None:
    required = ["numpy", 'no-such-package>=1; extra == "onnx"', 'packaging>=20; extra == "tables"']
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    result = karpa("doctor", "--logs", tmp_path, "--json")
    optional = {check["name"].split(":")[0]: check for check in result.json["optional"]}
    assert result.status == 0 and result.json["ok"]
    assert optional["onnx"]["ok"] is False and optional["onnx"]["mend"] == "pip install 'karpa-tf[onnx]'"
    assert (optional["tables"]["ok"], optional["tables"]["mend"]) == (True, "")
    assert "none  onnx: " in result.err and "FAIL" not in result.err
    assert {"train dqn", "GPU"} <= set(optional)


def test_every_extra_says_what_it_adds() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[1] / "setup.cfg")
    assert {*doctor.EXTRAS, "dev", "all"} == set(parser["options.extras_require"])
