"""SavedModels for TensorFlow Serving: signatures, assets, warm-up, a model card; checked, then shown."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from karpa_tf.errors import UserError
from karpa_tf.export import arrays_file
from karpa_tf.export.signature import COST, SHOWN, Signature, stack

# Ops that tensorflow_text registers, and plain TensorFlow does not.
_TEXT_OP = re.compile(
    "TFText>|.*[wW]ordpiece|.*Sentencepiece|CaseFoldUTF8|NormalizeUTF8|Whitespace|FastBert|SplitMerge|RegexSplit"
    "|UnicodeScriptTokenize|ConstrainedSequence|MaxSpanningTree|RougeL|SentenceFragments|Phrase|TokenizerFrom"
)


def export_savedmodel(
    signatures: Mapping[str, Signature],
    to: str | Path,
    name: str,
    *,
    examples: Sequence[Mapping[str, Any]],
    assets: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    model_card: str = "",
    tolerance: float = 1e-5,
    force: bool = False,
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
        extra: the same for `assets.extra`, which servers do not read.
        model_card: Markdown for `assets.extra/model_card.md`.
        tolerance: by which floating-point outputs may differ from the Python model's, relative, and
            absolute for numbers below 1.
        force: also write a model whose rows depend on each other.

    Returns:
        The version's folder, `to/name/version`.

    Raises:
        UserError: the disk is full or cannot be written, or the model does not pass the check.
    """

    _check_arguments(signatures, name, examples)

    def write(model: Path) -> None:
        write_savedmodel(signatures, model, assets or {})
        folder = model / "assets.extra"
        folder.mkdir()
        for file, text in (extra or {}).items():
            (folder / file).write_text(text, encoding="utf-8")
        write_warmup(folder, name, "serving_default", signatures["serving_default"], examples)
        shown = {key: list(signature.shown) for key, signature in signatures.items()}
        (folder / SHOWN).write_text(json.dumps(shown) + "\n", encoding="utf-8")
        rows, seconds = _verify(signatures, model, model.parent, examples, tolerance)
        differs = [f"{name}: {line}" for name, seen in rows.items() for line in seen["differs"]]
        if differs and not force:
            raise UserError(
                "The exported model answers rows differently beside others, so that a server that joins "
                f"requests would give wrong answers: {'; '.join(differs)}. With --force it is written, and "
                "not joined."
            )
        write_rowwise(model, rows)
        cost = {"cpu_s_1000_rows": round(seconds, 4), "rows_a_request": len(examples)}
        (folder / COST).write_text(json.dumps(cost) + "\n", encoding="utf-8")
        card = model_card + _how_to_load(model) + _what_it_costs(seconds, len(examples))
        (folder / "model_card.md").write_text(card, encoding="utf-8")

    return publish(write, to, name)


def _check_arguments(
    signatures: Mapping[str, Signature], name: str, examples: Sequence[Mapping[str, Any]]
) -> None:
    if not name or name.startswith(".") or set(name) & set("/\\:"):
        raise UserError(f"A model's name is that of a folder, without / and :. Received: {name!r}.")
    if "serving_default" not in signatures:
        raise UserError(f'The signatures must have "serving_default". Received: {sorted(signatures)}.')
    if not examples:
        raise UserError("At least one example is needed: the export is checked and warmed up with them.")
    for key, signature in signatures.items():
        for row in examples:
            if not set(signature.inputs) <= set(row):
                raise UserError(
                    f"An example of {key} must have {sorted(signature.inputs)}. Received: {sorted(row)}."
                )


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
    for name, function in functions.items():
        _check_outputs(name, function.structured_outputs)
    tf.saved_model.save(module, str(path), signatures=functions)
    folder = path / "assets"
    folder.mkdir(exist_ok=True)
    for file, text in assets.items():
        (folder / file).write_text(text, encoding="utf-8")


def _check_outputs(name: str, outputs: Any) -> None:
    if not isinstance(outputs, Mapping):
        raise UserError(f"The function of {name} must return a dict of tensors by name.")
    for output, tensor in outputs.items():
        if not isinstance(tensor, (tf.Tensor, tf.TensorSpec)):
            raise UserError(
                f'The output "{output}" of {name} is a {type(tensor).__name__.removesuffix("Spec")}; servers '
                'answer with plain tensors: make it one, for example with to_tensor("").'
            )


