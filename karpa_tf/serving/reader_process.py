"""The process that reads large requests and writes large answers.

Started as `python -m karpa_tf.serving.reader_process`. Reads from standard input and answers on standard
output, until the other end is closed. What is asked comes as two numbers, the sizes of a header and of all
that follows it, and both of them; so does the answer.
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
from collections.abc import Sequence
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

    from karpa_tf.serving import answers, requests
    from karpa_tf.serving.examples import Limits
    from karpa_tf.serving.refusal import Refusal

    # What is parsed has no cycles, and a collection would look at millions of lists.
    gc.disable()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while start := _exactly(source, SIZES.size):
        sizes = SIZES.unpack(start)
        ask = orjson.loads(_exactly(source, sizes[0]))
        given = [_exactly(source, size) for size in ask.get("sizes", sizes[1:])]
        body = given[0]
        limits = Limits(ask["bytes"], ask["rows"])
        # Forty times a body and a gigabyte; whatever needs more is refused.
        _limit_memory((1 << 30) + 40 * max(limits.bytes, sizes[1]))
        blocks: Sequence[bytes | memoryview] = []
        try:
            if "tensors" in ask:
                outputs = requests.unpack(ask, given, "").arrays
                blocks = answers.write_rest(ask["api"], ask["by_rows"], ask["examples"], outputs)
                header: dict[str, Any] = {"sizes": [sum(map(len, blocks))]}
                del outputs
            elif ask["api"] == "grpc":
                header, blocks = requests.pack(requests.read_grpc(ask["kind"], body, limits))
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
            text = "The request takes too much memory to read, or to answer."
            header = {"refusal": ["RESOURCE_EXHAUSTED", text, None]}
        del body, given
        head = orjson.dumps(header)
        target.write(SIZES.pack(len(head), sum(map(len, blocks))) + head)
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
