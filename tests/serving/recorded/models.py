"""The models that the recorded cases ask: `python -m tests.serving.recorded.models FOLDER` writes them.

Names of functions and inputs are those of the recording, since the metadata repeats them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

VERSIONS = {"half_plus_two": (1, 2, 3), "text": (1,), "multi": (1,), "types": (1,), "examples": (1,)}

_TYPES = {
    "serving_default": tf.float64,
    "f16": tf.float16,
    "bf16": tf.bfloat16,
    "i8": tf.int8,
    "i16": tf.int16,
    "i32": tf.int32,
    "i64": tf.int64,
    "u8": tf.uint8,
    "u16": tf.uint16,
    "u32": tf.uint32,
    "u64": tf.uint64,
    "bool": tf.bool,
    "c64": tf.complex64,
}


def write_models(folder: Path) -> None:
    """Writes every model, and the two configurations of the server."""
    for version in VERSIONS["half_plus_two"]:
        _save(folder / "half_plus_two" / str(version), _half_plus(version + 1.0))
    _save(folder / "text" / "1", _text())
    _write_warmup(folder / "text" / "1" / "assets.extra")
    bias = tf.Variable(0.0, name="bias")
    _save(folder / "multi" / "1", _multi(bias), bias=bias)
    _save(folder / "types" / "1", {name: _same(dtype) for name, dtype in _TYPES.items()})
    _save(folder / "examples" / "1", _examples())
    (folder / "models.config").write_text(_models_config(folder), encoding="utf-8")
    text = 'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }\n'
    (folder / "monitoring.config").write_text(text, encoding="utf-8")


def _save(path: Path, signatures: dict[str, Any], **state: Any) -> None:
    module = tf.Module()
    for name, value in {**state, **{f"signature_{name}": f for name, f in signatures.items()}}.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(path), signatures=signatures)


def _function(body: Callable[..., dict[str, tf.Tensor]], **inputs: tuple[list[int | None], tf.DType]) -> Any:
    specs = [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in inputs.items()]
    return tf.function(body, input_signature=specs, autograph=False)


def _half_plus(offset: float) -> dict[str, Any]:
    row = ([None], tf.float32)
    return {
        "serving_default": _function(lambda x: {"y": x * 0.5 + offset}, x=row),
        "matrix": _function(lambda m: {"rows": m * 0.5 + offset}, m=([None, 2], tf.float32)),
        "total": _function(lambda x: {"total": tf.reduce_sum(x * 0.5 + offset)}, x=row),
        "scale": _function(lambda x, factor: {"y": x * factor + offset}, x=row, factor=([], tf.float32)),
    }


def _text() -> dict[str, Any]:
    row = ([None], tf.string)

    def both(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"upper": tf.strings.upper(text), "length": tf.cast(tf.strings.length(text), tf.int64)}

    return {
        "serving_default": _function(both, text=row),
        "raw": _function(lambda text: {"text_bytes": tf.strings.join([text, "!"])}, text=row),
    }


def _multi(bias: tf.Variable) -> dict[str, Any]:
    def both(a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        number = tf.cast(b, tf.float32)
        return {"sum": tf.reduce_sum(a, axis=1) + number + bias, "pair": a * number[:, None]}

    return {
        "serving_default": _function(both, a=([None, 2], tf.float32), b=([None], tf.int64)),
        "only_b": _function(lambda b: {"twice": b * 2}, b=([None], tf.int64)),
    }


def _same(dtype: tf.DType) -> Any:
    return _function(lambda v: {"out": tf.identity(v)}, v=([None], dtype))


def _examples() -> dict[str, Any]:
    """Of serialized examples, whose feature x is 0 if it is not there."""
    row = ([None], tf.string)

    def x(inputs: tf.Tensor) -> tf.Tensor:
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32, [0.0])})["x"][:, 0]

    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        value = x(inputs)
        classes = tf.tile(tf.constant([["low", "high"]]), [tf.shape(value)[0], 1])
        return {"classes": classes, "scores": tf.stack([1.0 - value, value], axis=1)}

    return {
        "serving_default": _function(lambda inputs: {"outputs": x(inputs) * 0.5 + 2.0}, inputs=row),
        "classify": _function(classify, inputs=row),
    }


def _write_warmup(folder: Path) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "text"
    request.model_spec.signature_name = "serving_default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(["warm", "up"]))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())


def _models_config(folder: Path) -> str:
    """Version 3 of half_plus_two is on the disk and not asked for."""
    more = {
        "half_plus_two": "model_version_policy { specific { versions: 1 versions: 2 } } "
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    }
    entries = [
        f'config {{ name: "{name}" base_path: "{folder}/{name}" model_platform: "tensorflow" '
        f"{more.get(name, '')} }}"
        for name in VERSIONS
    ]
    return "model_config_list {\n" + "\n".join(entries) + "\n}\n"


if __name__ == "__main__":
    write_models(Path(sys.argv[1]).absolute())