def write_warmup(
    folder: Path, model: str, name: str, signature: Signature, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes `tf_serving_warmup_requests`: requests that TensorFlow Serving replays when it loads."""
    counts = sorted({1, len(rows)})
    write_requests(folder, model, name, [stack(rows[:count], signature.inputs) for count in counts])


def write_requests(folder: Path, model: str, name: str, requests: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes the same file of requests that are given as arrays by input."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for arrays in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model
            request.model_spec.signature_name = name
            for key, array in arrays.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def _how_to_load(model: Path) -> str:
    """What a model card says to those who load the model with plain TensorFlow."""
    saved = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
    library = [f for graph in saved.meta_graphs for f in graph.graph_def.library.function]
    if not any(_TEXT_OP.match(node.op) for function in library for node in function.node_def):
        return ""
    return (
        "\nIn Python, `import tensorflow_text` before `tf.saved_model.load`: it brings the tokenizer's ops. "
        "Stock TensorFlow Serving has them.\n"
    )


def _what_it_costs(seconds: float, rows: int) -> str:
    return (
        f"\n1,000 predictions took {seconds:.3g} s of processor time where it was exported, in requests of "
        f"{rows} rows.\n"
    )


def write_rowwise(model: Path, rows: Mapping[str, Any]) -> None:
    """Writes `rowwise.json`: which signatures answer each row as if alone, and on what that was seen.

    TensorFlow Serving ignores the file; `karpa-tf serve` joins the requests for these signatures. It belongs
    to this very graph, and says so.
    """
    digest = hashlib.sha256((model / "saved_model.pb").read_bytes()).hexdigest()
    text = json.dumps({"format": 1, "saved_model_sha256": digest, "signatures": rows}, indent=1)
    (model / "assets.extra" / "rowwise.json").write_text(text + "\n", encoding="utf-8")


def _verify(
    signatures: Mapping[str, Signature],
    model: Path,
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    tolerance: float,
) -> tuple[dict[str, Any], float]:
    """Checks what was written in a process of its own; returns what the rows of each signature are like.

    And the processor time of 1,000 of them, in seconds.
    """
    arrays: dict[str, Any] = {}
    for name, signature in signatures.items():
        inputs = stack(rows, signature.inputs)
        # As a server computes: a GPU multiplies float32 in fewer bits.
        with tf.device("/CPU:0"):
            outputs = signature(inputs)
        for kind, values in (("in", inputs), ("out", outputs)):
            arrays |= {f"{name}|{kind}|{key}": value for key, value in values.items()}
        arrays |= {
            f"{name}|scale|{key}": np.array(size, np.float32) for key, size in signature.scales.items()
        }
    np.savez(folder / "cases.npz", **arrays_file.pack(arrays))  # type: ignore[arg-type]
    # -P: the modules beside the script are not to be taken for packages of the same name.
    result = subprocess.run(
        [
            sys.executable,
            "-P",
            str(Path(__file__).with_name("verify.py")),
            str(model),
            str(folder / "cases.npz"),
            str(tolerance),
        ],
        capture_output=True,
        text=True,
        # A server has no legacy Keras, which the recipe may have asked for.
        env={**os.environ, "PYTHONPATH": "", "TF_USE_LEGACY_KERAS": "0"},
    )
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        reason = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"The exported model does not load as TensorFlow Serving loads it: {reason}.")
    report = json.loads(lines[-1])
    if not report["ok"]:
        raise UserError(f"The exported model failed its check: {'; '.join(report['problems'])}.")
    return report["rowwise"], report["cpu_s_1000_rows"]


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
    """Returns the signature's graph. It refuses inputs of other shapes than the signature's.

    Servers feed what a client sends without a look at its shape, and Keras reshapes what has as many values.
    """

    def checked(**tensors: tf.Tensor) -> Any:
        shaped = {name: tf.ensure_shape(tensors[name], spec.shape) for name, spec in signature.inputs.items()}
        return signature.function(**shaped)

    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in signature.inputs.items()}
    return tf.function(checked, autograph=False).get_concrete_function(**specs)


def describe(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Returns `{name: {"inputs": {...}, "outputs": {...}}}` with a type and a shape each, for people.

    Args:
        signatures: by name.
    """
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
