"""What a watcher knows: a window of labelled texts, the normal shares, and two alarms. No input or output."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.judging.reference import Reference
from karpa_tf.lines import InALine
from karpa_tf.privacy import redact
from karpa_tf.watching.alarms import Cusum, InputAlarm, ShareAlarm, cell_of, count_places
from karpa_tf.watching.options import WatchOptions
from karpa_tf.watching.shares import Intervals

OTHER = "(other)"
# Reports and alarms that the page shows, and characters of a text that are kept.
_REPORTS, _LAST, _LONGEST = 300, 20, 200


class _Text(NamedTuple):
    number: int
    label: int
    cell: int
    place: float
    text: str


class Watcher(InALine):
    """Counts labels of texts, one after the other, and says when they are no longer what they were.

    The first `baseline` texts say which shares are normal, and which places their scores have among those of
    the reference's held-out rows.

    Args:
        options: window, baseline, bounds.
        labels: of the classifier; none: those of the baseline, and one for all others.
        reference: what its held-out rows were like; None: shares are not corrected, and input is not watched.

    Attributes:
        texts: how many there were.
        skipped: lines without a text, by reason.
        alarms: how many there were, by kind.
    """

    def __init__(
        self, options: WatchOptions, labels: Sequence[str] = (), reference: Reference | None = None
    ) -> None:
        self._options, self.reference = options, reference
        self._fixed = bool(reference or labels)
        self.labels = list(reference.labels if reference else labels)
        self.texts, self.skipped, self.alarms = 0, Counter[str](), Counter[str]()
        self._window: deque[_Text] = deque(maxlen=options.window)
        self._baseline, self._places = Counter[int](), Counter[int]()
        self._shares: ShareAlarm | None = None
        self._input: InputAlarm | None = None
        self._intervals: Intervals | None = None
        self.reports: deque[dict[str, Any]] = deque(maxlen=_REPORTS)
        self.last: deque[dict[str, Any]] = deque(maxlen=_LAST)

    # --- A text

    def add(self, text: str, label: str, score: float) -> list[dict[str, Any]]:
        """Counts a text; returns what there is to say: reports, alarms, and those that are over.

        Args:
            text: for samples; it is redacted before it is kept.
            label: that the classifier gives it.
            score: larger for what it is less sure of.

        Raises:
            UserError: the reference is of a classifier with other labels.
        """
        place = self._place_of(label)
        at, cell = 0.5, place
        if self.reference:
            predicted, scores = np.array([place]), np.array([score])
            ats = self.reference.places(predicted, scores)
            at, cell = float(ats[0]), int(self.reference.cells_of(predicted, ats)[0])
        self.texts += 1
        self._window.append(_Text(self.texts, place, cell, at, redact(text[: 2 * _LONGEST])[:_LONGEST]))
        events = []
        if self._input:
            was = bool(self._input.on)
            events += self._events("input", self._input, self._input.add_place(at), was)
        if self._shares:
            was = bool(self._shares.on)
            events += self._events("shares", self._shares, self._shares.add(cell), was)
        else:
            self._baseline[cell] += 1
            self._places[cell_of(at)] += 1
            if self.texts == self._options.baseline:
                self._end_baseline()
                high = sum(text.place > 0.9 for text in self._window) / len(self._window)
                unlike = {"upper_tenth": round(high, 4)} if self.reference else {}
                events.append({"event": "baseline", **unlike, **self.report()})
        if self.texts % self._options.every == 0:
            report = self.report()
            self.reports.append(report)
            events.append({"event": "report", **report})
        self.alarms.update(event["kind"] for event in events if event["event"] == "alarm")
        self.last.extend(event for event in events if event["event"] in ("alarm", "over"))
        return events

    def skip(self, reason: str) -> None:
        """Counts a line without a text, by the `reason` why it has none."""
        self.skipped[reason] += 1

    def _place_of(self, label: str) -> int:
        if label in self.labels:
            return self.labels.index(label)
        if self.reference:
            raise UserError(
                f'The reference is of a classifier that has no label "{label}"; give --reference of the '
                f"model that is asked. Its labels: {', '.join(self.labels[:10])}."
            )
        if self._fixed:
            return len(self.labels) - 1 if self.labels[-1] == OTHER else self._place_of(OTHER)
        self.labels.append(label)
        return len(self.labels) - 1

    def _end_baseline(self) -> None:
        if not self._fixed:
            self.labels.append(OTHER)
            self._fixed = True
        self._intervals = None
        cells = self.reference.cells.shape[1] if self.reference else len(self.labels)
        counts = np.array([self._baseline[cell] for cell in range(cells)])
        self._shares = ShareAlarm(
            counts,
            self._corrected().distributions if self.reference else None,
            self.labels,
            shift=self._options.shift,
            false_alarms=self._options.false_alarms,
            seed=self._options.seed,
        )
        if self.reference:
            places = np.array([self._places[cell] for cell in range(len(count_places([])))])
            bound = {"false_alarms": self._options.false_alarms, "seed": self._options.seed}
            self._input = InputAlarm(places, **bound)

    # --- What is said

    def _corrected(self) -> Intervals:
        if self._intervals is None or (not self.reference and not self._fixed):
            cells = self.reference.cells if self.reference else None
            self._intervals = Intervals(cells, len(self.labels), seed=self._options.seed)
        return self._intervals

    def report(self) -> dict[str, Any]:
        """Returns the shares of the window, with 95 % intervals, and the alarms that are on."""
        cells = self.reference.cells.shape[1] if self.reference else len(self.labels)
        counts = np.bincount([text.cell for text in self._window], minlength=cells)
        shares, low, high = (x.tolist() for x in self._corrected()(counts))
        predicted = np.bincount([text.label for text in self._window], minlength=len(self.labels))
        normal: list[Any] = self._shares.shares.tolist() if self._shares else [None] * len(self.labels)
        return {
            "text": self.texts,
            "window": len(self._window),
            "shares": {
                label: {
                    "share": round(shares[place], 4),
                    "low": round(low[place], 4),
                    "high": round(high[place], 4),
                    "predicted": round(int(predicted[place]) / max(len(self._window), 1), 4),
                    "normal": None if normal[place] is None else round(normal[place], 4),
                }
                for place, label in enumerate(self.labels)
            },
            "levels": {kind: round(cusum.level, 4) for kind, cusum in self._cusums()},
            "on": {kind: [cusum.names[place] for place in cusum.on] for kind, cusum in self._cusums()},
        }

    def _cusums(self) -> list[tuple[str, Cusum]]:
        return [(kind, x) for kind, x in (("shares", self._shares), ("input", self._input)) if x is not None]

    def _events(self, kind: str, cusum: Cusum, raised: list[str], was: bool) -> list[dict[str, Any]]:
        if raised:
            place = cusum.names.index(raised[0])
            since = self.texts - int(cusum.since[place]) + 1
            facts = {"kind": kind, "direction": ", ".join(raised), "began": since}
            return [
                {
                    "event": "alarm",
                    **facts,
                    "samples": self._samples(kind, cusum, place, since),
                    **self.report(),
                }
            ]
        return [{"event": "over", "kind": kind, **self.report()}] if was and not cusum.on else []

    def _samples(self, kind: str, cusum: Cusum, direction: int, since: int) -> list[dict[str, Any]]:
        """Returns the texts of the window that moved a sum most, the latest first among equal ones."""

        def moved(text: _Text) -> float:
            if kind == "shares":
                return float(cusum.increments[direction, text.cell])
            return 1 - text.place if direction == 1 else text.place

        found = [text for text in self._window if text.number >= since]
        found.sort(key=lambda text: (-moved(text), -text.number))
        return [
            {"text": text.text, "number": text.number, "label": self.labels[text.label]}
            for text in found[: self._options.samples]
        ]

    # --- State

    def _made_with(self) -> dict[str, Any]:
        names = ("window", "baseline", "shift", "false_alarms", "every", "seed")
        found = {name: getattr(self._options, name) for name in names}
        if self.reference:
            text = json.dumps(self.reference.as_json()).encode()
            found["reference"] = hashlib.sha256(text).hexdigest()[:16]
        return found

    def state(self) -> dict[str, Any]:
        """Returns what `restore` takes, for JSON."""
        return {
            "made_with": self._made_with(),
            "labels": self.labels,
            "fixed": self._fixed,
            "texts": self.texts,
            "skipped": dict(self.skipped),
            "alarms": dict(self.alarms),
            "window": [list(text) for text in self._window],
            "baseline": sorted(self._baseline.items()),
            "places": sorted(self._places.items()),
            "sums": {kind: cusum.state() for kind, cusum in self._cusums()},
            "reports": list(self.reports),
            "last": list(self.last),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where another watcher was.

        Args:
            state: what that one's `state` returned.

        Raises:
            UserError: that one had other options.
        """
        then, now = state["made_with"], self._made_with()
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                raise UserError(
                    f"--state is of a watcher with another {name}: give what that one had, or another file. "
                    f"Received: {now.get(name)}, and it had {then.get(name)}."
                )
        self.labels, self._fixed, self.texts = state["labels"], state["fixed"], state["texts"]
        self.skipped, self.alarms = Counter(state["skipped"]), Counter(state["alarms"])
        self._window.extend(_Text(*text) for text in state["window"])
        self._baseline = Counter(dict(map(tuple, state["baseline"])))
        self._places = Counter(dict(map(tuple, state["places"])))
        self.reports.extend(state["reports"])
        self.last.extend(state["last"])
        if self.texts >= self._options.baseline:
            self._end_baseline()
        for kind, cusum in self._cusums():
            cusum.restore(state["sums"][kind])
