"""DQN's parts, in a process with legacy Keras; and what happens in one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "tf_agents" if sys.version_info >= (3, 12) else "sys", reason="TF-Agents ends at Python 3.11"
)

LEGACY = Path(__file__).with_name("legacy.py")


def test_the_tests_with_legacy_keras_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", str(LEGACY)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        cwd=LEGACY.parent.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("module", ["dqn", "environment"])
def test_without_legacy_keras_there_is_one_sentence(module) -> None:
    code = (
        "import tensorflow as tf, karpa_tf.recipes.dqn.recipe\n"
        "assert 'tf_keras' not in __import__('sys').modules, 'karpa_tf switches nothing by itself'\n"
        "from karpa_tf.errors import UserError\n"
        f"try:\n    import karpa_tf.rl.{module}\n"
        "except UserError as error:\n    print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    assert "set TF_USE_LEGACY_KERAS=1 in the environment before tensorflow is imported" in line
