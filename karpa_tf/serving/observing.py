"""What can be seen of a server: metrics in Prometheus' format, the access log, the log of inputs."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter as Counter_
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson
import prometheus_client
from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from karpa_tf.errors import UserError
from karpa_tf.serving.batching import RunReport
from karpa_tf.serving.canary import WATCHER
from karpa_tf.serving.log_writer import LogWriter
from karpa_tf.serving.privacy import describe_inputs
from karpa_tf.serving.registry import Registry, State

if TYPE_CHECKING:
    from karpa_tf.serving.canary import Canary
    from karpa_tf.serving.model import Model

# TensorFlow Serving's: 10 microseconds, and 1.8 times as much from one to the next, up to 40 minutes.
_MICROSECONDS = [10 * 1.8**power for power in range(33)]
_ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16_384]
_SERVING = ":tensorflow:serving:"
LABEL_MINUTES = 10
_MOST_LABELS = 1000


@dataclass
class Call:
    """A request and what became of it, without anything of its content.

    Attributes:
        entrypoint: REST or gRPC.
        api: predict, classify, ..., or "" for what is none of them.
        model, version, signature: what answered; "" and None before that is known.
        status: name of the gRPC code, also for REST.
        http_status: REST's status.
        rows: of the input.
        bytes_in, bytes_out: sizes of the bodies.
        client: the caller's address.
        start: `time.perf_counter()` when it came.
        identify: what the client is called, for a canary's share.
        canary, client_key: the canary that it was split by, and that name; None and "" where it was not.
        recent: of the version that answers.
    """

    entrypoint: str
    api: str
    client: str = ""
    model: str = ""
    version: int | None = None
    signature: str = ""
    status: str = "OK"
    http_status: int | None = None
    rows: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    start: float = 0.0
    identify: Callable[[], str] = str
    canary: Canary | None = None
    client_key: str = ""
    recent: Recent | None = None

    def found(self, model: Model) -> None:
        """Notes which version answers."""
        self.model, self.version, self.recent = model.name, model.version, model.recent


class Recent:
    """What a model, or a version of it, was like lately.

    Attributes:
        milliseconds: of its last requests.
        statuses: its requests, by status.
        seconds: of all that were answered, together.
    """

    def __init__(self) -> None:
        self.milliseconds: deque[float] = deque(maxlen=1000)
        self.statuses = Counter_[str]()
        self.seconds = 0.0
        self._labels: deque[tuple[int, dict[bytes, int]]] = deque(maxlen=LABEL_MINUTES)

    def add(self, status: str, seconds: float) -> None:
        """Counts a request."""
        self.statuses[status] += 1
        if status == "OK":
            self.milliseconds.append(seconds * 1e3)
            self.seconds += seconds

    def percentiles(self) -> tuple[float, float] | None:
        """Returns the median and the 99th percentile, if there was a request."""
        if not self.milliseconds:
            return None
        median, high = np.percentile(np.array(self.milliseconds), [50, 99])
        return float(median), float(high)

    def add_labels(self, labels: np.ndarray) -> None:
        """Counts labels of an answer."""
        minute = int(time.monotonic() // 60)
        if not self._labels or self._labels[-1][0] != minute:
            self._labels.append((minute, {}))
        counts = self._labels[-1][1]
        for label in labels.tolist():
            if label in counts or len(counts) < _MOST_LABELS:
                counts[label] = counts.get(label, 0) + 1

    def shares(self) -> dict[str, float]:
        """Returns the share of each label in the answers of the last minutes, the most frequent first."""
        first = int(time.monotonic() // 60) - LABEL_MINUTES
        total: Counter_[bytes] = Counter_()
        for minute, counts in self._labels:
            if minute > first:
                total.update(counts)
        everything = total.total()
        return {label.decode("utf-8", "replace"): n / everything for label, n in total.most_common(10)}


class Observer:
    """Counts and logs. Its methods take microseconds and are called in the event loop."""

    def __init__(
        self, registry: Registry, writer: LogWriter, access_log: str = "", request_log: str = ""
    ) -> None:
        self._writer = writer
        self._metrics = prometheus_client.CollectorRegistry()
        prometheus_client.disable_created_metrics()
        prometheus_client.ProcessCollector(registry=self._metrics)

        def histogram(name: str, help: str, labels: list[str], buckets: Sequence[float]) -> Histogram:
            return Histogram(_SERVING + name, help, labels, buckets=buckets, registry=self._metrics)

        self._count = Counter(
            _SERVING + "request_count", "Requests.", ["model_name", "status"], registry=self._metrics
        )
        self._latency = histogram(
            "request_latency",
            "Microseconds from request to answer.",
            ["model_name", "API", "entrypoint"],
            _MICROSECONDS,
        )
        self._runtime = histogram(
            "runtime_latency",
            "Microseconds in TensorFlow, a run.",
            ["model_name", "API", "runtime"],
            _MICROSECONDS,
        )
        self._queuing = histogram(
            "batching_session:queuing_latency",
            "Microseconds a request waits for the model.",
            ["model_name"],
            _MICROSECONDS,
        )
        self._batch_rows = histogram("batch_rows", "Rows a run.", ["model_name"], _ROWS)
        self._batch_requests = histogram("batch_requests", "Requests a run.", ["model_name"], _ROWS)
        self._metrics.register(_Versions(registry, writer))
        self._access = _open(access_log, "access_log")
        self._inputs = _open(request_log, "request_log")
        # Labels are looked up once; the clients' names of models do not become labels.
        self._children: dict[tuple[Any, ...], Any] = {}
        self.recent: dict[str, Recent] = defaultdict(Recent)

    def finished(self, call: Call) -> None:
        """Records a request."""
        seconds = time.perf_counter() - call.start
        if call.api:
            self._child(self._count, call.model, call.status).inc()
            if call.api not in ("status", "metadata"):
                if call.status == "OK":
                    self.recent[call.model].add(call.status, seconds)
                if call.recent is not None:
                    call.recent.add(call.status, seconds)
                if call.canary and call.version is not None and call.status != "OK":
                    call.canary.failed(call.client_key, call.version)
            if call.status == "OK":
                self._child(self._latency, call.model, call.api, call.entrypoint).observe(seconds * 1e6)
        if self._access:
            line: dict[str, Any] = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "entrypoint": call.entrypoint,
                "api": call.api or "other",
                "status": call.status,
                "http_status": call.http_status,
                "model": call.model,
                "version": call.version,
                "signature": call.signature,
                "rows": call.rows,
                "bytes_in": call.bytes_in,
                "bytes_out": call.bytes_out,
                "milliseconds": round(seconds * 1e3, 3),
                "client": call.client,
            }
            self._write(
                self._access, lambda: {key: value for key, value in line.items() if value not in (None, "")}
            )

    def answered(self, call: Call, outputs: Mapping[str, np.ndarray]) -> None:
        """Counts the labels of an answer, for the status page."""
        labels = outputs.get("label")
        if labels is not None and labels.dtype == object and labels.ndim == 1 and len(labels) <= _MOST_LABELS:
            self.recent[call.model].add_labels(labels)
            if call.recent is not None:
                call.recent.add_labels(labels)
            if call.canary and call.version is not None and len(labels):
                call.canary.answered(call.client_key, call.version, labels[0])

    def ran(self, model: str, report: RunReport) -> None:
        """Records a run of a model."""
        self._child(self._runtime, model, "Predict", "TF2").observe(report.seconds * 1e6)
        self._child(self._batch_rows, model).observe(report.rows)
        self._child(self._batch_requests, model).observe(report.requests)
        queuing = self._child(self._queuing, model)
        for seconds in report.waited:
            queuing.observe(seconds * 1e6)

    def received(self, call: Call, arrays: Mapping[str, np.ndarray], size: int = 0) -> None:
        """Writes the inputs of a request, of some bytes unless they are the body's, to the opt-in log.

        Those of a watcher are left out.
        """
        if self._inputs and call.identify() != WATCHER:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"time": time, "model": call.model, "version": call.version, "signature": call.signature}
            strings = {name: array for name, array in arrays.items() if array.dtype == object}
            # Numbers do not stay in memory until the line is written.
            numbers = describe_inputs({name: arrays[name] for name in arrays if name not in strings})
            self._write(
                self._inputs,
                lambda: line | {"inputs": numbers | describe_inputs(strings)},
                (size or call.bytes_in) + sum(array.nbytes for array in strings.values()) if strings else 0,
            )

    def _write(self, file: IO[bytes], make: Callable[[], dict[str, Any]], holds: int = 0) -> None:
        self._writer.write(file, lambda: orjson.dumps(make()) + b"\n", holds)

    def metrics(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        text = prometheus_client.generate_latest(self._metrics)
        # TensorFlow Serving's counters do not end in _total.
        return re.sub(rb"(:tensorflow:serving:request_count)_total\b", rb"\1", text)

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        if key not in self._children:
            self._children[key] = metric.labels(*labels)
        return self._children[key]


class _Versions:
    """What is counted only when somebody asks: versions and the queues before them."""

    def __init__(self, registry: Registry, writer: LogWriter) -> None:
        self._registry = registry
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "karpa_tf_log_lines_dropped", "Log lines left out, their reader being slow.", self._writer.dropped
        )
        versions = GaugeMetricFamily(
            _SERVING + "model_versions", "Versions in a state.", labels=["model_name", "state"]
        )
        queued = GaugeMetricFamily(
            _SERVING + "queued_rows", "Rows that wait for the model.", labels=["model_name", "signature"]
        )
        joined = GaugeMetricFamily(
            _SERVING + "signature_joined",
            "1: requests are joined, since the export showed that each row is answered as if alone, or since "
            "--enable_batching asks for it.",
            labels=["model_name", "version", "signature", "reason"],
        )
        requests = CounterMetricFamily(
            "karpa_tf_version_requests", "Requests of a version.", labels=["model_name", "version", "status"]
        )
        seconds = CounterMetricFamily(
            "karpa_tf_version_seconds",
            "Seconds of the requests that a version answered, together.",
            labels=["model_name", "version"],
        )
        canary = ["model_name", "version"]
        share = GaugeMetricFamily(
            "karpa_tf_canary_share", "Share of the clients that a canary answers.", labels=canary
        )
        stopped = GaugeMetricFamily(
            "karpa_tf_canary_stopped", "1: a canary was seen to be worse, and answers nobody.", labels=canary
        )
        for served in self._registry.models():
            if one := served.canary:
                share.add_metric([served.name, str(one.version)], 0.0 if one.stopped else one.share)
                stopped.add_metric([served.name, str(one.version)], bool(one.stopped))
            states = [State.Name(version.state) for version in served.versions.values()]
            for state in State.keys()[1:]:
                versions.add_metric([served.name, state], states.count(state))
            rows: dict[str, int] = defaultdict(int)
            for version in list(served.versions.values()):
                if model := version.model:
                    number = str(version.number)
                    for status, count in model.recent.statuses.copy().items():
                        requests.add_metric([served.name, number, status], count)
                    seconds.add_metric([served.name, number], model.recent.seconds)
                    for name, signature in model.signatures.items():
                        rows[name] += signature.batcher.waiting_rows
                        labels = [served.name, number, name, signature.joining.reason]
                        joined.add_metric(labels, int(signature.joining.joined))
            for name, waiting in rows.items():
                queued.add_metric([served.name, name], waiting)
        yield from (versions, queued, joined, requests, seconds, share, stopped)


def _open(path: str, flag: str) -> IO[bytes] | None:
    if not path:
        return None
    if path == "-":
        return sys.stderr.buffer
    try:
        return Path(path).open("ab", buffering=0)
    except OSError as error:
        raise UserError(f"--{flag}: {path} cannot be written: {error.strerror}.") from None
