"""`karpa-tf serve` as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from urllib.request import Request, urlopen

from tests.serving.conftest import SECONDS, free_port


class Command:
    """A `karpa-tf serve` in a process of its own.

    Args:
        words: behind `serve`; its ports come by themselves.
        program: what runs `karpa-tf`.
    """

    def __init__(
        self, *words: object, program: Sequence[object] = (sys.executable, "-m", "karpa_tf")
    ) -> None:
        self.rest_port, self.port = free_port(), free_port()
        flags = ["--port", str(self.port), "--rest_api_port", str(self.rest_port)]
        self.process = subprocess.Popen(
            [*map(str, program), "serve", *map(str, words), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def predict(self, x: Any, model: str = "add") -> list[float]:
        url = f"http://127.0.0.1:{self.rest_port}/v1/models/{model}:predict"
        with urlopen(Request(url, json.dumps({"instances": [x]}).encode()), timeout=SECONDS) as response:
            return json.load(response)["predictions"]

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err
