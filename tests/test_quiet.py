from __future__ import annotations

import os
import sys

import pytest

from karpa_tf.quiet import stderr_aside


def test_what_libraries_print_is_set_aside_unless_the_block_fails(capfd) -> None:
    with stderr_aside():
        os.write(2, b"from C++\n")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"
    with pytest.raises(ValueError), stderr_aside():
        os.write(2, b"why it failed\n")
        raise ValueError
    assert capfd.readouterr().err == "why it failed\n"
