"""A short soak: load, versions that are swapped, hostile requests, all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_nothing_fails_while_versions_are_swapped_under_hostile_requests() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "serving.py"
    words = ["--only", "soak", "--soak_seconds", "45", "--hostile", "150"]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])["values"]
    assert values["soak_failed"] == 0 and values["soak_requests"] > 100
    assert values["soak_swaps"] >= 3
    assert values["soak_hostile_refused_with_4xx"] == 150, values["soak_hostile_otherwise"]
    # `make bench` looks for ten minutes whether memory stays; here it must not run away.
    assert values["soak_memory_growth"] < 1.1
