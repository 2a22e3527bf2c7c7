"""What models cost to keep and to run: bytes, milliseconds of a lone request, processor time of a row."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from karpa_tf.lines import InALine

# Arrays by input, a row each, to arrays by output: a signature.
Answer = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

# Rows of the requests whose processor time counts, lone requests, and passes over all rows.
_BATCH = 32
_REQUESTS = 100
_PASSES = 3


@dataclass(frozen=True, kw_only=True, repr=False)
class Costs(InALine):
    """What several models cost, measured together.

    Attributes:
        table: figures by the name of each model: what was given, and `bytes`, `gzip_bytes`, `request_ms` and
            `cpu_s_1000_rows`.
        how: a sentence on how they were measured.
    """

    table: dict[str, dict[str, float]]
    how: str


def measure_costs(
    models: Mapping[str, tuple[Path, Answer]],
    rows: Mapping[str, np.ndarray],
    figures: Mapping[str, Mapping[str, float]],
    *,
    threads: int,
) -> Costs:
    """Measures models side by side.

    They take turns at every request, so that what else the machine does befalls all of them alike.

    Args:
        models: by name the folder of the exported model, and what answers with it.
        rows: arrays (n, ...) by input, the same for all models.
        figures: what each reaches, by its name, e.g. `{"parent": {"accuracy": 0.9}}`.
        threads: that the models compute with, for the sentence.

    Returns:
        `bytes` of all files of the folder, and `gzip_bytes` with each of them compressed; `request_ms`, the
        median milliseconds of a request of one row; `cpu_s_1000_rows`, the processor time of this process,
        all its threads together, for 1,000 rows in requests of 32.

    Raises:
        ValueError: there are no rows.
    """
    count = min((len(array) for array in rows.values()), default=0)
    if not count:
        raise ValueError("Rows are needed, one at least.")
    answers = {name: answer for name, (_, answer) in models.items()}
    alone = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count)]
    together = [
        {name: array[i : i + _BATCH] for name, array in rows.items()} for i in range(0, count, _BATCH)
    ]
    for answer in answers.values():  # the first requests of a model make its graph
        for request in chain(alone[:_BATCH], together):
            answer(request)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(_REQUESTS):
        for name, answer in answers.items():
            begin = time.perf_counter()
            answer(alone[number % count])
            seconds[name].append(time.perf_counter() - begin)
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(_PASSES):
        for name, answer in answers.items():
            begin = time.process_time()
            for request in together:
                answer(request)
            spent[name].append(time.process_time() - begin)
    table = {}
    for name, (folder, _) in models.items():
        files = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
        table[name] = {
            **figures.get(name, {}),
            "bytes": sum(map(len, files)),
            "gzip_bytes": sum(len(zlib.compress(file, wbits=31)) for file in files),
            "request_ms": 1e3 * statistics.median(seconds[name]),
            "cpu_s_1000_rows": 1e3 * statistics.median(spent[name]) / count,
        }
    how = (
        f"request_ms: median of {_REQUESTS} requests of one row; cpu_s_1000_rows: processor time "
        f"for 1,000 rows, measured on {count} "
        f"rows in requests of {_BATCH}, median of {_PASSES} passes; in one process with {threads} threads, "
        "the models in turn"
    )
    return Costs(table=table, how=how)
