"""`karpa-tf doctor`: what is off on this machine and what mends it, and what an extra would add."""

from __future__ import annotations

import importlib.util
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

from karpa_tf import __version__
from karpa_tf.recipe import RecipeFolder, all_recipes

# What each extra of setup.cfg adds for those who use karpa_tf.
EXTRAS = {
    "litert": "`export --format litert` checks its file, and `predict` reads .tflite",
    "onnx": "`export --format onnx`, and `predict` reads .onnx",
    "tables": "tables as .xlsx and .parquet",
    "search": "`search --sampler tpe`",
    "notebook": "Jupyter, for the notebooks of examples/notebooks",
}


def check(logs: str = "logs") -> dict[str, Any]:
    """Returns what is there and what is not.

    Args:
        logs: the folder of the runs.

    Returns:
        `{"ok": bool, "checks": [{"name", "ok", "mend"}], "optional": [the same]}`: `ok` says whether every
        check is well, `mend` is empty where one is.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    checks: list[dict[str, Any]] = []
    optional: list[dict[str, Any]] = []

    def add(name: str, ok: bool, mend: str, to: list[dict[str, Any]] = checks) -> None:
        to.append({"name": name, "ok": ok, "mend": "" if ok else mend})

    version = sys.version_info
    add(
        f"karpa-tf {__version__}, Python {platform.python_version()}, {platform.platform()}",
        (3, 11) <= version[:2] < (3, 14),
        "use Python 3.11, 3.12 or 3.13",
    )
    for requirement, modules in _required():
        add(*_package(requirement, modules), f"pip install '{requirement.name}{requirement.specifier}'")
    for name, recipe in all_recipes().items():
        add(*_attempt(f"recipe {name}", partial(_loads, recipe)), "reinstall the package that has it")
        if recipe.about.legacy_keras:
            there = all(importlib.util.find_spec(module) for module in ("tf_agents", "tf_keras"))
            add(f"train {name}", there, "use Python 3.11, the last that TF-Agents installs on", optional)
    add(*_attempt("export to SavedModel", _exports), "pip install --force-reinstall karpa-tf")
    add(*_attempt("server", _server), "pip install --force-reinstall karpa-tf")
    if all(entry["ok"] for entry in checks):
        add(*_attempt("Keras runs on TensorFlow", _backend), "unset KERAS_BACKEND, or set it to tensorflow")
        add(*_attempt(_devices(), _multiply), "reinstall tensorflow: it cannot multiply two matrices")
        add(*_gpu(), "pip install 'tensorflow[and-cuda]' where there is an NVIDIA GPU", optional)
    from karpa_tf.data.text import cache_folder

    for name, folder in (
        ("logs", Path(logs)),
        ("savedmodels", Path("savedmodels")),
        ("cache", cache_folder()),
    ):
        add(f"{name}: {folder} can be written", _writable(folder), f"give write access to {folder}")
    for extra, what in EXTRAS.items():
        add(f"{extra}: {what}", _has(extra), f"pip install 'karpa-tf[{extra}]'", optional)
    return {"ok": all(entry["ok"] for entry in checks), "checks": checks, "optional": optional}


def _requirements() -> list[Requirement]:
    """Returns what the installed karpa-tf requires, with its extras."""
    try:
        return list(map(Requirement, metadata.requires("karpa-tf") or []))
    except metadata.PackageNotFoundError:
        return [Requirement("karpa-tf")]  # which is said to be missing then


def _required() -> Iterator[tuple[Requirement, Sequence[str]]]:
    """Yields what the installed karpa-tf requires on this Python, and the modules of each to import."""
    modules: dict[str, list[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(canonicalize_name(package), []).append(module)
    for requirement in _requirements():
        if not requirement.marker:
            yield requirement, modules.get(canonicalize_name(requirement.name), [])
        elif requirement.marker.evaluate({"extra": ""}):
            # Of one Python alone: TF-Agents and its legacy Keras, which cannot be imported beside Keras 3.
            yield requirement, []


def _has(extra: str) -> bool:
    """Whether all that an extra brings on this Python is installed."""
    brings = [
        requirement
        for requirement in _requirements()
        if requirement.marker
        and requirement.marker.evaluate({"extra": extra})
        and not requirement.marker.evaluate({"extra": ""})
    ]
    return bool(brings) and all(_package(requirement, [])[1] for requirement in brings)


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


def _exports() -> bool:
    import tensorflow_text  # the tokenizers of exports

    import karpa_tf.export.savedmodel

    return bool(karpa_tf.export.savedmodel and tensorflow_text)


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


def _gpu() -> tuple[str, bool]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return f"GPU: {', '.join(names) or 'none that TensorFlow finds'}", bool(gpus)


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
