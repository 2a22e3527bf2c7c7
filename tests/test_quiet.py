from __future__ import annotations

import os
import sys

import pytest

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
