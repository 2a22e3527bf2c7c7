"""`karpa-tf doctor`: what is off on this machine, and what mends it."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from karpa_tf.recipe import RecipeFolder, all_recipes


def check(logs: str = "logs") -> dict[str, Any]:
    """Returns `{"ok": bool, "checks": [{"name", "ok", "mend"}]}`; `mend` is empty where all is well."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    checks: list[dict[str, Any]] = []

    def add(name: str, ok: bool, mend: str) -> None:
        checks.append({"name": name, "ok": ok, "mend": "" if ok else mend})

    version = sys.version_info
    add(
        f"Python {platform.python_version()}",
        (3, 11) <= version[:2] < (3, 14),
        "use Python 3.11, 3.12 or 3.13",
    )
    for requirement, modules in _required():
        add(*_package(requirement, modules), f"pip install '{requirement.name}{requirement.specifier}'")
    for name, recipe in all_recipes().items():
        add(*_attempt(f"recipe {name}", partial(_loads, recipe)), "reinstall the package that has it")
    add(*_attempt("server", _server), "pip install --force-reinstall karpa-tf")
    if all(entry["ok"] for entry in checks):
        add(*_attempt("Keras runs on TensorFlow", _backend), "unset KERAS_BACKEND, or set it to tensorflow")
        add(*_attempt(_devices(), _multiply), "reinstall tensorflow: it cannot multiply two matrices")
    from karpa_tf.data.text import cache_folder

    for name, folder in (
        ("logs", Path(logs)),
        ("savedmodels", Path("savedmodels")),
        ("cache", cache_folder()),
    ):
        add(f"{name}: {folder} can be written", _writable(folder), f"give write access to {folder}")
    return {"ok": all(entry["ok"] for entry in checks), "checks": checks}


def _required() -> Iterator[tuple[Requirement, Sequence[str]]]:
    """Yields what the installed karpa-tf requires on this Python, and the modules of each to import."""
    modules: dict[str, list[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(canonicalize_name(package), []).append(module)
    try:
        required = metadata.requires("karpa-tf") or []
    except metadata.PackageNotFoundError:
        required = ["karpa-tf"]  # which is said to be missing then
    for requirement in map(Requirement, required):
        if not requirement.marker:
            yield requirement, modules.get(canonicalize_name(requirement.name), [])
        elif requirement.marker.evaluate({"extra": ""}):
            # Of one Python alone: TF-Agents and its legacy Keras, which cannot be imported beside Keras 3.
            yield requirement, []


def _package(requirement: Requirement, modules: Sequence[str]) -> tuple[str, bool]:
    try:
        version = metadata.version(requirement.name)
        for module in modules:
            importlib.import_module(module)
    except Exception as error:  # a broken wheel can raise anything
        return f"{requirement.name}: {type(error).__name__}: {' '.join(str(error).split())[:100]}", False
    fits = requirement.specifier.contains(version, prereleases=True)
    return f"{requirement.name} {version} ({requirement.specifier})", fits


def _attempt(name: str, test: Callable[[], bool]) -> tuple[str, bool]:
    try:
        return name, test()
    except Exception as error:  # whatever it is, it is what is off
        return f"{name}: {error}", False


def _loads(recipe: RecipeFolder) -> bool:
    return bool(recipe.load())


def _server() -> bool:
    import karpa_tf.serving.server  # and what speaks HTTP, gRPC and TensorFlow Serving's protos

    return bool(karpa_tf.serving.server)


def _backend() -> bool:
    import keras

    return keras.backend.backend() == "tensorflow"


def _devices() -> str:
    import tensorflow as tf

    from karpa_tf.training.runtime import fast_bfloat16, usable_cores

    gpus = len(tf.config.list_physical_devices("GPU"))
    precision = "mixed_bfloat16" if fast_bfloat16() else "float32"
    return f"{usable_cores()} CPU cores, {gpus} GPUs, precision auto is {precision}"


def _multiply() -> bool:
    import tensorflow as tf

    return float(tf.reduce_sum(tf.matmul(tf.ones([8, 8]), tf.ones([8, 8])))) == 512.0


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, takes a file."""
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        return False
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
