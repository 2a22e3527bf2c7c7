"""Every benchmark still runs: with `--smoke`, which is tiny and leaves PyTorch's sides out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Those of TF-Agents and of the pretrained BERT need what is not everywhere.
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


# The others take half a minute each, to import what they compare with.
QUICK = ("gan", "privacy", "watch")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_benchmark_runs(name: str, request: pytest.FixtureRequest) -> None:
    if name == "bert_finetune":
        request.getfixturevalue("minilm")
    if name == "dqn_cartpole" and sys.version_info >= (3, 12):
        pytest.skip("TF-Agents needs Python 3.11")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smoke"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["benchmark"] == name and result["values"]
