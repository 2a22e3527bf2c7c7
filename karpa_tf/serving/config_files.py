"""TensorFlow Serving's configuration files, in protobuf's text form.

models.config is read with the official proto. MonitoringConfig and BatchingParameters are not in the
tensorflow-serving-api package, so their messages are declared here with the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from karpa_tf.errors import UserError
from karpa_tf.serving.batching import BatchLimits

_FIELD = descriptor_pb2.FieldDescriptorProto


def _declare() -> Mapping[str, Any]:
    """Declares the two messages, and returns their classes by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="karpa_tf/serving/config.proto", package="karpa_tf.serving", syntax="proto3"
    )
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)

    def message(name: str, **kinds: Any) -> None:
        declared = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(kinds.items(), start=1):
            added = declared.field.add(name=field, number=number, label=_FIELD.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, kind
            else:
                added.type = kind

    wrapped = ".google.protobuf."
    message("PrometheusConfig", enable=_FIELD.TYPE_BOOL, path=_FIELD.TYPE_STRING)
    message("MonitoringConfig", prometheus_config=".karpa_tf.serving.PrometheusConfig")
    message(
        "BatchingParameters",
        max_batch_size=wrapped + "Int64Value",
        batch_timeout_micros=wrapped + "Int64Value",
        max_enqueued_batches=wrapped + "Int64Value",
        num_batch_threads=wrapped + "Int64Value",
        thread_pool_name=wrapped + "StringValue",
        allowed_batch_sizes=_FIELD.TYPE_INT64,
        pad_variable_length_inputs=_FIELD.TYPE_BOOL,
        enable_large_batch_splitting=wrapped + "BoolValue",
        max_execution_batch_size=wrapped + "Int64Value",
    )
    file.message_type[-1].field[5].label = _FIELD.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    dependency = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(dependency)
    pool.Add(dependency)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"karpa_tf.serving.{name}"))
        for name in ("MonitoringConfig", "BatchingParameters")
    }


MESSAGES = _declare()


def _parse(path: str, flag: str, message: Any) -> Any:
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), message)
    except OSError as error:
        raise UserError(f"--{flag}: {path} cannot be read: {error.strerror}.") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        kind = message.DESCRIPTOR.name
        raise UserError(f"--{flag}: {path} is not a {kind} in protobuf's text form: {error}.") from None


def read_models(path: str) -> model_server_config_pb2.ModelServerConfig:
    """Reads a models.config.

    Raises:
        UserError: it cannot be read or parsed.
    """
    return _parse(path, "model_config_file", model_server_config_pb2.ModelServerConfig())


DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


def read_monitoring(path: str) -> str:
    """Returns the path of the metrics, or "" if they are off; without a file they are on.

    Raises:
        UserError: the file cannot be read or parsed.
    """
    if not path:
        return DEFAULT_METRICS_PATH
    config = _parse(path, "monitoring_config_file", MESSAGES["MonitoringConfig"]()).prometheus_config
    if not config.enable:
        return ""
    return config.path or DEFAULT_METRICS_PATH


_LEAST = {
    "max_batch_size": 1,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 1,
    "num_batch_threads": 1,
    "max_execution_batch_size": 1,
}


def read_batching(path: str, join: bool | None, cores: int) -> BatchLimits:
    """Returns the limits of batches and queues.

    Args:
        path: a BatchingParameters file, or "" for the defaults.
        join: `--enable_batching`.
        cores: how many runs go on side by side where requests are not joined.

    Raises:
        UserError: the file cannot be read or parsed, or holds a number that makes no sense.
    """
    defaults = BatchLimits()
    if not path:
        return BatchLimits(join=join, lone_threads=cores)
    flag = "batching_parameters_file"
    given = _parse(path, flag, MESSAGES["BatchingParameters"]())
    for name, least in _LEAST.items():
        if given.HasField(name) and getattr(given, name).value < least:
            number = getattr(given, name).value
            raise UserError(f"--{flag}: {name} must be at least {least}. Received: {number}.")
    rows = given.max_batch_size.value or defaults.rows
    request_rows = given.max_batch_size.value or defaults.request_rows
    if given.enable_large_batch_splitting.value:
        # As there, what is joined is then of this size; a larger request still runs by itself.
        rows = given.max_execution_batch_size.value or rows
    return BatchLimits(
        join,
        rows=rows,
        request_rows=request_rows,
        waiting_rows=given.max_enqueued_batches.value * rows or defaults.waiting_rows,
        threads=given.num_batch_threads.value or defaults.threads,
        lone_threads=given.num_batch_threads.value or cores,
    )
