"""A canary: a new version that answers a share of the clients, until it is seen to be worse than the others.

Whether it is worse is asked after every request, so fixed-size tests do not hold: looked at often enough, one
of them rejects something. `interval` is a confidence sequence, which holds at all times at once. Every client
counts once, however often it asks: what one client does is no evidence of many.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine

log = logging.getLogger(__name__)

# The chance that a canary which is as good as the stable version is ever stopped: half of it for errors, half
# for labels.
FALSE_ALARM = 0.01
# Labels that are compared.
_MOST_LABELS = 1000
# The header, or gRPC's metadata, by which a client says who it is.
CLIENT_ID = "x-client-id"
# The name of `karpa-tf watch`. What it asks is in the request log already, which it may be reading.
WATCHER = "karpa-tf watch"
# Clients that are remembered, as numbers; later ones are not counted.
_MOST_CLIENTS = 100_000
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%", re.ASCII)
# Version labels of a models.config. The share is in the name of one: TensorFlow Serving, which reads the same
# file, takes any label and no field of ours.
STABLE, CANARY = "stable", "canary"
_SHARE_LABEL = re.compile(rf"{CANARY}-{_SHARE.pattern}", re.ASCII)


def read_share(text: str, flag: str) -> float:
    """Returns a share from a text such as `10%`.

    Args:
        text: a number from 0 to 100 and a percent sign.
        flag: where it was given, for a sentence.

    Raises:
        UserError: it is something else.
    """
    found = _SHARE.fullmatch(text)
    if not found or float(found[1]) > 100:
        raise UserError(f'{flag}: a share is a number from 0% to 100%, as "10%". Received: "{text}".')
    return float(found[1]) / 100


def read_canaries(text: str) -> list[tuple[str, int, float]]:
    """Returns model, version and share of each `MODEL=VERSION:SHARE` of a list with commas, as `mine=2:10%`.

    Raises:
        UserError: it is something else.
    """
    canaries = []
    for one in filter(None, text.split(",")):
        model, _, rest = one.strip().rpartition("=")
        version, _, share = rest.partition(":")
        if not model or not (version.isascii() and version.isdecimal()):
            raise UserError(f'--canary takes MODEL=VERSION:SHARE, as "mine=2:10%". Received: "{one}".')
        canaries.append((model, int(version), read_share(share, "--canary")))
    return canaries


def label_of_share(share: str) -> str:
    """Returns the version label that says which share of the clients a canary answers."""
    return f"{CANARY}-{share}"


def share_of_labels(labels: Mapping[str, int]) -> tuple[float | None, int]:
    """Returns the share that version labels give a canary, None for none, and the version."""
    for label, version in labels.items():
        if (found := _SHARE_LABEL.fullmatch(label)) and float(found[1]) <= 100:
            return float(found[1]) / 100, version
    return None, 0


def interval(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Returns bounds of a probability that hold at all times at once, with probability 1 - alpha.

    The prior-posterior-ratio martingale of a uniform prior (Waudby-Smith & Ramdas 2020, "Confidence sequences
    for sampling without replacement", arXiv 2006.04347, section 2; Robbins 1970): the bounds enclose the
    values at which the posterior's density is above alpha. By Ville's inequality the true value is ever
    outside of them with probability alpha at most.

    Args:
        hits: how often it happened.
        trials: how often it could.
        alpha: the chance that the bounds ever exclude the true value.
    """
    constant = (
        math.lgamma(trials + 2) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1) - math.log(alpha)
    )

    def inside(value: float) -> bool:
        missed = trials - hits
        log_density = constant
        log_density += hits * math.log(value) if hits else 0.0
        log_density += missed * math.log1p(-value) if missed else 0.0
        return log_density > 0

    def edge(inner: float, outer: float) -> float:
        """Halves the way from a value inside to one outside; the answer is never inside."""
        for _ in range(40):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if inside(middle) else (inner, middle)
        return outer

    best = hits / trials if trials else 0.5
    return edge(best, 0.0) if hits else 0.0, edge(best, 1.0) if hits < trials else 1.0


