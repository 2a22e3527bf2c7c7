"""SavedModels for TensorFlow Serving: signatures, assets, warm-up, a model card; checked, then shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export import verify
from karpa_tf.export.signature import Signature, stack


def export_savedmodel(
    signatures: Mapping[str, Signature],
    to: str | Path,
    name: str,
    *,
    examples: Sequence[Mapping[str, Any]],
    assets: Mapping[str, str] | None = None,
    model_card: str = "",
) -> Path:
    """Writes the next version of a served model.

    The version is written to a hidden folder, loaded and run in a fresh process as TensorFlow Serving
    would, and renamed: it appears whole or not at all.

    Args:
        signatures: what it serves; `serving_default` must be there.
        to: the folder of all models, e.g. `savedmodels`.
        name: the model's name, e.g. `mlm-gru`.
        examples: rows for `serving_default`, for the check and the warm-up file.
        assets: text of files by name, e.g. `{"labels.txt": ...}`.
        model_card: Markdown for `assets.extra/model_card.md`.

    Returns:
        The version's folder, `to/name/version`.

    Raises:
        UserError: the disk is full or cannot be written, or the model does not pass the check.
    """

    def write(model: Path) -> None:
        write_savedmodel(signatures, model, assets or {})
        extra = model / "assets.extra"
        extra.mkdir()
        write_warmup(extra, name, "serving_default", signatures["serving_default"], examples)
        (extra / "model_card.md").write_text(model_card, encoding="utf-8")
        _verify(signatures, model, model.parent, examples)

    return publish(write, to, name)


def publish(write: Callable[[Path], Any], to: str | Path, name: str) -> Path:
    """Lets `write` make a folder, and makes it the next version of a model, `to/name/version`.

    Raises:
        UserError: the disk is full or cannot be written; or what `write` raises. Nothing is left behind then.
    """
    parent = Path(to) / name
    existed = parent.exists()
    temporary = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".exporting-", dir=parent))
        write(temporary / "model")
        version = _publish(temporary / "model", parent)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        reason = " ".join(reason.split())
        raise UserError(f"{parent} cannot be written: {reason}; nothing was exported.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if not existed and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    return version


def write_savedmodel(signatures: Mapping[str, Signature], path: Path, assets: Mapping[str, str]) -> None:
    """Writes a SavedModel as it is, without a version, a warm-up file and a check."""
    # Only what inference reads: tracking a compiled model would add the optimizer's slots. And its
    # tf.Variables: TensorFlow Serving does not find those that only a Keras object holds.
    module = tf.Module()
    variables = {id(v): v for signature in signatures.values() for v in signature.variables}
    module.weights = [v.value for v in variables.values()]
    module.resources = [r for signature in signatures.values() for r in signature.resources]
    functions = {name: concrete_function(signature) for name, signature in signatures.items()}
    tf.saved_model.save(module, str(path), signatures=functions)
    folder = path / "assets"
    folder.mkdir(exist_ok=True)
    for file, text in assets.items():
        (folder / file).write_text(text, encoding="utf-8")


def write_warmup(
    folder: Path, model: str, name: str, signature: Signature, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes `tf_serving_warmup_requests`: requests that TensorFlow Serving replays when it loads."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for count in sorted({1, len(rows)}):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model
            request.model_spec.signature_name = name
            for key, array in stack(rows[:count], signature.inputs).items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def _verify(
    signatures: Mapping[str, Signature], model: Path, folder: Path, rows: Sequence[Mapping[str, Any]]
) -> None:
    arrays = {}
    for name, signature in signatures.items():
        inputs = stack(rows, signature.inputs)
        for kind, values in (("in", inputs), ("out", signature(inputs))):
            for key, value in values.items():
                # NumPy's files hold strings of fixed width, not Python objects.
                arrays[f"{name}|{kind}|{key}"] = value.astype("S") if value.dtype == object else value
    np.savez(folder / "cases.npz", **arrays)  # type: ignore[arg-type]
    # -P: the modules beside the script are not to be taken for packages of the same name.
    result = subprocess.run(
        [sys.executable, "-P", verify.__file__, str(model), str(folder / "cases.npz")],
        capture_output=True,
        text=True,
        # A server knows nothing of legacy Keras, which the recipe may have asked for.
        env={**os.environ, "PYTHONPATH": "", "TF_USE_LEGACY_KERAS": "0"},
    )
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        reason = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"The exported model does not load as TensorFlow Serving loads it: {reason}.")
    report = json.loads(lines[-1])
    if not report["ok"]:
        raise UserError(f"The exported model failed its check: {'; '.join(report['problems'])}.")


def _publish(model: Path, parent: Path) -> Path:
    while True:
        versions = [int(p.name) for p in parent.iterdir() if p.name.isdecimal()]
        version = parent / str(max(versions, default=0) + 1)
        try:
            model.rename(version)  # refuses a folder that another export has just filled
            return version
        except OSError:
            if not version.exists():
                raise


def concrete_function(signature: Signature) -> Any:
    """Returns the signature's graph."""
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in signature.inputs.items()}
    return tf.function(signature.function, autograph=False).get_concrete_function(**specs)


def describe(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Returns `{name: {"inputs": {...}, "outputs": {...}}}` with a type and a shape each, for people."""
    return {
        name: {
            "inputs": {key: _type(spec) for key, spec in signature.inputs.items()},
            "outputs": {
                key: _type(spec) for key, spec in concrete_function(signature).structured_outputs.items()
            },
        }
        for name, signature in signatures.items()
    }


def _type(spec: Any) -> str:
    shape = ", ".join("n" if d is None and i == 0 else str(d or "?") for i, d in enumerate(spec.shape))
    return f"{spec.dtype.name} [{shape}]"
