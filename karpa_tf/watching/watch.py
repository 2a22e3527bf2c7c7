"""`karpa-tf watch`: reads lines, has them labelled, and says what becomes of the shares.

A line counts as done when the state is written: before that, what it raised has been said. So a watcher that
is killed counts nothing twice and loses nothing; of what it said last, it may say something again.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError, write_whole
from karpa_tf.judging.reference import REFERENCE, Reference, read_reference, reference_file, scores_of
from karpa_tf.watching.lines import File, Line, Lines, Skipped, StandardInput, rows_of, shown
from karpa_tf.watching.models import AT_ONCE, Model, check_classifier, check_outputs
from karpa_tf.watching.options import WatchOptions
from karpa_tf.watching.outputs import Metrics, Webhook, read_state
from karpa_tf.watching.page import page
from karpa_tf.watching.watcher import Watcher


def run(
    model: Model,
    name: str,
    source: str,
    options: WatchOptions,
    say: Callable[[Mapping[str, Any]], None],
    *,
    reference: Reference | None = None,
    scalars: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Watcher:
    """Watches until the lines end.

    Args:
        model: that labels them.
        name: of it, for people.
        source: a file; empty or `-`: standard input.
        options: of the command.
        say: is given what there is to say: baseline, reports, alarms, their ends.
        reference: what the model's held-out rows were like.
        scalars: writes a report's figures under the number of its text.

    Returns:
        The watcher at the end.

    Raises:
        UserError: the model is no classifier, the file is not there, or the state is another watcher's.
    """
    check_classifier(model, name)
    watcher, place = Watcher(options, model.labels, reference), None
    if options.state and (found := read_state(options.state)):
        watcher.restore(found["watcher"])
        place = found["place"]
    if reference is None:
        _note(
            f"{name} has no reference.json of held-out rows: shares are those of the predicted labels, not "
            "corrected, and input is not watched; export again, or give --reference."
        )
    lines: Lines = StandardInput() if source in ("", "-") else File(source, options.follow, place)
    webhook = Webhook(options.webhook) if options.webhook else None
    with _serving(options, name) as metrics:
        try:
            _watch(lines, model, name, watcher, options, say, webhook, metrics, scalars)
        finally:
            if webhook:
                webhook.close()
                if webhook.dropped:
                    _note(f"Alarms that {webhook.url} has not taken: {webhook.dropped}.")
            _publish(watcher, options, metrics, webhook)
            _note(_end(watcher, options))
    return watcher


def _watch(
    lines: Lines,
    model: Model,
    name: str,
    watcher: Watcher,
    options: WatchOptions,
    say: Callable[[Mapping[str, Any]], None],
    webhook: Webhook | None,
    metrics: Metrics,
    scalars: Callable[[int, Mapping[str, float]], None] | None,
) -> None:
    _publish(watcher, options, metrics, webhook)
    noted = set(watcher.skipped)
    while read := lines.read():
        while lines.notes:
            _note(lines.notes.pop(0))
        for some, place in _parts(read, model, watcher, options):
            answers = model.ask(some) if some else []
            for row, outputs in zip(some, answers, strict=True):
                if outputs is None:
                    watcher.skip("refused by the model")
                    continue
                check_outputs(outputs, name)
                score = _score(outputs, watcher.reference, name)
                for event in watcher.add(shown(row, list(model.texts)), outputs["label"], score):
                    say(event)
                    if webhook and event["event"] in ("alarm", "over"):
                        webhook.post({"model": name, **event})
                    if scalars and event["event"] == "report":
                        scalars(event["text"], _figures(event))
            for reason in set(watcher.skipped) - noted:
                _note(f"Lines are skipped and counted. The first reason of its kind: {reason}.")
            noted = set(watcher.skipped)
            if options.state:
                state = {"format": 1, "place": place, "watcher": watcher.state()}
                write_whole(options.state, json.dumps(state).encode())
            _publish(watcher, options, metrics, webhook)


def _end(watcher: Watcher, options: WatchOptions) -> str:
    """Returns a sentence on all that was read."""
    said = f"Texts: {watcher.texts:,}; alarms: {watcher.alarms.total()}"
    if watcher.skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(watcher.skipped.items()))
        said += f"; lines without a text: {watcher.skipped.total():,} ({reasons})"
    if watcher.texts < options.baseline:
        said += f". The baseline of {options.baseline:,} texts was not reached, so there could be no alarm"
    return f"{said}."


def _parts(
    read: list[Line], model: Model, watcher: Watcher, options: WatchOptions
) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """Yields the rows of some lines, and the place behind these; lines without rows are counted."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read, 1):
        try:
            rows += rows_of(line.text, model.texts, options.model_name)
        except Skipped as reason:
            watcher.skip(str(reason))
        if len(rows) >= AT_ONCE or number == len(read):
            yield rows, line.place
            rows = []


