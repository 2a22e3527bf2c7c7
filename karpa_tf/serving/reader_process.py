"""The process that reads large requests: `python -m karpa_tf.serving.reader_process`.

Reads from standard input and answers on standard output, until the other end is closed. A request comes as
two numbers, the sizes of header and body, and both of them; so does an answer.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import resource
import signal
import struct
import sys
import types
from typing import Any, BinaryIO

SIZES = struct.Struct("<QQ")


def _without_tensorflow() -> None:
    """Makes TensorFlow's protos importable, without the seconds and the memory of TensorFlow itself."""
    found = importlib.util.find_spec("tensorflow")
    package = types.ModuleType("tensorflow")
    package.__path__ = list(found.submodule_search_locations or []) if found else []
    sys.modules["tensorflow"] = package


def main() -> None:
    """Serves one process."""
    # They may reach every process of a terminal or a service; this one ends when the server closes its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)  # small requests, which the server reads itself, come first
    _without_tensorflow()
    import orjson

    from karpa_tf.serving import requests
    from karpa_tf.serving.examples import Limits
    from karpa_tf.serving.refusal import Refusal

    # What is parsed has no cycles, and a collection would look at millions of lists.
    gc.disable()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := _exactly(source, SIZES.size):
        sizes = SIZES.unpack(head)
        ask = orjson.loads(_exactly(source, sizes[0]))
        body = _exactly(source, sizes[1])
        limits = Limits(ask["bytes"], ask["rows"])
        # Forty times a body and a gigabyte; whatever needs more is refused.
        _limit_memory((1 << 30) + 40 * limits.bytes)
        blocks: list[bytes] = []
        try:
            if ask["api"] == "grpc":
                question = requests.read_grpc(ask["kind"], body, limits)
            else:
                signatures = {
                    name: ({key: (dtype, shape) for key, (dtype, shape) in inputs.items()}, optional)
                    for name, (inputs, optional) in ask["signatures"].items()
                }
                question = requests.read_rest(
                    body, ask["encoding"], ask["api"], ask["model"], signatures, limits
                )
            header, blocks = requests.pack(question)
            del question
        except Refusal as refusal:
            header = {"refusal": [refusal.code, refusal.message[:2000], refusal.http_status]}
        except (MemoryError, SystemError):  # orjson's word for it
            header = {"refusal": ["RESOURCE_EXHAUSTED", "The request takes too much memory to read.", None]}
        del body
        text = orjson.dumps(header)
        target.write(SIZES.pack(len(text), sum(map(len, blocks))) + text)
        for block in blocks:
            target.write(block)
        target.flush()


def _exactly(source: BinaryIO, size: int) -> Any:
    return source.read(size)  # a buffered reader returns less at the end only


def _limit_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))


if __name__ == "__main__":
    main()
