"""What labels texts: a signature in this process, or one on a server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Event
from typing import Any, Protocol

from karpa_tf.errors import UserError
from karpa_tf.serving.canary import CLIENT_ID, WATCHER
from karpa_tf.serving.load import Rest, Spec, inputs_of, open_target
from karpa_tf.serving.options import LoadOptions
from karpa_tf.watching.options import WatchOptions

# Rows of a request, and seconds between two tries to reach a server: 1, 2, 4, ... up to
AT_ONCE, _LONGEST_WAIT = 64, 30.0


class Model(Protocol):
    """A classifier.

    Attributes:
        texts: its inputs by name, and whether each is a text.
        labels: those that it gives, as far as they are known.
    """

    texts: Mapping[str, bool]
    labels: Sequence[str]

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """Returns the outputs of each row; None: it was refused."""


class Local:
    """A signature in this process.

    Args:
        texts: its inputs by name, and whether each is a text.
        labels: that it gives.
        predict: rows to outputs, `{"error": reason}` for a row that cannot be read.
    """

    def __init__(
        self,
        texts: Mapping[str, bool],
        labels: Sequence[str],
        predict: Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]],
    ) -> None:
        self.texts, self.labels, self._predict = texts, labels, predict

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        try:
            found = self._predict(rows)
        except UserError:
            if len(rows) == 1:
                return [None]
            return [answer for row in rows for answer in self.ask([row])]
        return [None if "error" in outputs else dict(outputs) for outputs in found]


class Remote:
    """A signature on a server, over REST. A server that does not answer is waited for.

    Args:
        target: the signature.
        inputs: of it.
    """

    def __init__(self, target: Rest, inputs: Mapping[str, Spec]) -> None:
        self.texts = {name: spec.dtype == "DT_STRING" for name, spec in inputs.items()}
        self.labels: Sequence[str] = ()
        self._target, self._inputs = target, inputs
        self._wait = Event()

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        message, pause = self._target.message(rows, self._inputs), 1.0
        while True:
            try:
                status, body = asyncio.run(self._target.exchange(message))
                wrong = f"HTTP {status}" if status >= 500 or status in (401, 404, 429) else ""
            except UserError as error:
                wrong = str(error)
            if not wrong:
                break
            if pause == 1.0:
                print(
                    f"The server does not label ({wrong}); it is asked again until it does.", file=sys.stderr
                )
            self._wait.wait(pause)
            pause = min(2 * pause, _LONGEST_WAIT)
        if status == 200:
            found = json.loads(body)["predictions"]
            return [row if isinstance(row, dict) else {"": row} for row in found]
        if len(rows) == 1:
            return [None]
        return [answer for row in rows for answer in self.ask([row])]


def open_remote(url: str, options: WatchOptions) -> Remote:
    """Returns the model at a URL; without `model_name`, a request log is read for its requests alone.

    Raises:
        UserError: there is no such model, or it is asked over gRPC.
    """
    asked = LoadOptions(signature=options.signature, token_file=options.token_file, ca_file=options.ca_file)
    target = open_target(url, asked, "watch takes")
    if not isinstance(target, Rest):
        raise UserError(f"watch asks a server over REST, http://HOST:PORT/v1/models/NAME. Received: {url}.")
    target = replace(target, headers=f"{target.headers}{CLIENT_ID}: {WATCHER}\r\n")
    options.model_name = options.model_name or target.path.removeprefix("/v1/models/").split("/")[0]
    return Remote(target, inputs_of(target, options.signature))


def check_classifier(model: Model, name: str) -> None:
    """Raises a UserError if a model that takes texts does not give what a classifier does."""
    if not all(model.texts.values()):
        return  # the first row will show it
    (outputs,) = model.ask([dict.fromkeys(model.texts, "a text")])
    check_outputs(outputs or {}, name)


def check_outputs(outputs: Mapping[str, Any], name: str) -> None:
    """Raises a UserError unless outputs of a row are those of a classifier."""
    if not isinstance(outputs.get("label"), str) or not isinstance(outputs.get("probabilities"), list):
        raise UserError(
            f"watch takes a classifier, whose signature gives label and probabilities, and {name} gives "
            f"{', '.join(filter(None, outputs)) or 'something else'}; name another model or --signature."
        )