class _Label:
    """A label's clients, after the one that it was given to first.

    So its number, and with it its part of the chance of a false alarm, does not hang on what is counted.
    """

    def __init__(self, number: int, clients: Counter[bool]) -> None:
        self.given = Counter[bool]()
        self._alpha = FALSE_ALARM / 2 / (number * (number + 1))  # all of them add up to half of it
        self._before = clients.copy()

    def _counts(self, clients: Counter[bool], ours: bool) -> tuple[int, int]:
        return self.given[ours], clients[ours] - self._before[ours]

    def shares(self, clients: Counter[bool]) -> tuple[float, float]:
        """Returns its share in the canary's answers and in the others'."""
        (new, of), (old, of_others) = (self._counts(clients, ours) for ours in (True, False))
        return new / max(of, 1), old / max(of_others, 1)

    def moved(self, clients: Counter[bool]) -> float:
        """Returns how much larger its share is in the canary's answers."""
        new, old = self.shares(clients)
        return new - old

    def apart(self, clients: Counter[bool], tolerance: float) -> bool:
        """Whether its shares differ by more than that beyond chance."""
        if abs(self.moved(clients)) <= tolerance:
            return False
        bounds = [interval(*self._counts(clients, ours), self._alpha / 2) for ours in (True, False)]
        (low, high), (others_low, others_high) = bounds
        return max(low - others_high, others_low - high) > tolerance


class Canary(InALine):
    """A version that answers a share of the clients which name none. Called in the event loop.

    A client's place is a hash of its name, the model's and the canary's version: it stays where it is, in
    every process, and those of a small share are among those of a larger one.

    Attributes:
        model: its name.
        version: the canary.
        stable: the version that answers the others.
        share: of the clients, from 0 to 1.
        stopped: why it answers nobody any more; empty while it does.
    """

    def __init__(self, model: str, version: int, stable: int, share: float, tolerance: float = 0.1) -> None:
        """Counts nothing yet.

        Args:
            model: its name.
            version: the canary.
            stable: the version that answers the others.
            share: of the clients, from 0 to 1.
            tolerance: points, from 0 to 1, by which the share of a label may differ.
        """
        self.model, self.version, self.stable, self.share = model, version, stable, share
        self.stopped = ""
        self._tolerance = tolerance
        self._salt = f"{model}\0{version}\0".encode()
        self._failed: set[int] = set()
        self._failures = Counter[bool]()
        self._labelled: set[int] = set()
        self._clients = Counter[bool]()
        self._labels: dict[bytes, _Label] = {}

    def same_as(self, other: Canary | None) -> bool:
        """Whether another one asks for the same, so that what was counted still holds."""
        if other is None:
            return False
        return (self.version, self.stable, self.share) == (other.version, other.stable, other.share)

    def takes(self, client: str) -> bool:
        """Whether a client is one of the canary's."""
        return self._place(client) < self.share * 2.0**64

    def _place(self, client: str) -> int:
        named = self._salt + client.encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big")

    def failed(self, client: str, version: int) -> None:
        """Counts a client by its first request that failed.

        Where a canary is as good as the stable version, its part of these clients is its share: that they
        failed says nothing of where the hash has put them.
        """
        place = self._place(client)
        if self.stopped or place in self._failed or len(self._failed) >= _MOST_CLIENTS:
            return
        self._failed.add(place)
        self._failures[version == self.version] += 1
        low, _ = interval(self._failures[True], self._failures.total(), FALSE_ALARM / 2)
        if low > self.share:
            self._stop(
                f"of {self._failures.total()} clients whose requests failed, {self._failures[True]} were "
                f"its own, and of all clients {self._percent()} are"
            )

    def answered(self, client: str, version: int, label: bytes) -> None:
        """Counts a client by the label that it was given first."""
        place = self._place(client)
        if self.stopped or place in self._labelled or len(self._labelled) >= _MOST_CLIENTS:
            return
        self._labelled.add(place)
        ours = version == self.version
        found = self._labels.get(label)
        if found is not None:
            found.given[ours] += 1
        self._clients[ours] += 1
        if found is None and len(self._labels) < _MOST_LABELS:
            self._labels[label] = _Label(len(self._labels) + 1, self._clients)
        # The bounds of all labels hold together, so that looking at one of them is no other test.
        moved = max(self._labels, key=lambda name: abs(self._labels[name].moved(self._clients)))
        if self._labels[moved].apart(self._clients, self._tolerance):
            new, old = self._labels[moved].shares(self._clients)
            text = moved.decode("utf-8", "replace")
            self._stop(f'of its clients {new:.0%} were given the label "{text}", of the others {old:.0%}')

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        log.warning("%s: the canary, version %d, was stopped: %s", self.model, self.version, reason)

    def _percent(self) -> str:
        return f"{100 * self.share:.6g}%"

    def describe(self) -> str:
        """Returns in sentences what it does, and what was seen."""
        if self.stopped:
            return f"The canary, version {self.version}, was stopped: {self.stopped}."
        return (
            f"The canary, version {self.version}, answers {self._percent()} of the clients that name no "
            f"version; version {self.stable} answers the others. Clients with a failed request: "
            f"{self._failures[True]} of the canary, {self._failures[False]} of the others; clients with a "
            f"label: {self._clients[True]} and {self._clients[False]}."
        )
