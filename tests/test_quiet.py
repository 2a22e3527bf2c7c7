from __future__ import annotations

import importlib
import os
import sys
import warnings

import pytest

from karpa_tf import cli
from karpa_tf.quiet import stderr_aside
from tests.conftest import own_process


def test_what_libraries_print_is_set_aside_unless_the_block_fails(capfd) -> None:
    with stderr_aside():
        os.write(2, b"from C++\n")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"
    with pytest.raises(ValueError), stderr_aside():
        os.write(2, b"why it failed\n")
        raise ValueError
    assert capfd.readouterr().err == "why it failed\n"


def test_a_plain_command_prints_no_warnings_of_others(digits, tmp_path) -> None:
    """`explain` of several images, which TensorFlow once warned of; .ci/smoke-wheel looks at the others."""
    done = own_process("explain", digits)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_wrong_with_the_syntax_of_others_is_not_printed(tmp_path, monkeypatch) -> None:
    """As on the first run of packages that were installed without being compiled."""
    for folder, seen in (("site-packages", 0), ("mine", 1)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / f"wrong_{seen}.py"
        file.write_text("def same(x):\n    return x is 1\n")
        monkeypatch.syspath_prepend(file.parent)
        verb = ("", lambda words, name=file.stem: bool(importlib.import_module(name)) and 0)
        monkeypatch.setitem(cli._VERBS, "import", verb)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert cli.main(["import"]) == 0
        assert [warning.category for warning in caught] == [SyntaxWarning] * seen
