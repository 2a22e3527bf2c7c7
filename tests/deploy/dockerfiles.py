"""Reading a Dockerfile, and doing what it says without Docker."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What packages of requirements-serve.txt ask for and the server never imports, as the file says.
LEFT_OUT = {
    "tensorflow-cpu": {"google-pasta", "h5py", "keras", "libclang", "setuptools"},
    "tensorflow-serving-api": {"tensorflow"},
    "tensorflow-text": {"tensorflow"},
    "astunparse": {"wheel"},
}


def read(path: Path) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile with what stands behind them; continued lines are joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = (line.split(None, 1) for line in joined if line.strip())
    return [(name, words.strip()) for name, words in pairs]


def words_of(instructions: list[tuple[str, str]], name: str) -> list[str]:
    """Returns the words of the last ENTRYPOINT, CMD or HEALTHCHECK, which stand as a JSON list."""
    found = [words for instruction, words in instructions if instruction == name][-1]
    return json.loads(found[found.index("[") :])


def execute(path: Path, root: Path, python: str = sys.executable) -> Path:
    """Does what COPY, WORKDIR, ARG and RUN of a Dockerfile say, each stage in an environment of its own.

    Args:
        path: of the Dockerfile.
        root: the folder that stands for the image's `/`.
        python: the interpreter that stands for the one of the base image.

    Returns:
        The folder of the programs of the last stage.
    """
    programs, work, variables = root, root, dict(os.environ)
    variables.pop("PYTHONPATH", None)
    for number, (name, words) in enumerate(read(path)):
        if name == "FROM":
            programs, work = root / f"venv-{number}" / "bin", root
            subprocess.run([python, "-m", "venv", str(programs.parent)], check=True)
            variables["PATH"] = f"{programs}:{os.environ['PATH']}"
        elif name == "WORKDIR":
            work = root / words.strip("/")
            work.mkdir(parents=True, exist_ok=True)
        elif name == "ARG":
            key, _, value = words.partition("=")
            variables[key] = value
        elif name == "COPY":
            *sources, target = [word for word in shlex.split(words) if not word.startswith("--")]
            start = root if "--from=" in words else ROOT
            for source in sources:
                copy(start / source.strip("/"), work / target)
        elif name == "RUN":
            done = subprocess.run(
                ["/bin/sh", "-c", words], cwd=work, env=variables, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return programs


def copy(source: Path, target: Path) -> None:
    """Copies as COPY does: of a folder what is in it."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def sources(path: Path) -> list[str]:
    """Returns what a Dockerfile copies from the repository."""
    found = [words for name, words in read(path) if name == "COPY" and "--from=" not in words]
    return [source for words in found for source in shlex.split(words)[:-1]]