def _score(outputs: Mapping[str, Any], reference: Reference | None, name: str) -> float:
    score = reference.score if reference else "uncertainty"
    try:
        return float(scores_of({key: [value] for key, value in outputs.items()}, score)[0])
    except KeyError:
        raise UserError(
            f"The reference is of a classifier that gives {score}, and {name} gives {', '.join(outputs)}; "
            "give --reference of the model that is asked."
        ) from None


def _figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of a report by TensorBoard's tag."""
    found = {f"watch/level/{kind}": level for kind, level in report["levels"].items()}
    for label, row in report["shares"].items():
        found |= {f"watch/{key}/{label}": row[key] for key in ("share", "low", "high")}
    return found


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _publish(watcher: Watcher, options: WatchOptions, metrics: Metrics, webhook: Webhook | None) -> None:
    """Makes what the page and the metrics show; they read it in threads of their own."""
    if not (options.metrics_port or options.metrics_file) or not (watcher.texts or watcher.skipped):
        return
    metrics.snapshot = {
        "report": watcher.report(),
        "reports": list(watcher.reports),
        "last": list(watcher.last),
        "texts": watcher.texts,
        "skipped": dict(watcher.skipped),
        "alarms": dict(watcher.alarms),
        "baseline": f"text {watcher.texts:,} of {options.baseline:,}",
        "dropped": webhook.dropped if webhook else 0,
        "time": time.time(),
    }
    if options.metrics_file:
        write_whole(options.metrics_file, metrics.text())


@contextmanager
def _serving(options: WatchOptions, name: str) -> Iterator[Metrics]:
    """Serves the page and the metrics, where a port is given."""
    metrics = Metrics(name)
    if not options.metrics_port:
        yield metrics
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonce = secrets.token_urlsafe(16)
            if self.path == "/metrics":
                body, kind = metrics.text(), "text/plain; version=0.0.4; charset=utf-8"
            elif self.path == "/":
                body, kind = page(name, metrics.snapshot, nonce).encode(), "text/html; charset=utf-8"
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header(
                "Content-Security-Policy",
                f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'",
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        server = ThreadingHTTPServer((options.host, options.metrics_port), Handler)
    except OSError as error:
        raise UserError(
            f"--metrics_port {options.metrics_port} of {options.host} cannot be used: {error.strerror}."
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
    _note(f"http://{options.host}:{options.metrics_port}/ is the page, and /metrics Prometheus'.")
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()


def format_event(event: Mapping[str, Any]) -> list[str]:
    """Returns what is said, in lines for people."""
    shares = "  ".join(
        f"{label} {row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        for label, row in sorted(event["shares"].items(), key=lambda item: -item[1]["share"])[:8]
    )
    at = f"text {event['text']:,}"
    if event["event"] == "alarm":
        begin = f"ALARM at {at}: {event['kind']}, {event['direction']}, since about text {event['began']:,}"
        return [begin, f"  {shares}", *(f"  {row['label']}: {row['text']}" for row in event["samples"])]
    said = {
        "baseline": f"baseline of {event['text']:,} texts",
        "over": f"{at}: the alarm on {event.get('kind')} is over",
    }
    lines = [f"{said.get(event['event'], at)}  {shares}"]
    if "upper_tenth" in event:
        high = f"{event['upper_tenth']:.0%} of them are less sure than nine tenths of the held-out rows"
        lines.append(f"  {high} (10% if they are alike)")
    return lines


def read_reference_of(path: str, folder: Path, signature: str) -> Reference | None:
    """Returns what held-out rows of a model were like; None: it does not say.

    Args:
        path: of `--reference`: a file, or a model's folder; empty: the model's own.
        folder: of the model.
        signature: of the model, that is asked.

    Raises:
        UserError: `path` names none, or it cannot be read.
    """
    place = Path(path or folder)
    extra = place / "assets.extra"
    for file in (place, extra / reference_file(signature), extra / REFERENCE, place / "assets" / REFERENCE):
        if file.suffix == ".json" and file.is_file():
            return read_reference(file)
    if path:
        raise UserError(
            f"--reference takes a {REFERENCE}, or the folder of a model that has one. Received: {path}."
        )
    return None
