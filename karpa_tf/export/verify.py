"""Checks a SavedModel the way TensorFlow Serving loads it: a script of its own, run in a fresh process.

Imports tensorflow and tensorflow_text, nothing of karpa_tf, and calls nothing of Keras. Python's
`tf.saved_model.load` would accept models that TensorFlow Serving refuses, so this uses the v1 loader.

    python verify.py SAVEDMODEL CASES.npz

CASES.npz holds `SIGNATURE|in|NAME` and `SIGNATURE|out|NAME` arrays. Prints one JSON object:
`{"ok": bool, "problems": [sentences]}`.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # it has to run on a server without a GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)

TOLERANCE = 1e-5
# A server has no Python to call back into.
PYTHON_OPS = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}


def check(savedmodel: str, cases: str) -> list[str]:
    """Returns what is wrong with a SavedModel; an empty list if nothing is."""
    with np.load(cases, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], savedmodel)
        problems = _graph_problems(meta.graph_def)
        if problems:
            return problems  # it would not run here either
        for name in sorted({key.split("|")[0] for key in arrays}):
            if name not in meta.signature_def:
                problems.append(f"the signature {name} is missing")
                continue
            problems += _signature_problems(session, name, meta.signature_def[name], arrays)
    return problems


def _graph_problems(graph: tf.compat.v1.GraphDef) -> list[str]:
    problems = []
    functions = list(graph.library.function)
    nodes = [*graph.node, *(node for function in functions for node in function.node_def)]
    for op in sorted({node.op for node in nodes} & PYTHON_OPS):
        problems.append(f"the graph calls back into Python ({op})")
    compiled = [f.signature.name for f in functions if f.attr["_XlaMustCompile"].b]
    compiled += [node.name for node in nodes if node.attr["_XlaMustCompile"].b]
    if compiled:
        problems.append(f"{compiled[0]} is compiled by XLA, which the server has off")
    return problems


def _signature_problems(session, name, signature, arrays) -> list[str]:  # type: ignore[no-untyped-def]
    inputs = {key: arrays[f"{name}|in|{key}"] for key in signature.inputs}
    expected = {key.split("|")[2]: value for key, value in arrays.items() if key.startswith(f"{name}|out|")}
    if set(expected) != set(signature.outputs):
        return [f"{name} returns {sorted(signature.outputs)}, not {sorted(expected)}"]
    problems = []
    fetches = {key: info.name for key, info in signature.outputs.items()}

    def run(rows: int) -> dict[str, np.ndarray]:
        feed = {info.name: inputs[key][:rows] for key, info in signature.inputs.items()}
        return session.run(fetches, feed)

    rows = len(next(iter(inputs.values())))
    outputs = run(rows)
    for key, value in expected.items():
        if outputs[key].dtype.kind in "OSU":
            if outputs[key].shape != value.shape:
                problems.append(f"{name}: {key} has shape {outputs[key].shape}, not {value.shape}")
            elif [_bytes(x) for x in outputs[key].flat] != [_bytes(x) for x in value.flat]:
                problems.append(f"{name}: {key} differs from the Python model's")
        elif outputs[key].shape != value.shape or not np.allclose(
            outputs[key], value, rtol=0, atol=TOLERANCE
        ):
            problems.append(f"{name}: {key} differs from the Python model's by more than {TOLERANCE}")
    for count in {1, rows}:
        for key, value in run(count).items():
            if value.ndim == 0 or len(value) != count:
                problems.append(f"{name}: {key} loses the batch: {count} rows give {value.shape}")
    return problems


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


if __name__ == "__main__":
    found = check(sys.argv[1], sys.argv[2])
    print(json.dumps({"ok": not found, "problems": found}))
