"""Real processes, killed for real: a run that was killed many times ends as if it never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY
from tests.training.helpers import read_events

pytestmark = pytest.mark.slow

TRAIN = [sys.executable, "-m", "karpa_tf", "train", "mlm-gru"]
STARTED = "pieces to learn from"

# Runs a command in which the second checkpoint is cut in the middle by SIGKILL.
CUT = """
import os, signal, sys
import numpy as np
from karpa_tf.cli import main

whole = np.savez
count = 0

def savez(file, **values):
    global count
    count += 1
    whole(file, **values)
    if count == 2:
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

np.savez = savez
sys.exit(main(sys.argv[1:]))
"""


def finish(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def start_and_kill(command: list[str], folder: Path, seconds: float) -> bool:
    """Kills a run so many seconds after it has begun; returns whether it was still going."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if STARTED in line:
            break
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    process.stderr.close()
    return process.returncode == -signal.SIGKILL


def assert_same_runs(one: Path, other: Path) -> None:
    checkpoints = [sorted((run / "checkpoints").glob("*.npz"))[-1] for run in (one, other)]
    assert checkpoints[0].name == checkpoints[1].name
    with np.load(checkpoints[0]) as a, np.load(checkpoints[1]) as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()
    assert read_events(one) == read_events(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text_file) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish([*command(text_file)], folder)
    return folder / "logs" / "mlm-gru" / "1"


def command(text_file: Path) -> list[str]:
    options = ["--epochs", "60", "--patience", "0", "--checkpoint_seconds", "0.1", "--deterministic"]
    return [*TRAIN, "--data", str(text_file), *TINY, *options, "--dropout", "0.1"]


def test_twenty_kills_in_a_row(whole, tmp_path, text_file) -> None:
    rng = random.Random(1)
    killed = start_and_kill(command(text_file), tmp_path, 6)
    assert killed
    for _ in range(19):
        start_and_kill([*TRAIN, "--resume", "logs/mlm-gru/1"], tmp_path, rng.uniform(0, 8))
    finish([*TRAIN, "--resume", "logs/mlm-gru/1"], tmp_path)
    assert_same_runs(whole, tmp_path / "logs" / "mlm-gru" / "1")


def test_a_kill_while_a_checkpoint_is_written(whole, tmp_path, text_file) -> None:
    words = command(text_file)[3:]
    done = subprocess.run([sys.executable, "-c", CUT, *words], cwd=tmp_path, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    run = tmp_path / "logs" / "mlm-gru" / "1"
    assert list((run / "checkpoints").glob("*.tmp")), "the test wants a half-written checkpoint"
    finish([*TRAIN, "--resume", str(run)], tmp_path)
    assert_same_runs(whole, run)
    assert not list((run / "checkpoints").glob("*.tmp"))
    assert os.listdir(run.parent) == ["1"]
