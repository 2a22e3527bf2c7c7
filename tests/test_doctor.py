from __future__ import annotations

from karpa_tf import doctor


def test_a_missing_package_is_named_with_its_mend(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(doctor._MODULES, "no_such_module", "pip install no-such-module")
    report = doctor.check(str(tmp_path / "logs"))
    assert report["ok"] is False
    (wrong,) = [check for check in report["checks"] if not check["ok"]]
    assert "no_such_module" in wrong["name"] and wrong["mend"] == "pip install no-such-module"


def test_an_old_version_is_noticed() -> None:
    assert doctor._at_least("2.21.1", "2.21") and doctor._at_least("3.0", "2.21")
    assert not doctor._at_least("2.20.0", "2.21") and not doctor._at_least("none", "2.21")


def test_logs_that_cannot_be_written_are_noticed(tmp_path) -> None:
    (tmp_path / "logs").write_text("a file")
    report = doctor.check(str(tmp_path / "logs"))
    wrong = [check for check in report["checks"] if not check["ok"]]
    assert len(wrong) == 1 and "give write access" in wrong[0]["mend"]
