"""Predicting with a model from disk, whoever wrote it: a SavedModel, a LiteRT or an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)
from tensorflow.core.protobuf import saved_model_pb2

from karpa_tf.errors import UserError
from karpa_tf.export.signature import SHOWN, Signature


def load_model(path: str | Path, name: str = "serving_default") -> Signature:
    """Loads what `karpa-tf export` wrote: a SavedModel's folder, a .tflite or an .onnx file.

    Args:
        path: of the folder or file.
        name: of the signature, where a SavedModel has several.

    Returns:
        What predicts on rows of Python values or on arrays.

    Raises:
        UserError: it cannot be loaded, or what it needs is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".tflite":
        return _load_litert(Path(path))
    if suffix == ".onnx":
        return _load_onnx(Path(path))
    return load_signature(path, name)


def load_signature(path: str | Path, name: str = "serving_default") -> Signature:
    """Loads a signature of a SavedModel, whoever wrote it.

    Args:
        path: of the version's folder.
        name: of the signature.

    Returns:
        What predicts on rows of Python values or on arrays.

    Raises:
        UserError: the folder cannot be loaded, or has no such signature.
    """
    try:
        model = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise _not_loaded(path, "a SavedModel", error) from None
    if name not in model.signatures:
        raise UserError(f'{path} has no signature "{name}"; it has {sorted(model.signatures)}.')
    concrete = model.signatures[name]
    _, inputs = concrete.structured_input_signature
    # Inputs for which the file has a default are not asked for; every row has the same.
    defaults = _defaults(Path(path), name)
    inputs = {key: spec for key, spec in inputs.items() if key not in defaults}

    def function(**tensors: tf.Tensor) -> dict[str, Any]:
        return concrete(**tensors, **defaults)

    classes = concrete.structured_outputs.get("probabilities")
    names = _labels(Path(path) / "assets", None if classes is None else classes.shape[-1])
    shown = _shown(Path(path) / "assets.extra" / SHOWN).get(name, [])
    return Signature(function, inputs, resources=[model], names=names, shown=shown)


def _defaults(path: Path, name: str) -> dict[str, tf.Tensor]:
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((path / "saved_model.pb").read_bytes())
    for graph in saved.meta_graphs:
        if name in graph.signature_def:
            given = graph.signature_def[name].defaults
            return {key: tf.constant(tf.make_ndarray(value)) for key, value in given.items()}
    return {}


def _load_litert(path: Path) -> Signature:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise UserError(
            f"{path} is run by LiteRT's interpreter, which is not installed: pip install 'karpa-tf[litert]'."
        ) from None
    try:
        interpreter = Interpreter(model_content=path.read_bytes())
        interpreter.allocate_tensors()
        run = interpreter.get_signature_runner()
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_loaded(path, "a LiteRT file with a signature", error) from None
    inputs = {
        name: tf.TensorSpec([None, *tensor["shape"][1:]], tensor["dtype"], name)
        for name, tensor in run.get_input_details().items()
    }

    def one_by_one(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        # The file takes one row at a time.
        rows = zip(*arrays.values(), strict=True)
        found = [run(**{n: x[None] for n, x in zip(arrays, row, strict=True)}) for row in rows]
        return {name: np.concatenate([row[name] for row in found]) for name in found[0]}

    return _signature(path, inputs, one_by_one)


def _load_onnx(path: Path) -> Signature:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{path} is run by onnxruntime, which is not installed: pip install 'karpa-tf[onnx]'."
        ) from None
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception for each of its states
        raise _not_loaded(path, "an ONNX file", error) from None
    inputs = {}
    for given in session.get_inputs():
        kind = given.type.removeprefix("tensor(").removesuffix(")")
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        shape = [size if isinstance(size, int) else None for size in given.shape]
        inputs[given.name] = tf.TensorSpec([None, *shape[1:]], dtype, given.name)
    outputs = [output.name for output in session.get_outputs()]

    def run(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(outputs, arrays), strict=True))

    return _signature(path, inputs, run)


def _signature(
    path: Path, inputs: dict[str, tf.TensorSpec], run: Callable[..., dict[str, np.ndarray]]
) -> Signature:
    """Returns the signature of a file of a classifier; its labels lie beside it."""
    names: list[str] = []

    def function(**tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        found = run(**{name: tensor.numpy() for name, tensor in tensors.items()})
        outputs = {name: tf.constant(value) for name, value in found.items()}
        if "probabilities" in found and len(names) == found["probabilities"].shape[-1]:
            label = tf.gather(tf.constant(names), tf.argmax(outputs["probabilities"], axis=-1))
            return {"label": label, **outputs}
        return outputs

    names += _labels(path.parent, None)
    return Signature(function, inputs, names=names)


def _labels(folder: Path, count: int | None) -> Sequence[str]:
    """Returns the names of the classes that lie beside a model; none, if they are not of that number."""
    try:
        names = (folder / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        return []
    return names if count is None or len(names) == count else []


def _shown(path: Path) -> dict[str, list[str]]:
    """Returns how outputs read in a terminal, by signature; nothing for a model that others have written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _not_loaded(path: str | Path, what: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return UserError(f"{path} cannot be loaded as {what}: {reason}.")
