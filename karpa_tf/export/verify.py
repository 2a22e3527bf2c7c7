"""Checks a SavedModel the way TensorFlow Serving loads it: a script of its own, run in a fresh process.

Imports tensorflow and tensorflow_text, nothing of karpa_tf, and calls nothing of Keras. Python's
`tf.saved_model.load` would accept models that TensorFlow Serving refuses, so this uses the v1 loader.

    python verify.py SAVEDMODEL CASES.npz [TOLERANCE]

CASES.npz holds `SIGNATURE|in|NAME`, `SIGNATURE|out|NAME` and perhaps `SIGNATURE|scale|NAME` arrays, as
`arrays_file.pack` makes them. Prints one JSON object: `{"ok": bool, "problems": [sentences], "rowwise":
{signature: what its rows were like}, "cpu_s_1000_rows": seconds}`, the last of serving_default.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from typing import Any

if __name__ == "__main__":  # a process that imports this may want its GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # it has to run on a server without one
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)


def _beside(name: str) -> Any:
    """Loads a module that lies beside this script, without the package that both are of."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


arrays_file, rowwise = _beside("arrays_file"), _beside("rowwise")

# Processor time that predictions are measured for, at least, and most of them.
_MEASURED_SECONDS, _MOST = 0.1, 50

# A server has no Python to call back into.
PYTHON_OPS = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}


def check(
    savedmodel: str, cases: str, tolerance: float = 1e-5
) -> tuple[list[str], dict[str, Any], float | None]:
    """Returns what is wrong with a SavedModel, if anything is, what its rows are like, and their cost."""
    with np.load(cases, allow_pickle=False) as file:
        arrays = arrays_file.unpack({name: file[name] for name in file.files})
    rows: dict[str, Any] = {}
    cost = None
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], savedmodel)
        problems = _graph_problems(meta.graph_def)
        if problems:
            return problems, rows, cost  # it would not run here either
        for name in sorted({key.split("|")[0] for key in arrays}):
            if name not in meta.signature_def:
                problems.append(f"the signature {name} is missing")
                continue
            signature = meta.signature_def[name]
            found = _signature_problems(session, name, signature, arrays, tolerance)
            problems += found
            if not found:
                rows[name] = _rows(session, name, signature, arrays, tolerance)
                if name == "serving_default":
                    cost = _cost(session, signature, arrays)
    return problems, rows, cost


def _cost(session, signature, arrays) -> float:  # type: ignore[no-untyped-def]
    """Returns seconds of processor time, of all threads, for 1,000 rows in requests of all the cases."""
    feed = {info.name: arrays[f"serving_default|in|{key}"] for key, info in signature.inputs.items()}
    fetches = {key: info.name for key, info in signature.outputs.items()}
    begin, requests = time.process_time(), 0
    while requests < _MOST and (requests < 3 or time.process_time() - begin < _MEASURED_SECONDS):
        session.run(fetches, feed)
        requests += 1
    return 1000 * (time.process_time() - begin) / (requests * len(next(iter(feed.values()))))


def _rows(session, name, signature, arrays, tolerance) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    fetches = {key: info.name for key, info in signature.outputs.items()}

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = {signature.inputs[key].name: value for key, value in inputs.items()}
        return {key: arrays_file.comparable(value) for key, value in session.run(fetches, feed).items()}

    def open_axes(infos: Any) -> dict[str, list[int]]:
        shapes = {key: [dim.size for dim in info.tensor_shape.dim] for key, info in infos.items()}
        found = {
            key: [axis for axis in range(1, len(shape)) if shape[axis] < 0] for key, shape in shapes.items()
        }
        return {key: axes for key, axes in found.items() if axes}

    inputs = {key: arrays[f"{name}|in|{key}"] for key in signature.inputs}
    return rowwise.compare(run, inputs, open_axes(signature.inputs), open_axes(signature.outputs), tolerance)


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


def _signature_problems(session, name, signature, arrays, tolerance) -> list[str]:  # type: ignore[no-untyped-def]
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
        got = arrays_file.comparable(outputs[key])
        if got.shape != value.shape:
            problems.append(f"{name}: {key} has shape {got.shape}, not {value.shape}")
        elif got.dtype.kind in "OSU":
            if list(got.flat) != list(value.flat):
                problems.append(f"{name}: {key} differs from the Python model's")
        elif got.dtype.kind not in "fc":
            if not np.array_equal(got, value):
                problems.append(f"{name}: {key} differs from the Python model's")
        else:
            # Small numbers by their own scale, and large ones by theirs; what is no number must be none here.
            finite = np.abs(value[np.isfinite(value)])
            scale = float(arrays.get(f"{name}|scale|{key}", 0.0))
            least = tolerance * min(float(finite.max(initial=scale)), 1.0)
            if not np.allclose(got, value, rtol=tolerance, atol=least, equal_nan=True):
                with np.errstate(invalid="ignore"):
                    most = np.nanmax(np.abs(got.astype(np.float64) - value))
                problems.append(
                    f"{name}: {key} differs from the Python model's by up to {most:.2g}, more than "
                    f"{tolerance:g}"
                )
    for count in {1, rows}:
        for key, value in run(count).items():
            if value.ndim == 0 or len(value) != count:
                problems.append(f"{name}: {key} loses the batch: {count} rows give {value.shape}")
    return problems


if __name__ == "__main__":
    found, seen, cost = check(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
    print(json.dumps({"ok": not found, "problems": found, "rowwise": seen, "cpu_s_1000_rows": cost}))
