"""`karpa-tf doctor`: what is off on this machine, and what mends it."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from karpa_tf.training.run_folder import environment

_MODULES = {
    "tensorflow": "pip install karpa-tf",
    "keras": "pip install 'keras~=3.15.0'",
    "keras_hub": "pip install keras-nlp",
    "tensorflow_text": "pip install 'tensorflow-text~=2.21.1', of TensorFlow's own minor release",
    "tensorboard": "pip install tensorboard",
    "tokenizers": "pip install tokenizers",
    "safetensors": "pip install safetensors",
    "sklearn": "pip install scikit-learn",
    "matplotlib": "pip install matplotlib",
    "seqeval": "pip install --use-pep517 seqeval",
    "hassil": "pip install hassil",
    "home_assistant_intents": "pip install home-assistant-intents",
    "tensorflow_datasets": "pip install tensorflow-datasets",
    "aiohttp": "pip install aiohttp",
    "grpc": "pip install grpcio",
    "grpc_health.v1.health": "pip install grpcio-health-checking",
    "grpc_reflection.v1alpha.reflection": "pip install grpcio-reflection",
    "orjson": "pip install orjson",
    "prometheus_client": "pip install prometheus-client",
    "tensorflow_serving.apis.predict_pb2": "pip install 'tensorflow-serving-api~=2.21.0'",
}


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
    for module, mend in _MODULES.items():
        add(*_imports(module), mend)
    versions = environment()["versions"]
    for package, minimum in (("tensorflow", "2.21"), ("keras", "3.15")):
        found = versions[package] or "none"
        add(f"{package} {found} (at least {minimum})", _at_least(found, minimum), "pip install -U karpa-tf")
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


def _imports(module: str) -> tuple[str, bool]:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken wheel can raise anything
        return f"import {module}: {type(error).__name__}: {str(error).splitlines()[0][:100]}", False
    return f"import {module}", True


def _at_least(found: str, minimum: str) -> bool:
    numbers = [int(part) for part in found.split(".")[:2] if part.isdecimal()]
    return numbers >= [int(part) for part in minimum.split(".")]


def _attempt(name: str, test: Callable[[], bool]) -> tuple[str, bool]:
    try:
        return name, test()
    except Exception as error:  # whatever it is, it is what is off
        return f"{name}: {error}", False


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
