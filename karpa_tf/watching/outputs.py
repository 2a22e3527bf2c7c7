"""Where what a watcher says goes to: Prometheus' metrics, a webhook, a file of state."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine

# Alarms that wait for the webhook, tries of each, seconds of a try, and seconds before the second try, which
# double.
_WAITING, _TRIES, _SECONDS, _PAUSE = 100, 5, 10.0, 1.0
# Seconds that the last alarms get when the watcher ends.
_LAST_WORDS = 20.0
_NAME = "karpa_tf_watch_"


def read_state(path: str | Path) -> dict[str, Any] | None:
    """Returns what was written as state; None: nothing yet.

    Raises:
        UserError: it is something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["format"] != 1:
            raise ValueError(f"its format is {found['format']}")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"--state: {path} is not what a watcher wrote ({reason}); give another file, or delete it to "
            "begin anew."
        ) from None


class Webhook(InALine):
    """Posts alarms to a URL, in a thread; tries again for a while, then drops the alarm and counts it.

    Args:
        url: that takes JSON.
        pause: seconds before the second try; each further one waits twice as long.

    Attributes:
        sent: alarms that the other side has taken.
        dropped: those that it has not.
    """

    def __init__(self, url: str, pause: float = _PAUSE) -> None:
        self.url, self.sent, self.dropped = url, 0, 0
        self._pause = pause
        self._alarms: queue.Queue[Mapping[str, Any]] = queue.Queue(_WAITING)
        self._stop = threading.Event()
        threading.Thread(target=self._work, name="webhook", daemon=True).start()

    def post(self, alarm: Mapping[str, Any]) -> None:
        """Has an alarm posted; returns at once."""
        try:
            self._alarms.put_nowait(alarm)
        except queue.Full:
            self.dropped += 1

    def close(self, seconds: float = _LAST_WORDS) -> None:
        """Waits for the alarms that wait; those that are left are dropped.

        Args:
            seconds: at most.
        """
        end = time.monotonic() + seconds
        with self._alarms.all_tasks_done:
            while self._alarms.unfinished_tasks and (left := end - time.monotonic()) > 0:
                self._alarms.all_tasks_done.wait(left)
            self.dropped += self._alarms.unfinished_tasks
        self._stop.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            alarm = self._alarms.get()
            taken = self._try(json.dumps(alarm).encode())
            if not self._stop.is_set():
                self.sent += taken
                self.dropped += not taken
            self._alarms.task_done()

    def _try(self, body: bytes) -> bool:
        request = Request(self.url, body, {"Content-Type": "application/json"})
        for number in range(_TRIES):
            if number and self._stop.wait(self._pause * 2 ** (number - 1)):
                break
            try:
                with urlopen(request, timeout=_SECONDS):
                    return True
            except (OSError, ValueError):  # refused, too late, or no HTTP
                pass
            except Exception:  # http.client has errors of its own, and none may end the thread
                pass
        return False


# --- Prometheus -----------------------------------------------------------------------------------


class Metrics:
    """Gauges and counters of a watcher's last state, for Prometheus.

    Args:
        model: that is watched, as the label `model` of all of them.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.snapshot: Mapping[str, Any] = {}
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Returns all of them in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yields them; Prometheus' library asks for them."""
        now = self.snapshot
        if not now:
            return

        def family(
            kind: Any, name: str, help: str, labels: list[str], rows: list[tuple[list[str], float]]
        ) -> Metric:
            found = kind(_NAME + name, help, labels=["model", *labels])
            for values, number in rows:
                found.add_metric([self._model, *values], number)
            return found

        gauge, counter, report = GaugeMetricFamily, CounterMetricFamily, now["report"]
        for name, said in (
            ("share", "Corrected share of a label in the window"),
            ("low", "Lower end of the share's 95 % interval"),
            ("high", "Upper end of the share's 95 % interval"),
            ("normal", "Share of a label in the baseline"),
        ):
            rows = [([label], row[name]) for label, row in report["shares"].items() if row[name] is not None]
            title = name if name == "share" else f"share_{name}"
            yield family(gauge, title, f"{said}.", ["label"], rows)
        levels = [([kind], level) for kind, level in report["levels"].items()]
        yield family(gauge, "level", "Largest CUSUM sum as a part of its bound.", ["kind"], levels)
        on = [([kind], float(bool(names))) for kind, names in report["on"].items()]
        yield family(gauge, "alarm", "1: an alarm is on.", ["kind"], on)
        yield family(gauge, "last_text_seconds", "Unix time of the last text.", [], [([], now["time"])])
        yield family(counter, "texts", "Texts.", [], [([], now["texts"])])
        alarms = [([kind], now["alarms"].get(kind, 0)) for kind in report["levels"]]
        yield family(counter, "alarms", "Alarms.", ["kind"], alarms)
        skipped = [([reason], count) for reason, count in sorted(now["skipped"].items())]
        yield family(counter, "skipped_lines", "Lines without a text.", ["reason"], skipped)
        yield family(
            counter, "webhook_dropped", "Alarms that the webhook did not take.", [], [([], now["dropped"])]
        )
